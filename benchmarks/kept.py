"""Finished runs of a benchmark, kept in `benchmarks/results/NAME.json`: an interrupted benchmark continues."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from genjax.training.run_dir import atomic_write

RESULTS = Path(__file__).with_name("results")


def read(benchmark: str) -> dict[str, Any]:
    """All that is kept, by name."""
    file = RESULTS / f"{benchmark}.json"
    return json.loads(file.read_text()) if file.exists() else {}


def write(benchmark: str, found: Any) -> None:
    """Replace all that is kept."""
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(found, indent=1, sort_keys=True) + "\n"
    atomic_write(RESULTS / f"{benchmark}.json", text.encode())


def keep(benchmark: str, name: str, compute: Callable[[], Any]) -> Any:
    """What is kept under this name, else `compute()`, which is kept; read again before, so that two may run beside each other."""
    kept = read(benchmark)
    if name not in kept:
        kept = {name: compute()} | read(benchmark)
        write(benchmark, kept)
    print(name, kept[name], flush=True)
    return kept[name]
