"""Mode coverage: what samples make of a mixture of K equal, well separated Gaussians of one deviation.

A sample belongs to the nearest mean, and is of high quality when it lies within three deviations of it, a
D-dimensional distance. A mode is found when it has a sample of high quality. All other quantities are of the samples of
high quality alone, so that a bridge between two modes counts against their share and against nothing else.

Lin et al. 2018 (PacGAN, arXiv 1712.04086), section 4.1; the 2-D ring and grid go back to Dumoulin et al. 2017
(arXiv 1606.00704) and Metz et al. 2017 (1611.02163).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from genjax.typing import Array

RADIUS = 3.0
"""In deviations; exact samples of a mixture in two dimensions lie within it with probability `1 - exp(-9 / 2)`, 0.989."""


class Modes(NamedTuple):
    """What `mode_coverage` counts.

    - `found []`: modes with a sample of high quality, int32.
    - `high_quality []`: share of the samples.
    - `divergence []`: `KL(shares of the modes || uniform)`, nats; log K where all samples lie in one mode.
    - `deviations [K]`: standard deviation of each mode's samples over that of exact ones; NaN where a mode has none.
    """

    found: Array
    high_quality: Array
    divergence: Array
    deviations: Array


def mode_coverage(samples: Array, means: Array, *, deviation: float) -> Modes:
    """How samples are spread over the modes of `1/K sum_k N(means[k], deviation^2 I)`.

    A deviation is the root mean square distance to the mode's own sample mean, over the axes together; its
    reference is that of a Gaussian cut off at three deviations, 0.974 of `deviation` in two dimensions.

    Args:
        samples: `[N, D]`.
        means: `[K, D]`, further apart than six deviations.
        deviation: of each mode on each axis.

    >>> means = jnp.asarray([[-1.0, 0.0], [1.0, 0.0]])
    >>> samples = jnp.asarray([[-1.0, 0.1], [-1.0, -0.1], [-0.9, 0.0], [0.0, 0.0]])
    >>> modes = mode_coverage(samples, means, deviation=0.1)
    >>> int(modes.found), float(modes.high_quality), round(float(modes.divergence), 3)
    (1, 0.75, 0.693)
    """
    num_modes, dimension = means.shape
    distances = jnp.linalg.norm(samples[:, None, :] - means[None, :, :], axis=-1)
    near = jnp.min(distances, axis=1) <= RADIUS * deviation
    members = jnp.where(near[:, None], jax.nn.one_hot(jnp.argmin(distances, axis=1), num_modes, axis=-1), 0.0)
    counts = jnp.sum(members, axis=0)
    shares = counts / jnp.sum(counts)
    offsets = samples[:, None, :] - means[None, :, :]  # of the size of the deviation, so that squares cancel little
    first = jnp.einsum("nk,nkd->kd", members, offsets, precision="highest") / counts[:, None]
    second = jnp.einsum("nk,nkd->k", members, jnp.square(offsets), precision="highest") / counts
    variances = (second - jnp.sum(jnp.square(first), axis=-1)) / dimension
    exact = deviation**2 * truncated_variance(dimension)
    return Modes(
        found=jnp.sum(counts > 0, dtype=jnp.int32),
        high_quality=jnp.mean(near, dtype=samples.dtype),
        divergence=jnp.sum(jax.scipy.special.xlogy(shares, num_modes * shares)),
        deviations=jnp.sqrt(variances / exact),
    )


def truncated_variance(dimension: int) -> Array:
    """Variance on an axis of a standard Gaussian cut off at the distance `RADIUS`.

    `P(chi2_{D+2} <= r^2) / P(chi2_D <= r^2)`, since `E[|x|^2; |x| <= r] = D P(chi2_{D+2} <= r^2)`.

    >>> round(float(truncated_variance(2)), 4)
    0.9494
    """
    half = 0.5 * RADIUS**2
    inside = [jax.scipy.special.gammainc(d / 2, half) for d in (dimension + 2, dimension)]
    return inside[0] / inside[1]
