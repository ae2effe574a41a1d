"""Frechet distance: how far two samples are apart, each seen as a Gaussian of its mean and covariance.

Of features of images from a trained classifier it is the score known as FID (Heusel et al. 2017, arXiv 1706.08500, eq. 6);
its numbers compare only where the features and the numbers of samples are the same.
"""

import jax.numpy as jnp

from genjax.metrics.pairs import check_sets
from genjax.typing import Array


def frechet_distance(samples: Array, reference: Array) -> Array:
    """`|m - m'|^2 + tr(C + C' - 2 (C^1/2 C' C^1/2)^1/2)`: the squared 2-Wasserstein distance of two Gaussians, `[]`.

    Args:
        samples: `[N, D]`, N more than 1; covariances are unbiased.
        reference: `[M, D]`, M more than 1.

    Raises:
        ValueError: other shapes.

    Source: Dowson & Landau 1982 (Journal of Multivariate Analysis 12), eq. 4; Heusel et al. 2017 (arXiv 1706.08500), eq. 6.

    Example:
        >>> float(frechet_distance(jnp.asarray([[0.0], [2.0]]), jnp.asarray([[4.0], [6.0]])))
        16.0
    """
    check_sets(samples, reference, least=2)
    return frechet_distance_to(samples, *mean_and_covariance(reference))


def frechet_distance_to(samples: Array, mean: Array, covariance: Array) -> Array:
    """`frechet_distance` of `samples [N, D]` to the Gaussian of a `mean [D]` and a `covariance [D, D]`, `[]`."""
    found_mean, found_covariance = mean_and_covariance(samples)
    difference = found_mean - mean
    root = _square_root(found_covariance)
    cross = jnp.linalg.eigvalsh(root @ covariance @ root)
    traces = jnp.trace(found_covariance) + jnp.trace(covariance)
    return difference @ difference + traces - 2 * jnp.sum(jnp.sqrt(jnp.maximum(cross, 0)))


def mean_and_covariance(samples: Array) -> tuple[Array, Array]:
    """The mean `[D]` and the unbiased covariance `[D, D]` of `samples [N, D]`, N more than 1."""
    return samples.mean(axis=0), jnp.cov(samples, rowvar=False).reshape(samples.shape[1], -1)


def _square_root(matrix: Array) -> Array:
    """Of a symmetric matrix without negative eigenvalues."""
    values, vectors = jnp.linalg.eigh(matrix)
    return (vectors * jnp.sqrt(jnp.maximum(values, 0))[None]) @ vectors.T
