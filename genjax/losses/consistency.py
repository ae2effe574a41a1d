"""Consistency models: one call of a network from any noise level to the data, from a teacher's ODE or from data alone.

On the path `x_t = data + t noise` (`paths.edm()`: t is the noise level, from sigma_max down to sigma_min > 0) the consistency
function f takes `x_t` to where the probability-flow ODE dx/dt = E[noise | x_t] through it arrives at sigma_min. So it is the
identity there, and it is constant along each solution. The first is built in, with s the standard deviation of the data:

    f(x, t) = c_skip(t) x + c_out(t) F(c_in(t) x, clock(t))                     (`consistency_function`)
    c_skip = s^2 / ((t - sigma_min)^2 + s^2),   c_out = s (t - sigma_min) / sqrt(s^2 + t^2),   c_in = 1 / sqrt(s^2 + t^2)

The second is learned, at neighbours t_cleaner < t_noisier of a grid of levels, with f-, a copy that gets no gradient:

    error = weighting(t_noisier, t_cleaner) * distance(f(x, t_noisier), f-(x', t_cleaner)),   x = data + t_noisier noise
    distillation    x' = one step of a solver on a teacher's ODE from x to t_cleaner
    training        x' = data + t_cleaner noise, the same noise

Given x, the mean of training's x' is an Euler step with the exact score, so that as the grid gets finer the two gradients
agree in the mean (theorem 2 of the first paper). Recipes, of which the first and the last are the defaults here:

    source                        distance        weighting      levels drawn            number of levels    f-
    2303.01469, distillation      squared; LPIPS  1              uniformly               18 or 40            an average
    2303.01469, training          squared; LPIPS  1              uniformly               `growing_levels`    `target_decay`
    2310.14189, training          pseudo-Huber    1 / their gap  `lognormal_intervals`   `doubling_levels`   f itself

Levels are arrays `[N]` that rise from sigma_min to sigma_max; repeats of the last at the end only pad it, so that a grid which
grows in training need not recompile (`karras_levels` with a capacity).

Song, Dhariwal, Chen & Sutskever 2023 (arXiv 2303.01469), sections 3-5 and appendix C; Song & Dhariwal 2023 (arXiv 2310.14189),
section 3 and table 1. Their index n is 1-based; here interval i lies between `levels[i]` and `levels[i + 1]`.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from genjax.arrays import expand, mean_events, normal, sum_events
from genjax.typing import Array, Key, Model

Distance = Callable[[Array, Array], Array]
"""`distance(values [B, ...], target [B, ...]) -> [B]`."""

Weighting = Callable[[Array, Array], Array]
"""`weighting(t_noisier [B], t_cleaner [B]) -> [B]`."""

Solver = Callable[[Model, Array, Array, Array], Array]
"""`solver(velocity, x [B, ...], now [B], then [B]) -> x at then`, for `velocity(x [B, ...], t [B]) = dx/dt`."""

Intervals = Callable[[Key, Array, int], Array]
"""`intervals(key, levels [N], num) -> index [num]`, draws of i for training between `levels[i]` and `levels[i + 1]`."""


# The function


class Scalings(NamedTuple):
    """`f(x, t) = skip x + out F(input x, ...)`, each of the shape of t."""

    skip: Array
    out: Array
    input: Array


def boundary_scalings(t: Array, *, data_std: float, sigma_min: float = 0.002) -> Scalings:
    """c_skip, c_out and c_in at noise levels `t` (any shape): exactly 1 and 0, the first two, where `t = sigma_min`.

    Song et al. 2023 (arXiv 2303.01469), appendix C.
    """
    t = jnp.asarray(t)
    above, size = t - sigma_min, jnp.sqrt(t**2 + data_std**2)
    return Scalings(1 / (1 + (above / data_std) ** 2), data_std * above / size, 1 / size)


def _quarter_log(t: Array) -> Array:
    return jnp.log(t) / 4


def consistency_function(
    network: Model, *, data_std: float, sigma_min: float = 0.002, clock: Callable[[Array], Array] = _quarter_log
) -> Model:
    """`f(x [B, ...], t [B]) -> [B, ...]`, an estimate of the data that is x itself at `t = sigma_min`, from any network.

    Args:
        network: `F(x [B, ...], time [B]) -> [B, ...]`, finite.
        data_std: standard deviation of the data.
        sigma_min: the level at which f is the identity.
        clock: what the network is told of t; default `log(t) / 4`, as EDM. The authors' code has `250 log(t)`.

    Example:
        >>> f = consistency_function(lambda x, time: jnp.sin(x), data_std=0.5)
        >>> f(jnp.ones((1, 2)), jnp.full(1, 0.002)).tolist()
        [[1.0, 1.0]]
    """

    def function(x: Array, t: Array) -> Array:
        scalings = boundary_scalings(t, data_std=data_std, sigma_min=sigma_min)
        skip, out, into = (expand(value, x) for value in scalings)
        return skip * x + out * network(into * x, clock(t)).astype(x.dtype)

    return function


# Distances and weightings


def squared(values: Array, target: Array) -> Array:
    """`mean over event axes of (values - target)^2`: `[B]`."""
    return mean_events(jnp.square(values - target))


def pseudo_huber(c: float | None = None) -> Distance:
    """`sqrt(|values - target|^2 + c^2) - c`: `[B]`, the norm over event axes. Below c about quadratic, above linear.

    Args:
        c: above 0; default `0.00054 sqrt(D)` for events of D entries (arXiv 2310.14189, section 3.3).

    Raises:
        ValueError: c is not positive.
    """
    if c is not None and not c > 0:
        raise ValueError(f"c is {c}; expected more than 0")

    def distance(values: Array, target: Array) -> Array:
        scale = 0.00054 * math.sqrt(math.prod(values.shape[1:])) if c is None else c
        square = sum_events(jnp.square(values - target))
        # the same without a difference of two numbers near c, which would lose its digits
        return square / (jnp.sqrt(square + scale**2) + scale)

    return distance


def uniform(t_noisier: Array, t_cleaner: Array) -> Array:
    """1."""
    return jnp.ones_like(t_noisier)


def inverse_gap(t_noisier: Array, t_cleaner: Array) -> Array:
    """`1 / (t_noisier - t_cleaner)` (arXiv 2310.14189, section 3.1)."""
    return 1 / (t_noisier - t_cleaner)


# Errors at given data, noise and levels


def euler_step(velocity: Model, x: Array, now: Array, then: Array) -> Array:
    """One Euler step of `dx/dt = velocity(x, t)` from times `now [B]` to `then [B]`: `[B, ...]`. Local error of order 2."""
    return x + expand(then - now, x) * velocity(x, now)


def heun_step(velocity: Model, x: Array, now: Array, then: Array) -> Array:
    """One step of Heun's method from times `now [B]` to `then [B]`: `[B, ...]`. Two calls, local error of order 3."""
    h, first = expand(then - now, x), velocity(x, now)
    return x + h / 2 * (first + velocity(x + h * first, then))


def _check(data: Array, noise: Array, t_noisier: Array, t_cleaner: Array) -> None:
    if data.shape != noise.shape or not t_noisier.shape == t_cleaner.shape == data.shape[:1]:
        raise ValueError(
            f"data {data.shape} and noise {noise.shape} must agree, and t_noisier {t_noisier.shape} and t_cleaner "
            f"{t_cleaner.shape} be [B]"
        )


def _error(
    model: Model,
    target: Model | None,
    noisier: tuple[Array, Array],
    cleaner: tuple[Array, Array],
    distance: Distance,
    weighting: Weighting,
) -> Array:
    """Both pairs are `(x [B, ...], t [B])`."""
    values = model(*noisier)
    goal = jax.lax.stop_gradient((model if target is None else target)(*cleaner))
    if not values.shape == goal.shape == noisier[0].shape:
        raise ValueError(
            f"model and target returned shapes {values.shape} and {goal.shape} for x of shape {noisier[0].shape}; "
            "they must agree"
        )
    return weighting(noisier[1], cleaner[1]) * distance(values, goal)


def consistency_distillation_error(
    model: Model,
    data: Array,
    noise: Array,
    t_noisier: Array,
    t_cleaner: Array,
    *,
    teacher: Model,
    target: Model | None = None,
    solver: Solver = heun_step,
    distance: Distance = squared,
    weighting: Weighting = uniform,
) -> Array:
    """How far `model` changes along one step of a teacher's ODE, at given data, noise and levels: `[B]`.

    `weighting * distance(model(x, t_noisier), target(solver(teacher, x, ...), t_cleaner))`, `x = data + t_noisier noise`.

    Args:
        model: the consistency function `f(x [B, ...], t [B]) -> [B, ...]`.
        data: `[B, ...]`.
        noise: `[B, ...]`, standard normal.
        t_noisier: `[B]`, noise levels.
        t_cleaner: `[B]`, each below that of `t_noisier`.
        teacher: `v(x [B, ...], t [B])`, the velocity of `paths.edm()`: `(x - E[data | x]) / t = E[noise | x] = -t score`. Of a
            denoiser on that path: `lambda x, t: denoise(x, paths.knots(path, t)).noise`.
        target: as `model`, at other parameters; default `model` itself. No gradient passes.
        solver: of the teacher's ODE, e.g. `heun_step`, `euler_step`.
        distance: e.g. `squared`, `pseudo_huber()`.
        weighting: e.g. `uniform`, `inverse_gap`.

    Returns:
        `[B]`, in the units of the distance.

    Raises:
        ValueError: data and noise, or what model and target return, differ in shape, or a level is not `[B]`.

    Clock: t is the noise level, as on `paths.edm()`.

    Source: Song et al. 2023 (arXiv 2303.01469), eq. 7 and algorithm 2.
    """
    _check(data, noise, t_noisier, t_cleaner)
    x = data + expand(t_noisier, data) * noise
    cleaner = solver(teacher, x, t_noisier, t_cleaner)
    return _error(model, target, (x, t_noisier), (cleaner, t_cleaner), distance, weighting)


def consistency_training_error(
    model: Model,
    data: Array,
    noise: Array,
    t_noisier: Array,
    t_cleaner: Array,
    *,
    target: Model | None = None,
    distance: Distance | None = None,
    weighting: Weighting = inverse_gap,
) -> Array:
    """How far `model` differs between two levels of the same noise, at given data, noise and levels: `[B]`.

    `weighting * distance(model(data + t_noisier noise, t_noisier), target(data + t_cleaner noise, t_cleaner))`.

    Args:
        model: the consistency function `f(x [B, ...], t [B]) -> [B, ...]`.
        data: `[B, ...]`.
        noise: `[B, ...]`, standard normal.
        t_noisier: `[B]`, noise levels.
        t_cleaner: `[B]`, each below that of `t_noisier`.
        target: as `model`, at other parameters; default `model` itself. No gradient passes.
        distance: e.g. `squared`; default `pseudo_huber()`.
        weighting: e.g. `uniform`, `inverse_gap`.

    Returns:
        `[B]`, in the units of the distance.

    Raises:
        ValueError: data and noise, or what model and target return, differ in shape, or a level is not `[B]`.

    Clock: t is the noise level, as on `paths.edm()`.

    Source: Song et al. 2023 (arXiv 2303.01469), eq. 10 and algorithm 3; Song & Dhariwal 2023 (arXiv 2310.14189).

    Example:
        >>> data, noise, high, low = jnp.zeros((1, 2)), jnp.ones((1, 2)), jnp.full(1, 0.5), jnp.full(1, 0.25)
        >>> consistency_training_error(lambda x, t: x, data, noise, high, low, distance=squared, weighting=uniform).tolist()
        [0.0625]
    """
    _check(data, noise, t_noisier, t_cleaner)
    distance = pseudo_huber() if distance is None else distance
    noisier, cleaner = ((data + expand(t, data) * noise, t) for t in (t_noisier, t_cleaner))
    return _error(model, target, noisier, cleaner, distance, weighting)


# Grids of levels, and which of their intervals to train on


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


# Losses at drawn noise and levels


def _draw(key: Key, data: Array, levels: Array, intervals: Intervals) -> tuple[Array, Array, Array]:
    """`(noise, t_noisier, t_cleaner)`."""
    interval_key, noise_key = jax.random.split(key)
    index = intervals(interval_key, levels, data.shape[0])
    levels = levels.astype(data.dtype)
    return normal(noise_key, data.shape, data.dtype), levels[index + 1], levels[index]


def consistency_distillation_loss(
    model: Model,
    key: Key,
    data: Array,
    *,
    levels: Array,
    teacher: Model,
    target: Model | None = None,
    solver: Solver = heun_step,
    distance: Distance = squared,
    weighting: Weighting = uniform,
    intervals: Intervals = uniform_intervals,
) -> Array:
    """`consistency_distillation_error` at drawn noise and neighbours of a grid: `[B]`.

    Args:
        model: the consistency function `f(x [B, ...], t [B]) -> [B, ...]`.
        key: a key.
        data: `[B, ...]`.
        levels: `[N]`, rising from sigma_min to sigma_max; repeats of the last are never drawn.
        teacher: the velocity of `paths.edm()`, `v(x [B, ...], t [B])`.
        target: as `model`, at other parameters; default `model` itself. No gradient passes.
        solver: of the teacher's ODE.
        distance: between the values.
        weighting: by the levels.
        intervals: draws which neighbours.
    """
    noise, t_noisier, t_cleaner = _draw(key, data, levels, intervals)
    return consistency_distillation_error(
        model,
        data,
        noise,
        t_noisier,
        t_cleaner,
        teacher=teacher,
        target=target,
        solver=solver,
        distance=distance,
        weighting=weighting,
    )


def consistency_training_loss(
    model: Model,
    key: Key,
    data: Array,
    *,
    levels: Array,
    target: Model | None = None,
    distance: Distance | None = None,
    weighting: Weighting = inverse_gap,
    intervals: Intervals | None = None,
) -> Array:
    """`consistency_training_error` at drawn noise and neighbours of a grid: `[B]`.

    Args:
        model: the consistency function `f(x [B, ...], t [B]) -> [B, ...]`.
        key: a key.
        data: `[B, ...]`.
        levels: `[N]`, rising from sigma_min to sigma_max; repeats of the last are never drawn.
        target: as `model`, at other parameters; default `model` itself. No gradient passes.
        distance: between the values; default `pseudo_huber()`.
        weighting: by the levels.
        intervals: draws which neighbours; default `lognormal_intervals()`.
    """
    intervals = lognormal_intervals() if intervals is None else intervals
    noise, t_noisier, t_cleaner = _draw(key, data, levels, intervals)
    return consistency_training_error(
        model, data, noise, t_noisier, t_cleaner, target=target, distance=distance, weighting=weighting
    )


# Schedules over training


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
