"""Couplings of a minibatch: which draw of the source is paired with which example of the data.

Flow matching may train on pairs of any joint law whose marginals are the source and the data: all give a velocity that
carries one to the other, and pairs that are close give straighter paths and a loss of less variance (Tong et al. 2024,
arXiv 2302.00482; Pooladian et al. 2023, arXiv 2304.14772). Example j of the data is paired with `source[index[j]]`:

    given           index = 0, 1, ..., B - 1
    independent     a random permutation
    optimal         the permutation that minimises sum_j |source[index[j]] - data[j]|^2
    entropic(r)     index[j] drawn from row j of the entropic plan of those costs (`transport.sinkhorn`), each by itself

The data keep their order, so whatever belongs to them, labels above all, needs no change. The batch stands for the
whole source and data: `optimal` and `entropic` tend to the couplings of the distributions as B grows.

With `label`, draws are dealt to the classes at random, to each as many as it has examples, and are paired within
classes. For a model of p(data | label) this matters: else optimal pairs give each class its own part of the source,
while sampling starts every class from all of it (Cheng & Schwing 2025, arXiv 2503.10636).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from genjax import transport
from genjax.typing import Array, Key

Coupling = Callable[..., Array]
"""`coupling(key, source [B, ...], data [B, ...], *, label=None) -> index`, int32 `[B]`; see the module."""


def given(key: Key, source: Array, data: Array, *, label: Array | None = None) -> Array:
    """Pairs as they come: int32 `[B]`, 0, 1, ..., B - 1, whatever the key and the labels."""
    _check(source, data, label)
    return jnp.arange(data.shape[0], dtype=jnp.int32)


def independent(key: Key, source: Array, data: Array, *, label: Array | None = None) -> Array:
    """A uniformly random permutation, int32 `[B]`, whatever the labels."""
    return jax.random.permutation(key, given(key, source, data, label=label))


def optimal(key: Key, source: Array, data: Array, *, label: Array | None = None) -> Array:
    """The permutation that minimises the sum of squared distances, exactly: int32 `[B]`.

    SciPy solves it on the host, within `jit` by a callback. Its time grows
    almost as B^3: milliseconds for a few hundred points (`python -m benchmarks.couplings`); within classes, that of each.

    Args:
        key: deals the draws to the classes; without labels the result does not depend on it.
        source: `[B, ...]`.
        data: `[B, ...]`.
        label: `[B]` integers: pairs are formed within classes.

    Raises:
        ValueError: shapes that do not agree.

    Example:
        >>> source, data = jnp.asarray([[0.0], [1.0], [2.0]]), jnp.asarray([[2.1], [0.1], [1.1]])
        >>> optimal(jax.random.key(0), source, data).tolist()
        [2, 0, 1]
    """
    dealt, costs = _dealt_costs(key, source, data, label)
    shape = jax.ShapeDtypeStruct(dealt.shape, dealt.dtype)
    return dealt[jax.pure_callback(_cheapest_permutation, shape, costs, vmap_method="sequential")]


def entropic(
    regularisation: float, *, relative: bool = False, tolerance: float = 1e-2, max_iterations: int = 500
) -> Coupling:
    """The coupling that draws from the entropic plan: for each example of the data, a draw of the source.

    Draws of the source may repeat and others be left out: its marginal is kept in expectation over the key, within
    `tolerance` (in total deviation, of 2), and not in a batch. Large regularisation tends to independent pairs, small
    to optimal ones. For Brownian bridges of standard deviation sigma it is to be `2 sigma^2` (SB-CFM, Tong et al. 2024).

    Args:
        regularisation: > 0, of the squared distances; absolute, unless
        relative: says that it is in units of their mean.
        tolerance: at which `transport.sinkhorn` stops.
        max_iterations: of it, at most; they may end before the tolerance for a regularisation under about 0.005 of the
            mean squared distance.

    Raises:
        ValueError: a regularisation that is not positive.

    Example:
        >>> source, data = jnp.asarray([[0.0], [1.0], [2.0]]), jnp.asarray([[2.1], [0.1], [1.1]])
        >>> entropic(0.05)(jax.random.key(0), source, data).tolist()
        [2, 0, 1]
    """
    if not regularisation > 0:
        raise ValueError(f"regularisation is {regularisation}; expected more than 0")

    def coupling(key: Key, source: Array, data: Array, *, label: Array | None = None) -> Array:
        deal_key, draw_key = jax.random.split(key)
        dealt, costs = _dealt_costs(deal_key, source, data, label)
        unit = jnp.mean(costs, where=jnp.isfinite(costs)) if relative else 1.0
        plan = transport.sinkhorn(
            costs, regularisation=regularisation * unit, tolerance=tolerance, max_iterations=max_iterations
        )
        return dealt[jax.random.categorical(draw_key, plan.log_plan, axis=1)]

    return coupling


def _check(source: Array, data: Array, label: Array | None) -> None:
    if source.shape != data.shape:
        raise ValueError(f"source {source.shape} and data {data.shape} must agree")
    if label is not None and label.shape != data.shape[:1]:
        raise ValueError(f"label has shape {label.shape}; expected one an example: {data.shape[:1]}")


def _dealt_costs(key: Key, source: Array, data: Array, label: Array | None) -> tuple[Array, Array]:
    """Indices of draws `[B]` and the costs `[data, dealt draws]` of pairing them, infinite between classes."""
    if label is None:
        return given(key, source, data), _squared_distances(data, source)
    dealt = independent(key, source, data, label=label)
    costs = _squared_distances(data, source[dealt])
    return dealt, jnp.where(label[:, None] == label[None, :], costs, jnp.inf)


def _squared_distances(x: Array, y: Array) -> Array:
    """`|x_i - y_j|^2` `[B, B]`, at least float32; no gradient passes."""
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    x, y = (jax.lax.stop_gradient(value).reshape(len(value), -1).astype(dtype) for value in (x, y))
    centre = jnp.mean(x, axis=0, keepdims=True)  # the nearer to 0, the less is lost to rounding
    x, y = x - centre, y - centre
    products = jnp.matmul(x, y.T, precision="highest")
    return jnp.maximum(jnp.sum(x**2, axis=1)[:, None] + jnp.sum(y**2, axis=1)[None, :] - 2 * products, 0)


def _cheapest_permutation(costs: Array) -> np.ndarray:
    return transport.cheapest_permutation(costs).astype(np.int32)
