"""Train a generative model: `python train.py METHOD [options]`; `--help` lists both."""

import sys

if __name__ == "__main__":
    from genjax.environment import use_huge_pages

    use_huge_pages()

    from genjax.cli import run
    from genjax.cli_train import main

    sys.exit(run(main))
