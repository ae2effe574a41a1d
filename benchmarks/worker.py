"""The other end of `timing.Worker`: reads requests, a line of JSON each, and answers them. Not for use by hand."""

import importlib
import json
import math
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np

from genjax.environment import use_one_kernel_for_small_loops

LEAST_SECONDS = 0.05
"""A measurement is of as many runs as take this long."""

SETTLING_SECONDS = 2.0
"""A run that takes less is made once more before a measurement, unmeasured: it gets its memory anew after another worker."""


def pin() -> None:
    """Keep to as many of the processors as there are threads, before anything starts its own."""
    threads = int(os.environ["GENJAX_BENCHMARK_THREADS"])
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def finished(value: Any) -> Any:
    """`value` once it is computed."""
    return sys.modules["jax"].block_until_ready(value) if "jax" in sys.modules else value


def leaves(value: Any) -> list[np.ndarray]:
    """Arrays or tensors in dicts, lists and tuples, as arrays."""
    if isinstance(value, dict):
        return [leaf for name in sorted(value) for leaf in leaves(value[name])]
    if isinstance(value, list | tuple):
        return [leaf for part in value for leaf in leaves(part)]
    return [np.asarray(value.detach() if hasattr(value, "detach") else value)]


def seconds_of(call: Callable[[], Any], repeats: int = 1) -> float:
    """Of one of `repeats` runs."""
    start = time.perf_counter()
    for _ in range(repeats):
        value = call()
    finished(value)
    return (time.perf_counter() - start) / repeats


class Server:
    """The calls of this process, how many runs a measurement of each takes, and whether another goes before."""

    def __init__(self) -> None:
        self.calls: dict[str, Callable[[], Any]] = {}
        self.repeats: dict[str, int] = {}
        self.settles: dict[str, bool] = {}

    def build(self, build: str, arguments: dict[str, Any]) -> list[str]:
        """Build the calls."""
        module, function = build.split(":")
        self.calls = getattr(importlib.import_module(module), function)(**arguments)
        return list(self.calls)

    def first(self, name: str) -> float:
        """Run a call for the first time, and find how many runs a measurement takes."""
        first = seconds_of(self.calls[name])
        again = seconds_of(self.calls[name])
        self.repeats[name] = min(math.ceil(LEAST_SECONDS / again), 1000)
        self.settles[name] = again < SETTLING_SECONDS
        return first

    def seconds(self, name: str) -> float:
        """One measurement."""
        if self.settles[name]:
            seconds_of(self.calls[name])
        return seconds_of(self.calls[name], self.repeats[name])

    def output(self, name: str, file: str) -> None:
        """Run a call and write what it returns."""
        arrays = leaves(finished(self.calls[name]()))
        np.savez(file, **{f"{index:04d}": array for index, array in enumerate(arrays)})  # type: ignore[arg-type]

    def peak(self) -> float:
        """Mebibytes."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Answer until there are no more requests."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    pin()
    use_one_kernel_for_small_loops()
    server = Server()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = {"value": getattr(server, request.pop("what"))(**request)}
        except ImportError as error:
            reply = {"missing": str(error)}
        except Exception:
            reply = {"failed": traceback.format_exc()}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
