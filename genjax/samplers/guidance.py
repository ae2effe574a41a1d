"""Guidance: combinators from models to a model, so that neither losses nor samplers know of conditions.

Convention of the scale: `uncond + scale * (cond - uncond)`; 1 is the plain conditional model, 0 the unconditional one, and a scale
given as the number 1 or 0 calls the network once. A combination of predictions is valid for every kind, all of
which are affine in one another at given (x, t); it is done in the dtype of x.

The last two take the pair (data, noise) instead of a prediction, and so a denoiser.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from genjax import paths
from genjax.arrays import expand
from genjax.typing import Array, Denoiser, Knot, Model, Path, Prediction

LabelledModel = Callable[[Array, Array, Array], Array]
"""`f(x [B, ...], t [B], label [B]) -> prediction [B, ...]`."""


def classifier_free(
    model: LabelledModel, label: Array, null_label: Array, scale: Array | float, *, rescale: float = 0.0
) -> Model:
    """Classifier-free guidance: `uncond + scale * (cond - uncond)` by one call on a doubled batch.

    Ho & Salimans 2022 (arXiv 2207.12598), whose weight w is `scale - 1`.

    Args:
        model: predicts with labels; was trained with labels dropped to the null label.
        label: `[B]` int32.
        null_label: the label that stands for none, a scalar; or labels to be kept away from, `[B]` (negative conditioning).
        scale: a scalar, or `[B]`.
        rescale: how far the prediction is scaled back to the spread of the conditional one, from 0 to 1: against the
            over-exposure of large scales (Lin et al. 2024, arXiv 2305.08891, eqs 15-16).
    """
    if is_number(scale, 1):
        return lambda x, t: model(x, t, label).astype(x.dtype)
    null = jnp.broadcast_to(jnp.asarray(null_label, label.dtype), label.shape)
    if is_number(scale, 0) and rescale == 0:
        return lambda x, t: model(x, t, null).astype(x.dtype)

    def guided(x: Array, t: Array) -> Array:
        labels = jnp.concatenate([label, null])
        both = model(jnp.concatenate([x, x]), jnp.concatenate([t, t]), labels).astype(x.dtype)
        cond, uncond = jnp.split(both, 2)
        combined = uncond + expand(jnp.asarray(scale, x.dtype), x) * (cond - uncond)
        if rescale == 0:
            return combined
        return combined * (1 + rescale * (expand(_spread(cond) / _spread(combined), x) - 1))

    return guided


def is_number(scale: Array | float, value: float) -> bool:
    """Whether a scale is this Python number, so that a call of the network can be left out."""
    return isinstance(scale, int | float) and scale == value


def _spread(prediction: Array) -> Array:
    """The standard deviation over the axes of each example, `[B]`."""
    flat = prediction.reshape(len(prediction), -1)
    return jnp.std(flat, axis=1)


def autoguided(model: Model, worse: Model, scale: Array | float) -> Model:
    """Guidance by a worse version of the same model: `worse + scale * (model - worse)`.

    Args:
        model: of any kind.
        worse: of the same kind: smaller, or trained for less time.
        scale: a scalar, or `[B]`; the number 1 is `model` itself.

    Source: Karras et al. 2024 (arXiv 2406.02507), eq. 3.
    """
    if is_number(scale, 1):
        return model

    def guided(x: Array, t: Array) -> Array:
        good, bad = model(x, t).astype(x.dtype), worse(x, t).astype(x.dtype)
        return bad + expand(jnp.asarray(scale, x.dtype), x) * (good - bad)

    return guided


def within(model: Model, outside: Model, *, path: Path, lowest: float = 0.0, highest: float = math.inf) -> Model:
    """`model` where `lowest <= sigma / alpha <= highest`, else `outside`; only one is called.

    Args:
        model: of any kind, e.g. of `classifier_free`.
        outside: of the same kind, e.g. the plain conditional model.
        path: of both.
        lowest: of the noise levels of the interval, at least 0.
        highest: of them.

    The times of a batch must lie on the same side of the interval, as those of a sampler's step do.

    Source: Kynkaanniemi et al. 2024 (arXiv 2404.07724), section 3.
    """

    def either(x: Array, t: Array) -> Array:
        knot = paths.knots(path, t)
        inside = knot.sigma >= lowest * knot.alpha
        if math.isfinite(highest):
            inside &= knot.sigma <= highest * knot.alpha
        return jax.lax.cond(jnp.all(inside), lambda: model(x, t).astype(x.dtype), lambda: outside(x, t).astype(x.dtype))

    return either


def classifier_guided(
    denoise: Denoiser, log_likelihood: Callable[[Array, Knot], Array], *, scale: Array | float = 1.0
) -> Denoiser:
    """Guidance by a classifier of noisy examples: the score gains `scale * grad_x log p(label | x_t)`.

    With scale 1 and an exact classifier it is the denoiser of p(data | label).

    Args:
        denoise: unconditional.
        log_likelihood: `(x [B, ...], knot) -> log p(label | x) [B]`, nats.
        scale: a scalar, or `[B]`.

    Source: Dhariwal & Nichol 2021 (arXiv 2105.05233), section 4.
    """

    def guided(x: Array, knot: Knot) -> Prediction:
        gradient = jax.grad(lambda x: jnp.sum(log_likelihood(x, knot)))(x)
        return with_score(denoise(x, knot), expand(jnp.asarray(scale, x.dtype), x) * gradient, knot)

    return guided


def with_score(pair: Prediction, gradient: Array, knot: Knot) -> Prediction:
    """The pair (data, noise) whose score is larger by `gradient`; where alpha = 0 the data stay."""
    alpha = jnp.where(knot.alpha == 0, 1.0, knot.alpha)
    shift = jnp.where(knot.alpha == 0, 0.0, knot.sigma**2 / alpha)
    return Prediction(pair.data + shift * gradient, pair.noise - knot.sigma * gradient)


def thresholded(denoise: Denoiser, *, bound: float = 1.0, quantile: float | None = None) -> Denoiser:
    """Estimates of the data held to `[-bound, bound]`; the noise is what x then holds of it.

    Args:
        denoise: any.
        bound: of the data, in the units of x.
        quantile: clip each example at this quantile of its absolute values where that exceeds the bound, and scale it down
            to the bound (dynamic thresholding); without it, clip at the bound (static).

    Source: Saharia et al. 2022 (arXiv 2205.11487), section 2.3.
    """

    def held(x: Array, knot: Knot) -> Prediction:
        data = denoise(x, knot).data
        limit = jnp.asarray(bound, data.dtype)
        if quantile is not None:
            flat = jnp.abs(data).reshape(len(data), -1)
            limit = expand(jnp.maximum(jnp.quantile(flat, quantile, axis=1), limit), data)
        data = jnp.clip(data, -limit, limit) * (bound / limit)
        return Prediction(data, (x - knot.alpha * data) / knot.sigma)

    return held
