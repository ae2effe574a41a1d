"""Log-densities of models on a Gaussian path, whatever they predict, by the probability-flow ODE; and how exact they are.

The marginals of `x_t = alpha data + sigma noise` are those of an ODE. On the clock of the angle, `tan(angle) = sigma / alpha`,
and with u = x_t / sqrt(alpha^2 + sigma^2),

    du/d(angle) = v = cos(angle) E[noise | x_t] - sin(angle) E[data | x_t]

on every path: finite at both ends, where the path's own velocity may not be, and of size 1 along the way, so that one
tolerance means the same everywhere. The instantaneous change of variables (`genjax.continuous_flows`) gives the density that
sampling has, which starts from `sigma noise` at the noise end:

    log p(data) = log N(u_noise; 0, sin^2(angle_noise) I) + integral of div v d(angle) + D log cos(angle_data)

At `t_data` with sigma > 0 this is the density of `data + (sigma / alpha) noise`: slightly blurred data.

Sources: Song et al. 2021 (arXiv 2011.13456), section 4.3 and appendix D.2; Salimans & Ho 2022 (arXiv 2202.00512), appendix D
(the angle and v).
"""

import math
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from genjax import paths, predictions
from genjax.continuous_flows import Solver, standard_normal, transport
from genjax.typing import Array, Key, Model, Path
from genjax.vector_fields import Divergence, divergence, draw_probes, hutchinson_divergence


class Estimate(NamedTuple):
    """Log-densities `[B]`, nats, and two errors of theirs, each `[B]`, nats.

    - `estimator_error`: the standard error over the probes of the trace; 0 where it is exact.
    - `solver_error`: how far the value moved when the tolerance was cut to a tenth; the error left is smaller still.
    """

    log_density: Array
    estimator_error: Array
    solver_error: Array


def log_density(
    model: Model,
    data: Array,
    *,
    path: Path,
    predict: predictions.Kind,
    t_data: Array | float | None = None,
    t_noise: Array | float | None = None,
    divergence: Divergence = divergence,
    solver: Solver | None = None,
) -> Array:
    """`log p(data)` of what the probability-flow ODE of a model samples: `[B]`, nats.

    Args:
        model: `f(x [B, ...], t [B]) -> [B, ...]`, predicts `predict`.
        data: `[B, ...]`.
        path: on whose clock the model is called.
        predict: what it predicts, a kind of `genjax.predictions`.
        t_data: where the solve starts; default `path.t_data`. Kinds that are singular there (data, score and edm of a network
            that takes the logarithm of sigma) need a time with sigma > 0.
        t_noise: where it ends; default `path.t_noise`. Noise and score need a time with alpha > 0.
        divergence: from `vector_fields`, with its probes; default exact, by D forward derivatives a call.
        solver: default `continuous_flows.Solver()`.

    Returns:
        `[B]`, or estimates `[K, B]` of a divergence that has so many; NaN where the solve has failed.

    Raises:
        ValueError: a solver that is none, or a model that returns another shape.

    Example:
        >>> nothing = lambda x, t: jnp.zeros_like(x)  # v = 0 where the data are N(0, I)
        >>> found = log_density(nothing, jnp.zeros((1, 2)), path=paths.cosine(), predict=predictions.v)
        >>> bool(jnp.abs(found[0] + jnp.log(2 * jnp.pi)) < 1e-6)
        True

    Source: Song et al. 2021 (arXiv 2011.13456), eq. 39.
    """
    circle = paths.cosine()
    velocity = predictions.on_another_path(model, path, predict, new_path=circle, new_predict=predictions.velocity)
    ends = (path.t_data if t_data is None else t_data), (path.t_noise if t_noise is None else t_noise)
    at_data, at_noise = (_on_circle(circle, path, end, data.dtype) for end in ends)
    dimension = math.prod(data.shape[1:])
    end = transport(
        velocity, circle.alpha(at_data) * data, start=at_data, stop=at_noise, divergence=divergence, solver=solver
    )
    log_scale = jnp.log(circle.alpha(at_data)) - jnp.log(circle.sigma(at_noise))
    at_start = standard_normal(end.x / circle.sigma(at_noise)) + dimension * log_scale
    return jnp.broadcast_to(at_start, end.log_det.shape) + end.log_det


def _on_circle(circle: Path, path: Path, t: Array | float, dtype: jnp.dtype) -> Array:
    return paths.time_of_log_snr(circle, paths.log_snr(path, jnp.asarray(t, dtype)))


def log_density_with_errors(
    model: Model,
    key: Key,
    data: Array,
    *,
    path: Path,
    predict: predictions.Kind,
    t_data: Array | float | None = None,
    t_noise: Array | float | None = None,
    num_probes: int | None = 8,
    distribution: Literal["rademacher", "gaussian"] = "rademacher",
    solver: Solver | None = None,
) -> Estimate:
    """`log_density` by Hutchinson's trace, with the error of the estimator and that of the solver apart.

    Args:
        model: as for `log_density`, like all that is not named here.
        key: of the probes; one key, or one an example `[B]`.
        data: `[B, ...]`.
        path: on whose clock the model is called.
        predict: what it predicts.
        t_data: where the solve starts.
        t_noise: where it ends.
        num_probes: K, at least 2; None for the exact trace.
        distribution: of the probes.
        solver: by tolerance; the ODE is solved to ten times its tolerance as well.

    Raises:
        ValueError: fewer than 2 probes; a solver of a given number of steps, which has no tolerance to tell its error by.
    """
    solver = solver or Solver()
    if num_probes is not None and num_probes < 2:
        raise ValueError(f"num_probes is {num_probes}; expected at least 2, or None for the exact trace")
    if solver.steps is not None:
        raise ValueError(f"the error of {solver.steps} steps is not known: give the solver a tolerance instead")
    trace: Divergence = divergence
    if num_probes is not None:
        keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(jnp.arange(num_probes))
        probes = jax.vmap(lambda key: draw_probes(key, data, distribution=distribution))(keys)
        trace = partial(hutchinson_divergence, probe=probes)
    solve = partial(
        log_density, model, data, path=path, predict=predict, t_data=t_data, t_noise=t_noise, divergence=trace
    )
    fine, coarse = (solve(solver=one) for one in (solver, solver._replace(tolerance=10 * solver.tolerance)))
    if num_probes is None:
        return Estimate(fine, jnp.zeros_like(fine), jnp.abs(fine - coarse))
    standard_error = jnp.std(fine, axis=0, ddof=1) / math.sqrt(num_probes)
    mean, coarse_mean = fine.mean(axis=0), coarse.mean(axis=0)
    return Estimate(mean, standard_error, jnp.abs(mean - coarse_mean))
