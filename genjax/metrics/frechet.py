"""Frechet distance: how far two samples are apart, each seen as a Gaussian of its mean and covariance.

Of features of images from a trained classifier it is the score known as FID (Heusel et al. 2017, arXiv 1706.08500, eq. 6);
its numbers compare only where the features and the numbers of samples are the same.
"""

import jax.numpy as jnp

from genjax.typing import Array


def frechet_distance(samples: Array, reference: Array) -> Array:
    """`|m - m'|^2 + tr(C + C' - 2 (C^1/2 C' C^1/2)^1/2)`: the squared 2-Wasserstein distance of two Gaussians, `[]`.

    Args:
        samples: `[N, D]`, N more than 1; covariances are unbiased.
        reference: `[M, D]`.

    Raises:
        ValueError: other shapes.

    Source: Dowson & Landau 1982 (Journal of Multivariate Analysis 12), eq. 4; Heusel et al. 2017 (arXiv 1706.08500), eq. 6.

    Example:
        >>> float(frechet_distance(jnp.asarray([[0.0], [2.0]]), jnp.asarray([[4.0], [6.0]])))
        16.0
    """
    if samples.ndim != 2 or samples.shape[1:] != reference.shape[1:] or min(len(samples), len(reference)) < 2:
        raise ValueError(
            f"samples {samples.shape} and reference {reference.shape}: expected [N, D] and [M, D], N, M > 1"
        )
    difference = samples.mean(axis=0) - reference.mean(axis=0)
    covariance, reference_covariance = (jnp.cov(x, rowvar=False).reshape(x.shape[1], -1) for x in (samples, reference))
    root = _square_root(covariance)
    cross = jnp.linalg.eigvalsh(root @ reference_covariance @ root)
    traces = jnp.trace(covariance) + jnp.trace(reference_covariance)
    return difference @ difference + traces - 2 * jnp.sum(jnp.sqrt(jnp.maximum(cross, 0)))


def _square_root(matrix: Array) -> Array:
    """Of a symmetric matrix without negative eigenvalues."""
    values, vectors = jnp.linalg.eigh(matrix)
    return (vectors * jnp.sqrt(jnp.maximum(values, 0))[None]) @ vectors.T
