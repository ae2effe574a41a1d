"""All pairs of the points of two sets, some rows of them at a time, so that memory does not grow as N^2."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from genjax.typing import Array

_PAIRS_AT_ONCE = 2**19
_FEW_DIMENSIONS = 64


def check_sets(samples: Array, reference: Array, *, least: int = 1) -> None:
    """Refuse what is not `samples [N, D]` and `reference [M, D]` with N and M at least `least`.

    Raises:
        ValueError: other shapes.
    """
    if samples.ndim != 2 or samples.shape[1:] != reference.shape[1:] or min(len(samples), len(reference)) < least:
        raise ValueError(
            f"samples {samples.shape} and reference {reference.shape}: expected [N, D] and [M, D], "
            f"N and M at least {least}"
        )


def squared_distances(x: Array, y: Array) -> Array:
    """`|x_i - y_j|^2`, `[N, M]`.

    From differences in up to 64 dimensions: right to rounding for the nearest points too. In more, where the points of
    a set are about equally far from each other, by a product of matrices about the mean of y: 20 times faster, with an
    error of some 1e-7 (float32) of the largest `|x_i - mean y|^2 + |y_j - mean y|^2`.

    Args:
        x: `[N, D]`.
        y: `[M, D]`.

    Example:
        >>> squared_distances(jnp.asarray([[0.0, 0.0]]), jnp.asarray([[3.0, 4.0], [0.0, 1.0]])).tolist()
        [[25.0, 1.0]]
    """
    if x.shape[1] <= _FEW_DIMENSIONS:
        return jnp.sum((x[:, None] - y[None]) ** 2, axis=-1)
    centre = jnp.mean(y, axis=0, keepdims=True)
    x, y = x - centre, y - centre
    squares = jnp.sum(x**2, axis=-1)[:, None] + jnp.sum(y**2, axis=-1)[None]
    return jnp.maximum(squares - 2 * jnp.matmul(x, y.T, precision="highest"), 0)


def map_rows(function: Callable[[Array, Array], Array], x: Array, *, width: int) -> Array:
    """`function(i, x[i])` of every row of `x [N, D]`, `[N, ...]`: some at once, the rest one after the other.

    Args:
        function: `(i [], row [D])` to an array.
        x: `[N, D]`.
        width: pairs that a row makes, by which it is seen how many rows fit.
    """
    rows_at_once = max(1, _PAIRS_AT_ONCE // width)
    return jax.lax.map(lambda row: function(*row), (jnp.arange(len(x)), x), batch_size=rows_at_once)
