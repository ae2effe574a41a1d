"""Tables of `benchmarks/README.md` and of `docs/`, each between its own two marks, rewritten by the script that measured it."""

import datetime
import os
import platform
from pathlib import Path

README = Path(__file__).with_name("README.md")


def write_table(name: str, header: list[str], rows: list[list[str]], *, file: Path = README) -> None:
    """Replace the table between `<!-- name -->` and `<!-- /name -->` of `file`; say when and on what it was measured.

    Raises:
        ValueError: the file has no such marks.
    """
    table = [header, ["---"] * len(header), *rows]
    lines = "\n".join("| " + " | ".join(row) + " |" for row in table)
    text = file.read_text()
    before, opening, rest = text.partition(f"<!-- {name} -->")
    _, closing, after = rest.partition(f"<!-- /{name} -->")
    if not opening or not closing:
        raise ValueError(f"{file} has no table called {name}")
    file.write_text(f"{before}{opening}\n{lines}\n\n{measured_on()}\n{closing}{after}")


def measured_on() -> str:
    """The date, the machine and the versions, in one line."""
    import jax

    processor = f"{platform.machine()}, {os.cpu_count()} cores"
    return (
        f"Measured {datetime.date.today()} on {processor}; jax {jax.__version__}, Python {platform.python_version()}."
    )
