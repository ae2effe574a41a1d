"""Timing that all benchmarks share: alternating runs, processes of their own, medians with quartiles, compile time apart.

Frameworks do not share a process: a `Worker` builds its calls in one of its own, with as many threads as every other, and
times one of them when asked, while the others wait.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np


class Timing(NamedTuple):
    """The median and the quartiles, of seconds or of ratios."""

    median: float
    low: float
    high: float

    def __format__(self, digits: str) -> str:
        """`median (low to high)`, each in this format."""
        return f"{self.median:{digits}} ({self.low:{digits}} to {self.high:{digits}})"


def alternate(calls: Sequence[Callable[[], Any]], *, rounds: int = 9, warmup: int = 2) -> list[np.ndarray]:
    """Seconds of each call, `[rounds]` each, measured A B C A B C ... after `warmup` unmeasured rounds."""
    seconds = np.zeros((len(calls), rounds))
    for index in range(-warmup, rounds):
        for which, call in enumerate(calls):
            start = time.perf_counter()
            jax.block_until_ready(call())
            if index >= 0:
                seconds[which, index] = time.perf_counter() - start
    return list(seconds)


def summary(seconds: np.ndarray) -> Timing:
    """Median and quartiles of measured seconds."""
    low, median, high = np.quantile(seconds, [0.25, 0.5, 0.75])
    return Timing(float(median), float(low), float(high))


def ratio(seconds: np.ndarray, floor: np.ndarray) -> Timing:
    """Median and quartiles of the ratio to the floor, round by round, so that drift of the machine cancels."""
    return summary(seconds / floor)


class Missing(Exception):
    """A package that a worker needs is not installed."""


class Worker:
    """A process that builds calls, and runs them when asked.

    `build` is "module:function" and is called there with `arguments`, which JSON must hold; it gives a dict of calls
    without arguments by name. `first` has the seconds of the first run of each, so far as it was run: compilation
    included. Raises Missing where an import fails.
    """

    def __init__(self, build: str, arguments: dict[str, Any], *, threads: int, python: str) -> None:
        counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
        environment = os.environ | counts | {"GENJAX_BENCHMARK_THREADS": str(threads)}
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=Path(__file__).parents[1],
        )
        self.first: dict[str, float] = {}
        self.names: list[str] = self._ask("build", build=build, arguments=arguments)

    def _ask(self, what: str, **request: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"what": what, **request}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a worker ended with code {self._process.wait()}")
        reply = json.loads(line)
        if "missing" in reply:
            raise Missing(reply["missing"])
        if "failed" in reply:
            raise RuntimeError(reply["failed"])
        return reply["value"]

    def seconds(self, name: str) -> float:
        """Of one run, the mean of as many as make a measurement long enough."""
        if name not in self.first:
            self.first[name] = self._ask("first", name=name)
        seconds: float = self._ask("seconds", name=name)
        return seconds

    def output(self, name: str) -> list[np.ndarray]:
        """The leaves of what a call returns, in double precision."""
        if name not in self.first:
            self.first[name] = self._ask("first", name=name)
        with tempfile.TemporaryDirectory() as folder:
            file = str(Path(folder) / "output.npz")
            self._ask("output", name=name, file=file)
            with np.load(file) as arrays:
                return [np.asarray(arrays[key], np.float64) for key in arrays.files]

    def peak_mebibytes(self) -> float:
        """The most memory that the process has held so far."""
        peak: float = self._ask("peak")
        return peak

    def close(self) -> None:
        """End the process."""
        self._process.stdin.close()  # type: ignore[union-attr]
        self._process.wait()


@contextmanager
def workers(python: str = sys.executable, **builds: tuple[str, dict[str, Any]]) -> Iterator[dict[str, Worker | None]]:
    """A worker for each build, by name, of this interpreter; None for one whose packages are not installed, which is said."""
    threads = os.cpu_count() or 1
    with ExitStack() as stack:
        made: dict[str, Worker | None] = {}
        for name, (build, arguments) in builds.items():
            try:
                made[name] = Worker(build, arguments, threads=threads, python=python)
            except Missing as missing:
                print(f"{name} is left out: {missing}", file=sys.stderr, flush=True)
                made[name] = None
                continue
            stack.callback(made[name].close)  # type: ignore[union-attr]
        yield made


def alternate_workers(calls: Sequence[tuple[Worker, str]], *, rounds: int = 9, warmup: int = 1) -> list[np.ndarray]:
    """Like `alternate`, of calls of workers."""
    seconds = np.zeros((len(calls), rounds))
    for index in range(-warmup, rounds):
        for which, (worker, name) in enumerate(calls):
            measured = worker.seconds(name)
            if index >= 0:
                seconds[which, index] = measured
    return list(seconds)


def in_processes(
    count: int, measure: Callable[[dict[str, Worker | None]], list[np.ndarray]], **builds: tuple[str, dict[str, Any]]
) -> list[np.ndarray]:
    """What `measure(workers)` times, in `count` sets of new processes one after the other: all rounds of each call in one array.

    What a process got at its start, such as where its pages lie, it keeps: a loop of microseconds can take a tenth longer
    in one process than in the next, in each of its rounds, and so can a convolutional network.
    """
    parts = []
    for _ in range(count):
        with workers(**builds) as made:
            parts.append(measure(made))
    return [np.concatenate(rounds) for rounds in zip(*parts, strict=True)]


def check_equal(ours: list[np.ndarray], theirs: list[np.ndarray], what: str, tolerance: float = 1e-5) -> float:
    """The largest difference over max(1, |ours|).

    Raises:
        RuntimeError: it is larger than the tolerance: two computations are not the same one.
    """
    difference = max(
        float(np.max(np.abs(one - other) / np.maximum(1.0, np.abs(one))))
        for one, other in zip(ours, theirs, strict=True)
    )
    if not difference <= tolerance:
        raise RuntimeError(f"{what}: outputs differ by {difference:.1e}, more than {tolerance:.0e}; nothing was timed")
    return difference
