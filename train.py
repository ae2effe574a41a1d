"""Train a generative model: `python train.py METHOD [options]`; `--help` lists both."""

import sys

from genjax.cli import run
from genjax.cli_train import main

if __name__ == "__main__":
    sys.exit(run(main))
