"""The variational bound of a diffusion model on the log-likelihood, on any Gaussian path: of T steps, or in continuous time.

Noise levels t_0 (cleanest) .. t_T (noisiest), SNR = alpha^2 / sigma^2, and data^ the model's estimate of the data:

    -log p(data) <= prior + diffusion + reconstruction
    prior           KL(q(x_T | data) || N(0, sigma_T^2 I)) = SNR(t_T) |data|^2 / 2
    diffusion       sum over steps of KL(q(x_then | x_now, data) || q(x_then | x_now, data^))
                    = 1/2 E sum (SNR(then) - SNR(now)) |data - data^(x_now, now)|^2            (`discrete_bound`)
                    -> 1/2 E integral of SNR |data - data^|^2 d(log SNR)  as the steps get finer    (`continuous_bound`)
    reconstruction  -E log p(data | x_0):  N(data; x_0 / alpha_0, (sigma_0 / alpha_0)^2 I) of continuous data, which makes it
                    D (1 + log 2 pi + 2 log(sigma_0 / alpha_0)) / 2; the normalised likelihoods q(x_0 | level) of integers

The model samples from N(0, sigma_T^2 I), as `samplers.sample` does. In continuous time the bound depends on the path by its two
ends alone. Of the exact posterior mean it is tight, but for its ends, at every point.

Source: Kingma, Salimans, Poole & Ho 2021 (variational diffusion models, arXiv 2107.00630), eqs. 11 to 15 and 17 to 19;
Sohl-Dickstein et al. 2015 (arXiv 1503.03585).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from genjax import paths
from genjax.arrays import as_example_keys, example_keys, fold_each, normal, sum_events
from genjax.losses.likelihood import centres_of, levels_of
from genjax.typing import Array, Denoiser, Key, Knot, Path

_RECONSTRUCTION = 2**31 - 4
"""Folded into an example's key for the noise of x_0; steps fold in 0, 1, 2, ..."""

_PLACES = 2**31 - 5
"""Folded into the key for the noise levels, each in its part."""


class Bound(NamedTuple):
    """Terms of a bound, each `[B]`, nats; `-log p(data)` is at most their sum, in the mean over the key."""

    prior: Array
    diffusion: Array
    reconstruction: Array


def prior_divergence(data: Array, noisiest: Knot) -> Array:
    """`KL(N(alpha data, sigma^2 I) || N(0, sigma^2 I)) = SNR |data|^2 / 2` at the noisiest knot: `[B]`, nats."""
    return (noisiest.alpha / noisiest.sigma) ** 2 * sum_events(jnp.square(data)) / 2


def reconstruction_error(key: Key, data: Array, cleanest: Knot, *, levels: int = 0) -> Array:
    """`-log p(data | x_0)` at the cleanest knot, `sigma > 0`: `[B]`, nats; of integers by one draw of x_0.

    Args:
        key: one key, or one an example `[B]`; of no use to continuous data, whose error has a closed form.
        data: `[B, ...]`; the centres `(2 v - levels + 1) / levels` where they are integers v.
        cleanest: a knot of scalars.
        levels: how many integers there are; 0 for continuous data.

    Source: Kingma et al. 2021 (arXiv 2107.00630), eq. 21 of its appendix.
    """
    ratio = cleanest.sigma / cleanest.alpha
    if not levels:
        each = (1 + math.log(2 * math.pi)) / 2 + jnp.log(ratio)
        return jnp.full(data.shape[:1], math.prod(data.shape[1:]) * each, data.dtype)
    keys = as_example_keys(key, len(data))
    x = data + ratio * normal(keys, data.shape, data.dtype)
    centres = centres_of(jnp.arange(levels), levels=levels).astype(data.dtype)
    distances = (x[..., None] - jnp.expand_dims(centres, tuple(range(data.ndim)))) / ratio
    log_probability = jax.nn.log_softmax(-jnp.square(distances) / 2, axis=-1)
    found = jnp.take_along_axis(log_probability, levels_of(data, levels=levels)[..., None], axis=-1)
    return -sum_events(found)


def discrete_bound(denoise: Denoiser, key: Key, data: Array, knots: Knot, *, levels: int = 0) -> Bound:
    """The bound of ancestral sampling over a grid, every step by one draw of x: one `lax.scan`, `steps` calls.

    Args:
        denoise: `(x [B, ...], knot) -> (data, noise)`, e.g. `predictions.denoiser(model, path, kind)`.
        key: one key, or one an example `[B]`.
        data: `[B, ...]`; the centres `(2 v - levels + 1) / levels` where they are integers v.
        knots: from noise to data, arrays `[steps + 1]`, sigma > 0 at the last.
        levels: how many integers there are; 0 for continuous data.

    Returns:
        A `Bound`.

    Source: Kingma et al. 2021 (arXiv 2107.00630), eqs. 13 and 14; of the sampler `samplers.ddpm("small")`.
    """
    keys = as_example_keys(key, len(data))

    def add(total: Array, interval: tuple[Array, Knot, Knot]) -> tuple[Array, None]:
        index, now, then = interval
        rise = (then.alpha / then.sigma) ** 2 - (now.alpha / now.sigma) ** 2
        return total + rise / 2 * _squared_error(denoise, fold_each(keys, index), data, now), None

    first, rest = Knot(*(values[:-1] for values in knots)), Knot(*(values[1:] for values in knots))
    zero = jnp.zeros(data.shape[:1], jnp.promote_types(data.dtype, jnp.float32))
    diffusion, _ = jax.lax.scan(add, zero, (jnp.arange(len(knots.t) - 1), first, rest))
    return _bound(keys, data, diffusion, _at(knots, 0), _at(knots, -1), levels)


def continuous_bound(
    denoise: Denoiser,
    key: Key,
    data: Array,
    *,
    path: Path,
    start: Array,
    stop: Array,
    num_times: int = 64,
    levels: int = 0,
) -> Bound:
    """The bound in continuous time, its integral by a draw of log SNR in each of `num_times` equal parts.

    Args:
        denoise: as for `discrete_bound`.
        key: one key.
        data: `[B, ...]`.
        path: whose ends, and no more, the bound depends on.
        start: the noisiest time, alpha > 0.
        stop: the cleanest, sigma > 0.
        num_times: calls of the denoiser.
        levels: how many integers there are; 0 for continuous data.

    Returns:
        A `Bound`, unbiased whatever `num_times`.

    Source: Kingma et al. 2021 (arXiv 2107.00630), eqs. 17 and 18, and appendix I.1.
    """
    keys = example_keys(key, len(data))
    ends = paths.knots(path, jnp.asarray([start, stop], data.dtype))
    noisiest, cleanest = 2 * (jnp.log(ends.alpha) - jnp.log(ends.sigma))
    places = jax.random.uniform(jax.random.fold_in(key, jnp.uint32(_PLACES)), (num_times,), data.dtype)

    def add(total: Array, part: tuple[Array, Array]) -> tuple[Array, None]:
        index, place = part
        log_snr = noisiest + (cleanest - noisiest) * (index + place) / num_times
        knot = paths.knots(path, paths.time_of_log_snr(path, log_snr))
        error = _squared_error(denoise, fold_each(keys, index), data, knot)
        return total + jnp.exp(log_snr) / 2 * error * (cleanest - noisiest) / num_times, None

    zero = jnp.zeros(data.shape[:1], jnp.promote_types(data.dtype, jnp.float32))
    diffusion, _ = jax.lax.scan(add, zero, (jnp.arange(num_times), places))
    return _bound(keys, data, diffusion, _at(ends, 0), _at(ends, 1), levels)


def _squared_error(denoise: Denoiser, keys: Key, data: Array, now: Knot) -> Array:
    x = now.alpha * data + now.sigma * normal(keys, data.shape, data.dtype)
    return sum_events(jnp.square(data - denoise(x, now).data))


def _bound(keys: Key, data: Array, diffusion: Array, noisiest: Knot, cleanest: Knot, levels: int) -> Bound:
    own = fold_each(keys, jnp.uint32(_RECONSTRUCTION))
    return Bound(prior_divergence(data, noisiest), diffusion, reconstruction_error(own, data, cleanest, levels=levels))


def _at(knots: Knot, index: int) -> Knot:
    return Knot(*(values[index] for values in knots))
