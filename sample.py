"""Draw samples from a trained model: `python sample.py RUN_DIR [options]`; `--help` lists them."""

import sys

from genjax.cli import run
from genjax.cli_sample import main

if __name__ == "__main__":
    sys.exit(run(main))
