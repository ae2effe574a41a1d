"""Explicit Runge-Kutta methods on the probability-flow ODE `dx/dt = alpha'(t) data + sigma'(t) noise`.

data and noise are the denoiser's estimates at (x, t); h = then.t - now.t is signed, so either direction of the
path's clock is right. Orders: euler 1, heun and midpoint 2, rk4 4.

A step that lands where sigma = 0 can meet a singular velocity there: sigma' is infinite (`vp`, `sub_vp` is not), or the
network predicts data, from which the noise is 0 / 0. `first_order_end=True` makes such a step Euler's, as EDM does
(Karras et al. 2022, arXiv 2206.00364, algorithm 1); the default is to do so where sigma' is infinite at the data end.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from genjax import paths
from genjax.samplers.loop import Sampler, one_step
from genjax.typing import Array, Denoiser, Key, Knot, Path


def velocity(denoise: Denoiser, path: Path, x: Array, knot: Knot) -> Array:
    """The probability-flow velocity at `x [B, ...]` by one call of the denoiser."""
    data, noise = denoise(x, knot)
    d_alpha, d_sigma = paths.derivatives(path, knot.t)
    return d_alpha * data + d_sigma * noise


def _between(path: Path, now: Knot, then: Knot, fraction: float) -> Knot:
    return paths.knots(path, now.t + fraction * (then.t - now.t))


def singular_at_data(path: Path) -> bool:
    """Whether sigma' is infinite at the data end of the path."""
    with jax.ensure_compile_time_eval():
        _, d_sigma = paths.derivatives(path, jnp.asarray(path.t_data, jnp.float32))
        return not bool(jnp.isfinite(d_sigma))


def away_from_data(knot: Knot, fallback: Knot) -> Knot:
    """`knot`, or `fallback` where sigma = 0, so that nothing singular is ever computed."""
    return Knot(*(jnp.where(knot.sigma == 0, b, a) for a, b in zip(knot, fallback, strict=True)))


def euler(path: Path) -> Sampler:
    """Euler: `x + h v(x, now)`. One call, order 1."""

    def step(denoise: Denoiser, key: Key, x: Array, now: Knot, then: Knot) -> Array:
        return x + (then.t - now.t) * velocity(denoise, path, x, now)

    return one_step(step)


def heun(path: Path, *, first_order_end: bool | None = None) -> Sampler:
    """Heun: `x + h/2 (v(x, now) + v(x + h v, then))`. Two calls, order 2.

    Args:
        path: the path of the grid.
        first_order_end: a step landing on sigma = 0 is Euler's; default where sigma' is infinite there.
    """
    euler_end = singular_at_data(path) if first_order_end is None else first_order_end

    def step(denoise: Denoiser, key: Key, x: Array, now: Knot, then: Knot) -> Array:
        h = then.t - now.t
        first = velocity(denoise, path, x, now)
        end = away_from_data(then, now) if euler_end else then
        second = velocity(denoise, path, x + h * first, end)
        if euler_end:
            second = jnp.where(then.sigma == 0, first, second)
        return x + h / 2 * (first + second)

    return one_step(step)


def midpoint(path: Path) -> Sampler:
    """Midpoint: `x + h v(x + h/2 v(x, now), halfway)`. Two calls, order 2; never calls at the knot it lands on."""

    def step(denoise: Denoiser, key: Key, x: Array, now: Knot, then: Knot) -> Array:
        h = then.t - now.t
        first = velocity(denoise, path, x, now)
        return x + h * velocity(denoise, path, x + h / 2 * first, _between(path, now, then, 0.5))

    return one_step(step)


class _Rule(NamedTuple):
    """A Runge-Kutta method of four calls, the last of which is where it lands."""

    between: tuple[float, float]  # where the second and the third call lie, as shares of the step
    stages: tuple[tuple[float, ...], ...]  # what each call but the first goes by of the slopes before it
    weights: tuple[float, ...]  # of the four slopes
    without_last: tuple[float, ...]  # of the first three, in a step of order 2


_RULES = {
    "classical": _Rule((1 / 2, 1 / 2), ((1 / 2,), (0, 1 / 2), (0, 0, 1)), (1 / 6, 1 / 3, 1 / 3, 1 / 6), (0, 1, 0)),
    "3/8": _Rule((1 / 3, 2 / 3), ((1 / 3,), (-1 / 3, 1), (1, -1, 1)), (1 / 8, 3 / 8, 3 / 8, 1 / 8), (1 / 4, 0, 3 / 4)),
}


def _weighted(weights: tuple[float, ...], slopes: list[Array]) -> Array:
    terms = [weight * slope for weight, slope in zip(weights, slopes, strict=True) if weight]
    return sum(terms[1:], terms[0])


def rk4(path: Path, *, rule: Literal["classical", "3/8"] = "classical", first_order_end: bool | None = None) -> Sampler:
    """The classical Runge-Kutta method, or Kutta's 3/8 rule. Four calls, order 4.

    Args:
        path: the path of the grid.
        rule: "3/8" is what torchdiffeq calls rk4.
        first_order_end: a step landing on sigma = 0 is of order 2 (classical: the midpoint rule's), which does not
            call there; default where sigma' is infinite.

    Raises:
        ValueError: rule is neither.
    """
    if rule not in _RULES:
        raise ValueError(f"rule is {rule!r}; expected 'classical' or '3/8'")
    between, stages, weights, without_last = _RULES[rule]
    lower_end = singular_at_data(path) if first_order_end is None else first_order_end

    def step(denoise: Denoiser, key: Key, x: Array, now: Knot, then: Knot) -> Array:
        h = then.t - now.t
        later = [_between(path, now, then, share) for share in between]
        later.append(away_from_data(then, now) if lower_end else then)
        slopes = [velocity(denoise, path, x, now)]
        for stage, knot in zip(stages, later, strict=True):
            slopes.append(velocity(denoise, path, x + h * _weighted(stage, slopes), knot))
        slope = _weighted(weights, slopes)
        if lower_end:
            slope = jnp.where(then.sigma == 0, _weighted(without_last, slopes[:3]), slope)
        return x + h * slope

    return one_step(step)
