"""Wasserstein distances along directions: cheap where the distance itself is not, since on a line sorting is optimal.

Of two sets of points on a line, with quantile functions F^-1 and G^-1,

    W_p^p = integral over u in [0, 1] of |F^-1(u) - G^-1(u)|^p

The sliced distance is the root of the mean of `W_p^p` over directions. It is at most `W_p`, and 0 between equal laws alone
(Rabin et al. 2012, doi 10.1007/978-3-642-24785-9_37; Bonneel et al. 2015, doi 10.1007/s10851-014-0506-3). The error of K
drawn directions falls as K^-1/2.
"""

import jax.numpy as jnp
import numpy as np

from genjax import arrays
from genjax.metrics.pairs import check_sets
from genjax.typing import Array, Key


def sliced_wasserstein(samples: Array, reference: Array, directions: Array, *, power: float = 2) -> Array:
    """`(1/K sum_k W_power^power(samples . direction_k, reference . direction_k))^(1/power)`, `[]`, in units of x.

    Args:
        samples: `[N, D]`.
        reference: `[M, D]`; N and M may differ, every point of a set has the same weight.
        directions: `[K, D]`, of length 1; for example of `draw_directions`.
        power: at least 1; 2 is the sliced W2.

    Raises:
        ValueError: other shapes, or power < 1.

    Source: Bonneel et al. 2015 (doi 10.1007/s10851-014-0506-3), definition of the sliced distance.

    Example:
        >>> samples = jnp.asarray([[0.0, 0.0], [1.0, 0.0]])
        >>> round(float(sliced_wasserstein(samples, samples + jnp.asarray([[1.0, 2.0]]), jnp.eye(2))), 4)
        1.5811
    """
    return jnp.mean(_projected_costs(samples, reference, directions, power)) ** (1 / power)


def projected_wasserstein(samples: Array, reference: Array, directions: Array, *, power: float = 1) -> Array:
    """The distance `W_power` (root taken) along each direction, `[K]`, in units of x.

    Args:
        samples: `[N, D]`.
        reference: `[M, D]`.
        directions: `[K, D]`, of length 1.
        power: at least 1.

    Raises:
        ValueError: other shapes, or power < 1.

    Example:
        >>> samples, reference = jnp.asarray([[0.0, 0.0], [1.0, 0.0]]), jnp.asarray([[2.0, -1.0]])
        >>> projected_wasserstein(samples, reference, jnp.eye(2)).tolist()
        [1.5, 1.0]
    """
    return _projected_costs(samples, reference, directions, power) ** (1 / power)


def draw_directions(key: Key, num: int, dimension: int) -> Array:
    """Uniformly random directions, `[num, dimension]`, of length 1; direction i depends on the key and i alone."""
    normal = arrays.normal(key, (num, dimension))
    return normal / jnp.linalg.norm(normal, axis=-1, keepdims=True)


def _projected_costs(samples: Array, reference: Array, directions: Array, power: float) -> Array:
    """`W_power^power` along each direction."""
    check_sets(samples, reference)
    if directions.ndim != 2 or directions.shape[1] != samples.shape[1]:
        raise ValueError(f"directions {directions.shape} must be [K, D], D that of samples {samples.shape}")
    if power < 1:
        raise ValueError(f"power is {power}; expected at least 1")
    x, y = (jnp.sort(jnp.matmul(z, directions.T, precision="highest"), axis=0) for z in (samples, reference))
    x_rows, y_rows, lengths = _common_pieces(len(x), len(y))
    gaps = jnp.abs(x[x_rows] - y[y_rows]) ** power
    return jnp.sum(jnp.asarray(lengths, x.dtype)[:, None] * gaps, axis=0)


def _common_pieces(n: int, m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the quantile functions of n and of m points are both constant: rows of each, and the lengths, of sum 1."""
    cuts = np.union1d(np.arange(n + 1) * m, np.arange(m + 1) * n)  # in units of 1 / (n m)
    return cuts[:-1] // m, cuts[:-1] // n, np.diff(cuts) / (n * m)
