"""The probability-flow ODE of any path and denoiser, solved to a tolerance by a solver of diffrax.

On the clock of the angle (`genjax.likelihood`), tan(angle) = sigma / alpha and u = x_t / sqrt(alpha^2 + sigma^2),

    du/d(angle) = cos(angle) noise - sin(angle) data,      (data, noise) = denoise(x_t, knot)

is finite at both ends of every path and of size 1 along the way, so that one tolerance means the same everywhere.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp

from genjax import paths
from genjax.continuous_flows import Solver, flow_and_steps
from genjax.typing import Array, Denoiser, Path


class Adaptive(NamedTuple):
    """Samples `x [B, ...]`, and how many `calls` of the denoiser they took, `[]`, int32; None by an implicit method."""

    x: Array
    calls: Array | None


def sample_adaptively(
    denoise: Denoiser,
    x: Array,
    *,
    path: Path,
    start: Array | float | None = None,
    stop: Array | float | None = None,
    solver: Solver | None = None,
    throw: bool = True,
) -> Adaptive:
    """Carry `x` along the probability-flow ODE, by steps that meet a tolerance: never a partial result.

    A batch is one ODE, and shares its steps. For steps of each example's own, which do not depend on its batch, `jax.vmap` over
    batches of one.

    Args:
        denoise: `(x [B, ...], knot) -> (data, noise)`, e.g. `predictions.denoiser(model, path, kind)`, guided or not.
        x: `[B, ...]` at the time `start`: `sigma noise`.
        path: whose clock the denoiser is told.
        start: default `path.t_noise`. The denoiser is called there: noise and score need a time with alpha > 0.
        stop: default `path.t_data`. It is called there too: data needs a time with sigma > 0.
        solver: tolerance, steps and `method`, any method of diffrax for ODEs that estimates its error; default `Solver()`, `Tsit5`.
            Calls are counted of the explicit ones; an implicit one calls as its iterations need, which diffrax does not tell.
        throw: False where failure is to be NaN, all of the batch, instead of raised.

    Returns:
        An `Adaptive`.

    Raises:
        RuntimeError: (when it runs, also within `jit`) more than `solver.max_steps` steps were needed, or the denoiser
            returned a NaN.
        ValueError: a solver that is none.

    Example:
        >>> from genjax import oracles
        >>> exact, circle = oracles.denoiser(oracles.mixture([1.0], [[0.0]], [4.0])), paths.cosine()
        >>> round(float(sample_adaptively(exact, jnp.ones((1, 1)), path=circle).x[0, 0]), 3)  # N(0, 1) becomes N(0, 4)
        2.0

    Source: Song et al. 2021 (arXiv 2011.13456), appendix D.4; Salimans & Ho 2022 (arXiv 2202.00512), appendix D.
    """
    import equinox

    solver = solver or Solver()
    ends = jnp.asarray([path.t_noise if start is None else start, path.t_data if stop is None else stop], x.dtype)
    knots = paths.knots(path, ends)
    sizes, angles = jnp.hypot(knots.alpha, knots.sigma), jnp.arctan2(knots.sigma, knots.alpha)

    def velocity(u: Array, angle: Array) -> Array:
        cos, sin = jnp.maximum(jnp.cos(angle[0]), 0), jnp.maximum(jnp.sin(angle[0]), 0)  # float32 has cos(pi / 2) < 0
        knot = paths.knots(path, paths.time_of_log_snr(path, 2 * (jnp.log(cos) - jnp.log(sin))))
        data, noise = denoise(jnp.hypot(knot.alpha, knot.sigma) * u, knot)
        return cos * noise - sin * data

    u, steps = flow_and_steps(velocity, x / sizes[0], start=angles[0], stop=angles[1], solver=solver)
    if throw:
        failed = "the adaptive solver failed: more than max_steps steps are needed, or the denoiser returned a NaN"
        u = equinox.error_if(u, jnp.any(jnp.isnan(u)), failed)
    return Adaptive(sizes[1] * u, _calls(solver, steps))


def _calls(solver: Solver, steps: Array) -> Array | None:
    """Of so many steps of an explicit method; one whose first call is the last one of the step before begins with one more."""
    import diffrax

    method = solver.method or diffrax.Tsit5()
    if isinstance(method, diffrax.ReversibleHeun):
        return steps + 1
    if not isinstance(method, diffrax.AbstractERK):
        return None
    tableau: Any = method.tableau
    return steps * (tableau.num_stages - tableau.fsal) + tableau.fsal
