"""Score matching: regress the gradient of a log-density, with or without knowing it.

A score model `s(x [B, ...]) -> [B, ...]` should be `grad log p(x)`. Four losses, per example and summed over event axes, have
one and the same minimiser; J is the Jacobian of s, v a random direction with E[v v^T] = I:

    explicit     1/2 |s(x) - grad log p(x)|^2                         the Fisher divergence, where the score is known
    implicit     tr J(x) + 1/2 |s(x)|^2                               Hyvarinen 2005 (JMLR 6), theorem 1
    sliced       v . J(x) v + 1/2 (v . s(x))^2                        Song et al. 2019 (arXiv 1905.07088), section 3
                 v . J(x) v + 1/2 |s(x)|^2                            its variance-reduced form
    denoising    1/2 |s(x + sigma z) + z / sigma|^2, z ~ N(0, I)      Vincent 2011 (Neural Computation 23), section 4

The denoising one's is the score of the noised density `p_sigma = p * N(0, sigma^2 I)`. In the mean over p,

    implicit  = sliced = explicit - 1/2 E |grad log p|^2              by integration by parts, where p s vanishes at infinity
    denoising = explicit on p_sigma + a constant,   the constant      1/2 (D / sigma^2 - E |grad log p_sigma|^2)

so implicit and sliced losses are of either sign. Over many noise levels (Song & Ermon 2019, arXiv 1907.05600, eqs 5-6) the
denoising loss times sigma^2 is half the error of the noise, which `genjax.losses.denoising` takes on every path.
"""

from typing import Literal

import jax.numpy as jnp

from genjax.arrays import expand, normal, sum_events
from genjax.typing import Array, Key
from genjax.vector_fields import Field, divergence, draw_probes, hutchinson_divergence


def _half_square(values: Array) -> Array:
    return 0.5 * sum_events(jnp.square(values))


def explicit_score_matching_error(score: Field, data: Array, target: Array) -> Array:
    """`1/2 |score(data) - target|^2`: `[B]`, summed over event axes; its mean is the Fisher divergence.

    Args:
        score: `s(x [B, ...]) -> [B, ...]`.
        data: `[B, ...]`.
        target: `[B, ...]`, the true score there.

    Raises:
        ValueError: score and target differ in shape.
    """
    value = score(data)
    if value.shape != target.shape:
        raise ValueError(f"the score has shape {value.shape}, its target {target.shape}; they must agree")
    return _half_square(value - target)


def implicit_score_matching_error(score: Field, data: Array, *, chunk: int | None = None) -> Array:
    """`tr J(data) + 1/2 |score(data)|^2`: `[B]`, summed over event axes. D forward derivatives.

    Args:
        score: `s(x [B, ...]) -> [B, ...]`, row i from x[i] alone.
        data: `[B, ...]`.
        chunk: how many derivatives are taken at once (`vector_fields.divergence`); default all.

    Example:
        >>> implicit_score_matching_error(lambda x: -x, jnp.asarray([[1.0, 2.0]])).tolist()
        [0.5]
    """
    value, trace = divergence(score, data, chunk=chunk)
    return trace + _half_square(value)


def sliced_score_matching_error(score: Field, data: Array, probe: Array, *, variance_reduced: bool = True) -> Array:
    """`v . J(data) v + 1/2 |score(data)|^2` in the direction v: `[B]`, summed over event axes. One forward derivative.

    Args:
        score: `s(x [B, ...]) -> [B, ...]`, row i from x[i] alone.
        data: `[B, ...]`.
        probe: v, `[B, ...]`, from `vector_fields.draw_probes`.
        variance_reduced: False has `1/2 (v . score)^2` in the place of its mean `1/2 |score|^2`.
    """
    value, trace = hutchinson_divergence(score, data, probe)
    return trace + (_half_square(value) if variance_reduced else 0.5 * jnp.square(sum_events(probe * value)))


def sliced_score_matching_loss(
    score: Field,
    key: Key,
    data: Array,
    *,
    distribution: Literal["rademacher", "gaussian"] = "rademacher",
    variance_reduced: bool = True,
) -> Array:
    """`sliced_score_matching_error` in one drawn direction an example: `[B]`, in the mean the implicit one.

    Args:
        score: `s(x [B, ...]) -> [B, ...]`, row i from x[i] alone.
        key: one key, or one key an example `[B]`.
        data: `[B, ...]`.
        distribution: of the directions.
        variance_reduced: see `sliced_score_matching_error`.
    """
    probe = draw_probes(key, data, distribution=distribution)
    return sliced_score_matching_error(score, data, probe, variance_reduced=variance_reduced)


def denoising_score_matching_error(score: Field, data: Array, noise: Array, *, sigma: Array | float) -> Array:
    """`1/2 |score(data + sigma noise) + noise / sigma|^2`: `[B]`, summed over event axes. Infinite at sigma = 0.

    Args:
        score: `s(x [B, ...]) -> [B, ...]`.
        data: `[B, ...]`.
        noise: `[B, ...]`, standard normal.
        sigma: standard deviation of the noise, above 0: a number, or `[B]`.

    Raises:
        ValueError: data and noise, or the score, differ in shape.
    """
    if data.shape != noise.shape:
        raise ValueError(f"data {data.shape} and noise {noise.shape} must agree")
    sigma = expand(sigma, data)
    return explicit_score_matching_error(score, data + sigma * noise, -noise / sigma)


def denoising_score_matching_loss(score: Field, key: Key, data: Array, *, sigma: Array | float) -> Array:
    """`denoising_score_matching_error` at drawn noise: `[B]`, summed over event axes.

    Args:
        score: `s(x [B, ...]) -> [B, ...]`.
        key: one key, or one key an example `[B]`.
        data: `[B, ...]`.
        sigma: standard deviation of the noise, above 0: a number, or `[B]`.
    """
    return denoising_score_matching_error(score, data, normal(key, data.shape, data.dtype), sigma=sigma)
