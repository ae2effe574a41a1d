"""The metrics of a run: one JSON object a line, in the order in which they were measured.

`{"step": 200, "loss": 0.731, "steps_per_second": 8123.0}`. JSON has no NaN and no infinity: they are
written as null and read as None.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genjax.errors import UserError
from genjax.training.run_dir import atomic_write


class MetricsLog:
    """Appends to `metrics.jsonl`; every line is with the operating system when `append` returns.

    Example:
        >>> import tempfile
        >>> log = MetricsLog(Path(tempfile.mkdtemp()) / "metrics.jsonl")
        >>> for step in (100, 200, 300):
        ...     log.append(step, {"loss": 1 / step})
        >>> log.truncate_after(200)
        >>> read_metrics(log.path)
        [{'step': 100, 'loss': 0.01}, {'step': 200, 'loss': 0.005}]
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)

    def append(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Add one line.

        Args:
            step: the training step that the metrics were measured at.
            metrics: numbers (Python, NumPy or JAX scalars), booleans, strings or None by name.

        Raises:
            UserError: the file cannot be written (a full disk, ...).
        """
        entry = {"step": int(step), **{name: _as_json(value) for name, value in metrics.items()}}
        line = (json.dumps(entry, allow_nan=False) + "\n").encode()
        try:
            with open(self.path, "ab") as file:
                file.write(line)
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror or error}") from error

    def truncate_after(self, step: int) -> None:
        """Drop the lines beyond `step`, and a last line that an interrupted write left torn.

        A run that resumes from the checkpoint of `step` calls this first, and then measures those lines
        again.

        Raises:
            UserError: a line before the last is damaged, or the file cannot be written.
        """
        if self.path.exists():
            kept = [line for line, entry in _read_lines(self.path) if entry["step"] <= step]
            atomic_write(self.path, b"".join(line + b"\n" for line in kept))


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of a metrics file, oldest first; `[]` where there is no file yet.

    A torn last line (the writer was killed, or is writing now) is left out.

    Raises:
        UserError: a line before the last is damaged, or the file cannot be read.
    """
    path = Path(path)
    return [entry for _, entry in _read_lines(path)] if path.exists() else []


def _read_lines(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    *whole_lines, _torn = content.split(b"\n")
    entries = []
    for number, line in enumerate(whole_lines, start=1):
        try:
            entry = json.loads(line)
            if not isinstance(entry["step"], int):
                raise TypeError
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{path} is damaged: line {number} is not a JSON object with a step; remove that line"
            ) from error
        entries.append((line, entry))
    return entries


def _as_json(value: Any) -> Any:
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
