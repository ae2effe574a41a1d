"""Noise levels of consistency models: grids, which of their intervals to train on, and how they get finer in training.

Levels are arrays `[N]` that rise from sigma_min to sigma_max; repeats of the last at the end only pad it, so that a grid which
grows in training need not recompile (`karras_levels` with a capacity). Interval i lies between `levels[i]` and
`levels[i + 1]`; the papers' index n is 1-based.

Song, Dhariwal, Chen & Sutskever 2023 (arXiv 2303.01469), appendix C; Song & Dhariwal 2023 (arXiv 2310.14189), section 3.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from genjax.typing import Array, Key

Intervals = Callable[[Key, Array, int], Array]
"""`intervals(key, levels [N], num) -> index [num]`, draws of i for training between `levels[i]` and `levels[i + 1]`."""


def karras_levels(
    num_levels: Array | int,
    *,
    capacity: int | None = None,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
) -> Array:
    """`(sigma_min^(1/rho) + i / (N - 1) (sigma_max^(1/rho) - sigma_min^(1/rho)))^rho`, i = 0 .. N - 1, rising.

    The ends are sigma_min and sigma_max exactly. It is the grid of `times.karras` without 0, reversed.

    Args:
        num_levels: N, at least 2: an int, or a scalar array, traced or not, which needs a capacity and is not checked.
        capacity: how long the array is, at least N: entries after the first N repeat sigma_max. Default N.
        sigma_min: where the data are taken to be.
        sigma_max: where x is taken to be noise.
        rho: the greater, the denser near the data.

    Returns:
        `[capacity]`.

    Raises:
        ValueError: fewer than 2 levels, more than the capacity, or an array without one.

    Source: Song et al. 2023 (arXiv 2303.01469), section 4, after Karras et al. 2022 (arXiv 2206.00364), eq. 5.

    Example:
        >>> karras_levels(3, capacity=5, sigma_min=1.0, sigma_max=9.0, rho=2.0).tolist()
        [1.0, 4.0, 9.0, 9.0, 9.0]
    """
    if isinstance(num_levels, int):
        capacity = num_levels if capacity is None else capacity
        if not 2 <= num_levels <= capacity:
            raise ValueError(f"num_levels is {num_levels}; expected at least 2 and at most the capacity, {capacity}")
    elif capacity is None:
        raise ValueError("num_levels is an array; it needs a capacity")
    u = jnp.minimum(jnp.arange(capacity) / (jnp.asarray(num_levels) - 1), 1)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return jnp.where(u == 0, sigma_min, jnp.where(u == 1, sigma_max, (low + u * (high - low)) ** rho))


def _num_intervals(levels: Array) -> Array:
    """How many intervals come before the padding of `levels [N]`."""
    return jnp.searchsorted(levels, levels[-1], side="left")


def uniform_intervals(key: Key, levels: Array, num: int) -> Array:
    """Each interval of `levels [N]` as likely as any other: int32 `[num]`."""
    return jax.random.randint(key, (num,), 0, _num_intervals(levels))


def lognormal_intervals(mean: float = -1.1, std: float = 2.0) -> Intervals:
    """The interval into which a draw of `log t ~ N(mean, std^2)` falls, given that it falls into the grid.

    Interval i has a probability proportional to `Phi((log levels[i + 1] - mean) / std) - Phi((log levels[i] - mean) / std)`,
    Phi the distribution function of N(0, 1).

    Args:
        mean: of log t; the default is for data of standard deviation 0.5.
        std: of log t, above 0.

    Raises:
        ValueError: std is not positive.

    Source: Song & Dhariwal 2023 (arXiv 2310.14189), section 3.5 and table 1.
    """
    if not std > 0:
        raise ValueError(f"std is {std}; expected more than 0")

    def intervals(key: Key, levels: Array, num: int) -> Array:
        edges = jax.scipy.stats.norm.cdf(jnp.log(levels), mean, std)
        u = jax.random.uniform(key, (num,), edges.dtype, edges[0], edges[-1])
        index = jnp.searchsorted(edges, u, side="right") - 1
        return jnp.clip(index, 0, _num_intervals(levels) - 1)  # u may be rounded up to the last edge

    return intervals


def growing_levels(step: Array | int, total_steps: int, *, start: int = 2, end: int = 150) -> Array:
    """`N = ceil(sqrt(start^2 + k / K ((end + 1)^2 - start^2)))` levels at step k of K, int32: from `start` to `end + 1`.

    Song et al. 2023 (arXiv 2303.01469), appendix C, where it is `ceil(sqrt(...) - 1) + 1`.

    Args:
        step: k, any shape, from 0.
        total_steps: K, from which on N stays.
        start: levels at the start, at least 2.
        end: intervals at the end.

    Raises:
        ValueError: a grid of fewer than 2 levels, one that shrinks, or no steps.
    """
    _check_schedule(total_steps, start, end, least=2)
    fraction = jnp.minimum(jnp.asarray(step) / total_steps, 1)
    return jnp.ceil(jnp.sqrt(start**2 + fraction * ((end + 1) ** 2 - start**2))).astype(jnp.int32)


def doubling_levels(step: Array | int, total_steps: int, *, start: int = 10, end: int = 1280) -> Array:
    """`N = min(start 2^floor(k / K'), end) + 1` levels at step k of K, int32: intervals double, from `start` to `end`.

    `K' = floor(K / (log2(floor(end / start)) + 1))`, so that each number is kept for as long (Song & Dhariwal 2023, arXiv
    2310.14189, section 3.4). Where end / start is no power of 2 the last of them is the greatest doubling below `end`.

    Args:
        step: k, any shape of integers, from 0.
        total_steps: K.
        start: intervals at the start, at least 1.
        end: intervals at the end.

    Raises:
        ValueError: a grid without intervals, one that shrinks, or no steps.
    """
    _check_schedule(total_steps, start, end, least=1)
    period = max(math.floor(total_steps / (math.log2(end // start) + 1)), 1)
    doublings = jnp.minimum(jnp.asarray(step) // period, math.ceil(math.log2(end / start)))  # no more, or 2^n overflows
    return (jnp.minimum(start * 2**doublings, end) + 1).astype(jnp.int32)


def _check_schedule(total_steps: int, start: int, end: int, *, least: int) -> None:
    if total_steps < 1 or not least <= start <= end:
        raise ValueError(
            f"total_steps is {total_steps}, start {start}, end {end}; expected at least 1 and {least} <= start <= end"
        )


def target_decay(num_levels: Array | int, *, start: int = 2, decay: float = 0.9) -> Array:
    """`mu = decay^(start / N)`, the decay of the average that is the target when the grid has N levels: of N's shape.

    `target <- mu target + (1 - mu) model` after each step; it is `decay` at the start, and nearer to 1 the finer the grid.

    Args:
        num_levels: N, from `growing_levels`.
        start: levels at the start.
        decay: mu at the start, in (0, 1): in the paper 0.9 on CIFAR-10, 0.95 else.

    Raises:
        ValueError: decay outside (0, 1).

    Source: Song et al. 2023 (arXiv 2303.01469), appendix C. The authors' code has the number of intervals, N - 1, for N.
    """
    if not 0 < decay < 1:
        raise ValueError(f"decay is {decay}; expected more than 0 and below 1")
    return jnp.exp(start * math.log(decay) / jnp.asarray(num_levels))
