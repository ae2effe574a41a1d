"""What a trained model on a Gaussian path does by its probability-flow ODE: draws to a tolerance, and log-likelihoods.

Every example is an ODE of its own, so that none depends on its batch.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from genjax import likelihood, paths, predictions, samplers
from genjax.arrays import as_example_keys, each_alone, fold_each
from genjax.continuous_flows import Solver
from genjax.losses.likelihood import dequantised
from genjax.typing import Array, Key, Model, Path
from genjax.vector_fields import divergence, draw_probes, hutchinson_divergence

SAMPLER = "adaptive"
"""The name of the sampler that solves the ODE."""

TOLERANCE = 1e-3
"""Of the solver's steps in drawing, where none is given: relative and absolute."""

_LIKELIHOOD_TOLERANCE = 1e-4
"""Of the solver's steps in likelihoods: at 1e-3 those of 8x8 images are 0.8 nats too high."""

_PROBE = 2**31 - 3
"""Folded into an example's key for the direction in which its trace is estimated."""

_DEQUANTISATION = 3
"""Folded into the key of a batch for the place of its integers within their levels."""

ModelOf = Callable[[Array | None], Model]
"""`model_of(label [1] | None)`: the model of a batch of one."""


def time_of_ratio(path: Path, ratio: float) -> Array:
    """Where sigma / alpha has a value, or the end of the path that is nearest to it."""
    return paths.time_of_log_snr(path, jnp.asarray(-2 * math.log(ratio)))


def draws(
    model_of: ModelOf,
    noise: Array,
    label: Array | None,
    *,
    path: Path,
    predict: predictions.Kind,
    start: Array,
    stop: Array,
    tolerance: float,
) -> tuple[Array, Array]:
    """Where the ODE takes `sigma(start) noise [num, ...]`, and the estimate of the data there; calls `[num]`.

    NaN where a solve has failed.
    """

    def one(noise: Array, label: Array | None) -> tuple[Array, Array]:
        denoise = predictions.denoiser(model_of(label), path, predict)
        x = path.sigma(start) * noise
        solve = partial(samplers.sample_adaptively, path=path, start=start, stop=stop, throw=False)
        x, calls = solve(denoise, x, solver=Solver(tolerance))
        assert calls is not None
        return denoise(x, paths.knots(path, stop)).data, calls + 1

    return each_alone(one, noise, label)


def log_densities(
    model_of: ModelOf,
    key: Key,
    data: Array,
    *,
    path: Path,
    predict: predictions.Kind,
    start: Array,
    stop: Array,
    levels: int,
) -> Array:
    """`log p(data [B, ...])` between the times `start` (noise) and `stop` (data): `[B]`, nats.

    Of points exact up to the tolerance. Of images an unbiased estimate, by one probe an example; of integers (`levels` > 0)
    dequantised, a lower bound in the mean over the key.
    """
    are_images = data.ndim > 2

    def one(x: Array, probe: Array) -> Array:
        trace = partial(hutchinson_divergence, probe=probe) if are_images else divergence
        solve = partial(likelihood.log_density, path=path, predict=predict, t_data=stop, t_noise=start)
        return solve(model_of(None), x, divergence=trace, solver=Solver(_LIKELIHOOD_TOLERANCE))

    def density(x: Array) -> Array:
        keys = fold_each(as_example_keys(key, len(x)), jnp.uint32(_PROBE))
        return each_alone(one, x, draw_probes(keys, x))

    return dequantised(density, jax.random.fold_in(key, _DEQUANTISATION), data, levels=levels)
