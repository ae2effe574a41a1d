"""Fidelity and diversity apart: whether samples lie where the reference is, and the reversed.

Where a set is, is told by balls: one about each of its points, closed, out to its k-th nearest other point of the set,

    B_k(x_i; X) = { z : |z - x_i| <= distance of x_i to its k-th nearest neighbour in X without x_i }

Of N samples Y and M points of reference X,

    precision    share of the samples that lie in some B_k(x_i; X)
    recall       share of the reference that lies in some B_k(y_j; Y)
    density      mean over the samples of (number of balls B_k(x_i; X) that hold it) / k
    coverage     share of the balls B_k(x_i; X) that hold some sample

Precision and recall: Kynkaanniemi et al. 2019 (arXiv 1904.06991), eqs 1 and 2; for images in features of a classifier. One
stray point of X with a large ball raises the precision of everything near it, and one stray sample the recall. Density
and coverage answer this by counting balls, and by balls of the reference alone: Naeem et al. 2020 (arXiv 2002.09797), section 3.

For samples of the reference's own law, whatever it is if it has a density, the mean of the density is 1, and that of the
coverage `1 - product over l = 1 .. k of (M - l) / (M + N - l)`; precision and recall depend on the law. Values compare only
for one k and one number of points.

`precision_and_recall` computes N^2 + M^2 + 2 N M distances, `density_and_coverage` M^2 + 2 N M, with no memory of that
size: some seconds each for 10,000 points on two cores. Points with NaN lie in no ball.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from genjax.metrics.pairs import check_sets, map_rows, squared_distances
from genjax.typing import Array


class PrecisionRecall(NamedTuple):
    """What `precision_and_recall` returns, both `[]` between 0 and 1."""

    precision: Array
    recall: Array


class DensityCoverage(NamedTuple):
    """What `density_and_coverage` returns, both `[]`: the density at least 0, the coverage between 0 and 1."""

    density: Array
    coverage: Array


def precision_and_recall(samples: Array, reference: Array, *, neighbours: int = 3) -> PrecisionRecall:
    """The share of samples that lie where the reference is, and that of the reference where samples are.

    Args:
        samples: `[N, D]`, N more than `neighbours`.
        reference: `[M, D]`, M the same.
        neighbours: k, at least 1.

    Raises:
        ValueError: other shapes, or k below 1.

    Source: Kynkaanniemi et al. 2019 (arXiv 1904.06991), eqs 1 and 2, who take k = 3 and 50,000 points.

    Example:
        >>> reference = jnp.asarray([[0.0], [1.0], [2.0], [10.0]])
        >>> found = precision_and_recall(jnp.asarray([[0.5], [1.5], [-7.0]]), reference, neighbours=1)
        >>> round(float(found.precision), 3), float(found.recall)
        (0.667, 0.75)
    """
    _check(samples, reference, neighbours)
    radii = squared_radii(reference, neighbours=neighbours)
    inside = _balls_about(samples, reference, radii) > 0
    found = _balls_about(reference, samples, squared_radii(samples, neighbours=neighbours)) > 0
    precision, recall = (jnp.mean(one, dtype=radii.dtype) for one in (inside, found))
    return PrecisionRecall(precision, recall)


def density_and_coverage(samples: Array, reference: Array, *, neighbours: int = 5) -> DensityCoverage:
    """How many balls of the reference hold a sample, over k, and the share of those balls that hold one.

    Args:
        samples: `[N, D]`.
        reference: `[M, D]`, M more than `neighbours`.
        neighbours: k, at least 1.

    Raises:
        ValueError: other shapes, or k below 1.

    Source: Naeem et al. 2020 (arXiv 2002.09797), section 3, who take k = 5 and 10,000 points.

    Example:
        >>> reference = jnp.asarray([[0.0], [1.0], [2.0], [10.0]])
        >>> found = density_and_coverage(jnp.asarray([[0.5], [-7.0]]), reference, neighbours=1)
        >>> float(found.density), float(found.coverage)
        (1.0, 0.5)
    """
    _check(samples, reference, neighbours, of_samples=False)
    radii = squared_radii(reference, neighbours=neighbours)
    balls = _balls_about(samples, reference, radii)
    held = _nearest(reference, samples) <= radii
    return DensityCoverage(
        density=jnp.mean(balls, dtype=radii.dtype) / neighbours, coverage=jnp.mean(held, dtype=radii.dtype)
    )


def squared_radii(points: Array, *, neighbours: int) -> Array:
    """The squared distance of each of `points [N, D]` to its k-th nearest other one, `[N]`; N more than `neighbours`.

    >>> squared_radii(jnp.asarray([[0.0], [1.0], [3.0]]), neighbours=1).tolist()
    [1.0, 1.0, 4.0]
    """
    return _squared_radii(points, neighbours)


@functools.partial(jax.jit, static_argnums=1)
def _squared_radii(points: Array, neighbours: int) -> Array:
    num = len(points)

    def of_row(i: Array, row: Array) -> Array:
        others = jnp.where(jnp.arange(num) == i, jnp.inf, squared_distances(row[None], points)[0])
        return _smallest(others, neighbours)

    return map_rows(of_row, points, width=num)


def _smallest(values: Array, k: int) -> Array:
    """The k-th smallest of `values [N]`, each as often as it occurs; for small k much faster than XLA's top_k on a CPU."""

    def next_larger(_: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        found, count = carry  # how many are at most `found`
        larger = jnp.min(jnp.where(values > found, values, jnp.inf))
        enough = count >= k
        return jnp.where(enough, found, larger), jnp.where(enough, count, jnp.sum(values <= larger))

    start = jnp.asarray(-jnp.inf, values.dtype), jnp.asarray(0)
    return jax.lax.fori_loop(0, k, next_larger, start)[0]


@jax.jit
def _balls_about(points: Array, centres: Array, radii: Array) -> Array:
    """How many of the balls, of squared `radii`, hold each point, int `[len(points)]`."""

    def of_row(_: Array, row: Array) -> Array:
        return jnp.sum(squared_distances(row[None], centres)[0] <= radii)

    return map_rows(of_row, points, width=len(centres))


@jax.jit
def _nearest(points: Array, others: Array) -> Array:
    """The squared distance of each point to the nearest of `others`."""

    def of_row(_: Array, row: Array) -> Array:
        return jnp.min(squared_distances(row[None], others))

    return map_rows(of_row, points, width=len(others))


def _check(samples: Array, reference: Array, neighbours: int, *, of_samples: bool = True) -> None:
    if neighbours < 1:
        raise ValueError(f"neighbours is {neighbours}; expected at least 1")
    check_sets(samples, reference, least=neighbours + 1 if of_samples else 1)
    if len(reference) <= neighbours:
        raise ValueError(f"reference {reference.shape} must have more than {neighbours} points")
