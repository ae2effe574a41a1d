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

Grids of levels and schedules are in `consistency_grids`.

Song, Dhariwal, Chen & Sutskever 2023 (arXiv 2303.01469), sections 3-5 and appendix C; Song & Dhariwal 2023 (arXiv 2310.14189),
section 3 and table 1.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from genjax.arrays import expand, mean_events, normal, sum_events
from genjax.losses.consistency_grids import Intervals, lognormal_intervals, uniform_intervals
from genjax.typing import Array, Key, Model

Distance = Callable[[Array, Array], Array]
"""`distance(values [B, ...], target [B, ...]) -> [B]`."""

Weighting = Callable[[Array, Array], Array]
"""`weighting(t_noisier [B], t_cleaner [B]) -> [B]`."""

Solver = Callable[[Model, Array, Array, Array], Array]
"""`solver(velocity, x [B, ...], now [B], then [B]) -> x at then`, for `velocity(x [B, ...], t [B]) = dx/dt`."""


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
