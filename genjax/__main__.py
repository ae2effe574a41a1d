"""`python -m genjax train METHOD ...` and `python -m genjax sample RUN_DIR ...`."""

import sys

from genjax.cli import run
from genjax.errors import UsageError, unknown

_USAGE = """usage: python -m genjax train METHOD [options]
       python -m genjax sample RUN_DIR [options]
"""


def main(arguments: list[str]) -> int:
    """Dispatch to the script named by the first argument."""
    if not arguments:
        raise UsageError("nothing to do: expected 'train METHOD' or 'sample RUN_DIR'")
    command, *rest = arguments
    if command in ("-h", "--help"):
        print(_USAGE, end="")
        return 0
    if command == "train":
        from genjax.cli_train import main as train

        return train(rest)
    if command == "sample":
        from genjax.cli_sample import main as sample

        return sample(rest)
    raise unknown("command", command, ["train", "sample"])


if __name__ == "__main__":
    sys.exit(run(main))
