"""Timing that all benchmarks share: alternating runs, medians with quartiles, compile time apart."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np


class Timing(NamedTuple):
    """Seconds of one call: the median and the quartiles."""

    median: float
    low: float
    high: float


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
