"""Tables of `benchmarks/README.md` and of `docs/`, each between its own two marks, rewritten by the script that measured it."""

import datetime
import os
import platform
from pathlib import Path

README = Path(__file__).with_name("README.md")
_HALT_POLLING = Path("/sys/module/haltpoll/parameters/guest_halt_poll_ns")


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

    processor = f"{platform.machine()}, {os.cpu_count()} cores{_halted_cores()}"
    return (
        f"Measured {datetime.date.today()} on {processor}; jax {jax.__version__}, Python {platform.python_version()}."
    )


def _halted_cores() -> str:
    """How long a virtual machine's idle core waits for work before it is halted, after which waking a thread is slow."""
    if not _HALT_POLLING.exists():
        return ""
    return f" (of a virtual machine, halted after {int(_HALT_POLLING.read_text()) / 1000:.0f} us without work)"
