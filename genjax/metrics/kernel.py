"""Maximum mean discrepancy: how far apart two samples lie in the feature space of a kernel k.

    MMD^2(p, q) = E k(x, x') + E k(y, y') - 2 E k(x, y),        x, x' ~ p and y, y' ~ q, all independent

It is at least 0, and 0 for p = q alone where the kernel is characteristic, as the Gaussian one is. Of N samples and M
points of reference,

    unbiased    sum_{i != j} k(x_i, x_j) / (N (N - 1))  +  the same of y  -  2 sum_{i, j} k(x_i, y_j) / (N M)
    biased      sum_{i, j} k(x_i, x_j) / N^2            +  the same of y  -  2 sum_{i, j} k(x_i, y_j) / (N M)

the first has the right mean, hence also negative values; the second is at least 0 (Gretton et al. 2012, A kernel two-sample
test, JMLR 13, Lemma 6 and what follows it). Both take N^2 + M^2 + N M values of the kernel, but no memory of that size.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from genjax.metrics.pairs import check_sets, map_rows, squared_distances
from genjax.typing import Array, Key

Kernel = Callable[[Array, Array], Array]
"""`kernel(x [N, D], y [M, D]) -> k(x_i, y_j) [N, M]`: symmetric and positive."""


def gaussian_kernel(width: Array | float) -> Kernel:
    """`k(x, y) = exp(-|x - y|^2 / (2 width^2))`.

    Args:
        width: in units of x, more than 0; some libraries take `gamma = 1 / (2 width^2)` instead.

    Example:
        >>> round(float(gaussian_kernel(2.0)(jnp.zeros((1, 1)), jnp.full((1, 1), 2.0))[0, 0]), 4)
        0.6065
    """
    return lambda x, y: jnp.exp(-squared_distances(x, y) / (2 * width**2))


def polynomial_kernel(degree: int = 3) -> Kernel:
    """`k(x, y) = (x . y / D + 1)^degree`, D the dimension: its MMD compares the moments up to this degree.

    Example:
        >>> float(polynomial_kernel(3)(jnp.ones((1, 4)), jnp.ones((1, 4)))[0, 0])
        8.0
    """
    return lambda x, y: (jnp.matmul(x, y.T, precision="highest") / x.shape[1] + 1) ** degree


def mmd_squared(samples: Array, reference: Array, *, kernel: Kernel, unbiased: bool = True) -> Array:
    """The squared maximum mean discrepancy of a kernel, `[]`, in the kernel's units.

    Args:
        samples: `[N, D]`, N at least 2 if unbiased.
        reference: `[M, D]`, M the same.
        kernel: for example `gaussian_kernel(width)`.
        unbiased: which of the two estimates (see the module).

    Raises:
        ValueError: other shapes.

    Source: Gretton et al. 2012 (JMLR 13), Lemma 6.

    Example:
        >>> samples, reference = jnp.asarray([[0.0], [1.0]]), jnp.asarray([[1.0], [2.0]])
        >>> linear = polynomial_kernel(1)
        >>> float(mmd_squared(samples, reference, kernel=linear, unbiased=False))
        1.0
        >>> float(mmd_squared(samples, reference, kernel=linear))
        0.5
    """
    check_sets(samples, reference, least=2 if unbiased else 1)
    own = [_mean_with_itself(kernel, points, without_diagonal=unbiased) for points in (samples, reference)]
    cross = map_rows(lambda _, row: jnp.mean(kernel(row[None], reference)), samples, width=len(reference))
    return own[0] + own[1] - 2 * jnp.mean(cross)


def kernel_inception_distance(samples: Array, reference: Array) -> Array:
    """The unbiased `mmd_squared` of the kernel `(x . y / D + 1)^3`, `[]`; known as KID.

    Its expectation, unlike that of the Frechet distance, does not depend on the numbers of samples. Values compare only
    where the features are the same; tables often give it times 1000.

    Args:
        samples: features `[N, D]`, N at least 2.
        reference: features `[M, D]`, M at least 2.

    Raises:
        ValueError: other shapes.

    Source: Binkowski et al. 2018 (arXiv 1801.01401), section 4.
    """
    return mmd_squared(samples, reference, kernel=polynomial_kernel(3))


def kernel_inception_distance_of_subsets(
    samples: Array, reference: Array, rows: Array, reference_rows: Array
) -> tuple[Array, Array]:
    """Mean and standard deviation of `kernel_inception_distance` over subsets, both `[]`.

    The deviation is that of the S values themselves (division by S): the spread of one subset, not of their mean.

    Args:
        samples: `[N, D]`.
        reference: `[M, D]`.
        rows: int `[S, m]`, the samples in each of S subsets, m at least 2; for example of `draw_subsets`.
        reference_rows: int `[S, m']`, the same for `reference`.

    Raises:
        ValueError: other shapes.

    Source: Binkowski et al. 2018 (arXiv 1801.01401), section 4, who take 100 subsets of 1000.

    Example:
        >>> keys = jax.random.split(jax.random.key(0), 4)
        >>> samples, reference = jax.random.normal(keys[0], (300, 8)), jax.random.normal(keys[1], (200, 8)) + 1.0
        >>> rows = [draw_subsets(key, num, subsets=10, size=100) for key, num in ((keys[2], 300), (keys[3], 200))]
        >>> mean, deviation = kernel_inception_distance_of_subsets(samples, reference, *rows)
        >>> float(mean) > 5 * float(deviation) > 0
        True
    """
    check_sets(samples, reference)
    if rows.ndim != 2 or reference_rows.ndim != 2 or len(rows) != len(reference_rows):
        raise ValueError(f"rows {rows.shape} and {reference_rows.shape} must be [S, m] and [S, m']")
    samples, reference = jnp.asarray(samples), jnp.asarray(reference)
    distances = jax.lax.map(
        lambda subset: kernel_inception_distance(samples[subset[0]], reference[subset[1]]), (rows, reference_rows)
    )
    return jnp.mean(distances), jnp.std(distances)


def draw_subsets(key: Key, num: int, *, subsets: int = 100, size: int = 1000) -> Array:
    """Rows of random subsets, int32 `[subsets, size]`: within each all different, between them independent.

    Args:
        key: a key.
        num: of rows there are.
        subsets: how many.
        size: of each, at most `num`.

    Raises:
        ValueError: more rows than there are.
    """
    if size > num:
        raise ValueError(f"a subset of {size} rows does not fit into {num}")
    keys = jax.random.split(key, subsets)
    return jax.lax.map(lambda one: jax.random.permutation(one, num)[:size].astype(jnp.int32), keys)


def _mean_with_itself(kernel: Kernel, points: Array, *, without_diagonal: bool) -> Array:
    num = len(points)

    def of_row(i: Array, row: Array) -> Array:
        values = kernel(row[None], points)[0]
        if without_diagonal:
            values = jnp.where(jnp.arange(num) == i, 0, values)
        return jnp.sum(values)

    return jnp.mean(map_rows(of_row, points, width=num)) / (num - 1 if without_diagonal else num)
