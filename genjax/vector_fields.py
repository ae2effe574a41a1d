"""The divergence of a vector field: what a change of density along a flow and score matching both need.

A field maps examples to vectors of their own shape, `f(x [B, ...]) -> [B, ...]`, row i from x[i] alone. With J the Jacobian of
one example, D x D over its flattened event axes,

    div f = tr J = sum_d e_d . J e_d                   exact: D forward derivatives            (`divergence`)
          = E[v . J v]  where E[v v^T] = I             unbiased: one forward derivative        (`hutchinson_divergence`)
          = tr Q^T J Q + E[v . P J P v]                unbiased: Q spans J s of a few s        (`hutch_plus_plus_divergence`)

The variance of Hutchinson's estimate is `2 sum_{i != j} S_ij^2` over Rademacher probes, v_d = +1 or -1, and `2 sum_ij S_ij^2`
over Gaussian ones, with S = (J + J^T) / 2: Rademacher's is never larger, and 0 where S is diagonal. Hutch++ takes the trace
exactly on the subspace of Q, P = I - Q Q^T, and so has the variance of what J has beside its greatest singular vectors.

Sources: Hutchinson 1990 (Communications in Statistics 19), section 2; Grathwohl et al. 2019 (FFJORD, arXiv 1810.01367),
section 3.1; Meyer, Musco, Musco & Woodruff 2021 (Hutch++, arXiv 2010.09649), algorithm 1.
"""

import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from genjax.arrays import as_example_keys, sum_events
from genjax.typing import Array, Key

Field = Callable[[Array], Array]
"""`f(x [B, ...]) -> [B, ...]`; example i depends on x[i] alone. The score of a density is one, a velocity at a time too."""

Divergence = Callable[[Field, Array], tuple[Array, Array]]
"""`divergence(field, x [B, ...]) -> (f(x), div f)`, exact `[B]` or an estimate, `[B]` or K of them, `[K, B]`."""


_UNROLLED = 8
"""So many directions are taken one by one: reverse mode through a `vmap` of them sums over its axis, which XLA:CPU does slowly
(at two directions of an MLP 3x256 a gradient takes 4 times as long, at eight 5 times). More would be long to compile."""


def _each(of_one: Callable[[Array], Array], several: Array) -> Array:
    if len(several) > _UNROLLED:
        return jax.vmap(of_one)(several)
    return jnp.stack([of_one(one) for one in several])


def _check_shape(value: Array, x: Array) -> None:
    if value.shape != x.shape:
        raise ValueError(f"the field returned shape {value.shape} for x of shape {x.shape}; they must agree")


def divergence(field: Field, x: Array, *, chunk: int | None = None) -> tuple[Array, Array]:
    """The field and its divergence `tr J`, exactly: one evaluation and D forward derivatives.

    Args:
        field: `f(x [B, ...]) -> [B, ...]`.
        x: `[B, ...]`, D numbers an example.
        chunk: how many of the D derivatives are taken at once; default all, which is fastest and needs the memory of a
            batch D times as large.

    Returns:
        `f(x) [B, ...]` and `[B]`, at least float32.

    Raises:
        ValueError: the field returns another shape.

    Example:
        >>> value, trace = divergence(lambda x: x**2, jnp.asarray([[1.0, 2.0]]))
        >>> value.tolist(), trace.tolist()
        ([[1.0, 4.0]], [6.0])
    """
    value, pushforward = jax.linearize(field, x)
    _check_shape(value, x)
    dimension = math.prod(x.shape[1:])

    def diagonal_entry(index: Array) -> Array:
        direction = jax.nn.one_hot(index, dimension, dtype=x.dtype).reshape(x.shape[1:])
        along = jnp.broadcast_to(direction[None], x.shape)
        return sum_events(along * pushforward(along))

    indices = jnp.arange(dimension)
    whole = chunk is None or chunk >= dimension
    entries = _each(diagonal_entry, indices) if whole else jax.lax.map(diagonal_entry, indices, batch_size=chunk)
    return value, jnp.sum(entries, axis=0)


def hutchinson_divergence(field: Field, x: Array, probe: Array) -> tuple[Array, Array]:
    """The field and an estimate of its divergence, `v . J v`: one evaluation with one forward derivative a probe.

    Args:
        field: `f(x [B, ...]) -> [B, ...]`.
        x: `[B, ...]`.
        probe: v, `[B, ...]`, from `draw_probes`; or K of them, `[K, B, ...]`.

    Returns:
        `f(x) [B, ...]` and `[B]`, or `[K, B]`, at least float32; in the mean over probes the divergence.

    Raises:
        ValueError: the field returns another shape.
    """
    if probe.ndim == x.ndim:
        value, pushed = jax.jvp(field, (x,), (probe,))
        _check_shape(value, x)
        return value, sum_events(probe * pushed)
    value, pushforward = jax.linearize(field, x)
    _check_shape(value, x)
    return value, _each(lambda one: sum_events(one * pushforward(one)), probe)


def hutch_plus_plus_divergence(field: Field, x: Array, sketch: Array, probe: Array) -> tuple[Array, Array]:
    """The field and Hutch++'s estimate of its divergence: one evaluation, `2 S + K` forward derivatives.

        tr Q^T J Q + mean over k of (P v_k) . J (P v_k),    Q an orthonormal basis of J s_1 .. J s_S,  P = I - Q Q^T

    Exact where the rank of J is at most S. Its error falls with the number of derivatives, Hutchinson's with its root.

    Args:
        field: `f(x [B, ...]) -> [B, ...]`.
        x: `[B, ...]`, D numbers an example.
        sketch: s, `[S, B, ...]`, from `draw_probes`; S at most D.
        probe: v, `[K, B, ...]`, from `draw_probes`.

    Returns:
        `f(x) [B, ...]` and `[B]`; in the mean over probes, for any sketch, the divergence.

    Raises:
        ValueError: the field returns another shape.

    Source: Meyer et al. 2021 (arXiv 2010.09649), algorithm 1.
    """
    value, pushforward = jax.linearize(field, x)
    _check_shape(value, x)

    def push(directions: Array) -> Array:
        return _each(pushforward, directions)

    def columns(directions: Array) -> Array:
        return jnp.moveaxis(directions.reshape(*directions.shape[:2], -1), 0, -1)  # [B, D, S]

    def directions(columns: Array) -> Array:
        return jnp.moveaxis(columns, -1, 0).reshape(-1, *x.shape)

    basis = jnp.linalg.qr(columns(push(sketch)))[0]
    probes = columns(probe)
    rest = probes - basis @ (basis.mT @ probes)
    on_basis, on_rest = (
        jnp.sum(of * columns(push(directions(of))), axis=(1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32))
        for of in (basis, rest)
    )
    return value, on_basis + on_rest / len(probe)


def jacobian_moments(field: Field, x: Array, *, probe: Array | None = None) -> tuple[Array, Array, Array]:
    """The field, its divergence `tr J` and the square of its Frobenius norm `||J||^2 = tr J J^T`, or estimates of these.

        tr J = sum_d e_d . J e_d = E[v . J v],      ||J||^2 = sum_d |J e_d|^2 = E[|J v|^2]

    The derivatives of one give the other for nothing. All D are taken at once.

    Args:
        field: `f(x [B, ...]) -> [B, ...]`.
        x: `[B, ...]`, D numbers an example.
        probe: v, `[B, ...]`, from `draw_probes`: one forward derivative for both estimates. Default: exact, by D.

    Returns:
        `f(x) [B, ...]`, `[B]` and `[B]`, at least float32.

    Raises:
        ValueError: the field returns another shape.

    Example:
        >>> _, trace, norm = jacobian_moments(lambda x: x**2, jnp.asarray([[1.0, 2.0]]))
        >>> trace.tolist(), norm.tolist()
        ([6.0], [20.0])

    Source: Finlay et al. 2020 (arXiv 2002.02798), eqs. 8 and 10.
    """
    if probe is None:
        units = jnp.eye(math.prod(x.shape[1:]), dtype=x.dtype).reshape(-1, 1, *x.shape[1:])
        directions = jnp.broadcast_to(units, (len(units), *x.shape))
    else:
        directions = probe[None]
    value, pushforward = jax.linearize(field, x)
    _check_shape(value, x)
    pushed = _each(pushforward, directions)
    each = jax.vmap(sum_events)
    return value, jnp.sum(each(directions * pushed), axis=0), jnp.sum(each(jnp.square(pushed)), axis=0)


def draw_probes(key: Key, like: Array, *, distribution: Literal["rademacher", "gaussian"] = "rademacher") -> Array:
    """Random directions v with `E[v v^T] = I`, of the shape and dtype of `like [B, ...]`.

    Args:
        key: one key, or one key an example `[B]`: row i depends on the key of example i alone.
        like: `[B, ...]`, floating.
        distribution: `rademacher`, +1 or -1 evenly; or `gaussian`, standard normal.

    Raises:
        ValueError: another distribution, or another number of keys.
    """
    draws = {"rademacher": jax.random.rademacher, "gaussian": jax.random.normal}
    if distribution not in draws:
        raise ValueError(f"distribution is {distribution!r}; expected one of {', '.join(draws)}")
    draw, keys = draws[distribution], as_example_keys(key, like.shape[0])
    return jax.vmap(lambda one: draw(one, like.shape[1:], like.dtype))(keys)
