"""Exponential Runge-Kutta methods: DPM-Solver and DPM-Solver++ single step, several calls within a step and no memory.

With the estimate m = noise (DPM-Solver) or data (DPM-Solver++), lambda = log(alpha / sigma) and h = lambda_then - lambda_now,

    x at lambda_now + r h  =  a x + c (J_0(r k) m + J_1(r k) r h slope)
    J_n(k) = integral over [0, 1] of k e^(k (u - 1)) u^n du
    noise: a = alpha / alpha_now, c = sigma, k = -h        data: a = sigma / sigma_now, c = alpha, k = h

The slope of m in lambda comes from the call before. Intermediate points lie at r1 and r2 of the step of lambda. A step from
alpha = 0 or to sigma = 0, where h is infinite, is DDIM's: its other calls are made where it leaves from, and are not used.
Lu et al. 2022 (DPM-Solver, arXiv 2206.00927, algorithms 1 and 2; DPM-Solver++, arXiv 2211.01095, algorithm 1).
"""

from typing import Literal

import jax.numpy as jnp

from genjax import paths
from genjax.samplers.exponential import exponential_moments, log_ratio
from genjax.samplers.loop import Sampler, one_step
from genjax.typing import Array, Denoiser, Key, Knot, Path


def dpm_solver_singlestep(path: Path, *, order: int = 2, r1: float | None = None, r2: float = 2 / 3) -> Sampler:
    """DPM-Solver-1, -2 or -3: as many calls as the order. With order 2 it is k-diffusion's DPM2.

    Args:
        path: the path of the grid.
        order: 1 to 3.
        r1: where the second call lies; default 1/2 of order 2, 1/3 of order 3.
        r2: where the third call lies, in order 3.

    Raises:
        ValueError: order is not 1 to 3, or not 0 < r1 < r2 <= 1.
    """
    return _singlestep(path, "noise", order, r1, r2)


def dpm_solver_pp_singlestep(path: Path, *, order: int = 2, r1: float | None = None, r2: float = 2 / 3) -> Sampler:
    """DPM-Solver++ 2S (3S with order 3): as many calls as the order.

    Args:
        path: the path of the grid.
        order: 1 to 3.
        r1: where the second call lies; default 1/2 of order 2, 1/3 of order 3.
        r2: where the third call lies, in order 3.

    Raises:
        ValueError: order is not 1 to 3, or not 0 < r1 < r2 <= 1.
    """
    return _singlestep(path, "data", order, r1, r2)


def _singlestep(path: Path, estimate: Literal["noise", "data"], order: int, r1: float | None, r2: float) -> Sampler:
    if not 1 <= order <= 3:
        raise ValueError(f"order is {order}; expected 1 to 3")
    first = (1 / 3 if order == 3 else 1 / 2) if r1 is None else r1
    if not 0 < first <= 1 or (order == 3 and not first < r2 <= 1):
        raise ValueError(f"r1 is {first}, r2 is {r2}; expected 0 < r1 < r2 <= 1")

    def step(denoise: Denoiser, key: Key, x: Array, now: Knot, then: Knot) -> Array:
        start, end = log_ratio(now), log_ratio(then)
        whole = jnp.isfinite(start) & jnp.isfinite(end)
        start, end = jnp.where(whole, start, 0.0), jnp.where(whole, end, 1.0)

        def between(fraction: float) -> Knot:
            knot = paths.knots(path, paths.time_of_log_snr(path, 2 * (start + fraction * (end - start))))
            return Knot(*(jnp.where(whole, a, b) for a, b in zip(knot, now, strict=True)))

        def advance(knot: Knot, m: Array, slope: Array | None = None, *, by_midpoint: bool = False) -> Array:
            """The state at `knot` by an estimate here and its slope, a unit of lambda."""
            h = step_to(knot)
            kept, scale, k = (
                (knot.alpha / jnp.where(whole, now.alpha, 1.0), knot.sigma, -h)
                if estimate == "noise"
                else (knot.sigma / now.sigma, knot.alpha, h)
            )
            moments = exponential_moments(k, 2)
            moved = kept * x + scale * moments[0] * m
            if slope is None:
                return moved
            return moved + scale * (moments[0] / 2 if by_midpoint else moments[1]) * h * slope

        def step_to(knot: Knot) -> Array:
            return jnp.where(whole, log_ratio(knot) - start, 0.0)

        def slope_at(x: Array, knot: Knot, m: Array) -> Array:
            h = step_to(knot)
            return (getattr(denoise(x, knot), estimate) - m) / jnp.where(h == 0, 1.0, h)

        data, noise = denoise(x, now)
        ddim = then.alpha * data + then.sigma * noise
        if order == 1:
            return ddim
        m = noise if estimate == "noise" else data
        middle = between(first)
        slope = slope_at(advance(middle, m), middle, m)
        if order == 3:
            later = between(r2)
            slope = slope_at(advance(later, m, slope), later, m)
        return jnp.where(whole, advance(then, m, slope, by_midpoint=order == 2), ddim)

    return one_step(step)
