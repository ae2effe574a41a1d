"""Bijectors with their log-determinants: what normalizing flows are made of.

A bijector y = f(x) of one example is a pair of functions on a batch,

    forward_and_log_det(x [B, ...]) -> (y [B, ...], log |det dy/dx| [B])
    inverse_and_log_det(y [B, ...]) -> (x [B, ...], log |det dx/dy| [B])

and a flow is one that turns data into noise, so that

    log p(data) = log N(f(data); 0, I) + log |det df/ddata|         (`log_density`)

and a draw is the inverse of a draw of noise. Parameters are arguments of the function that makes a bijector, and what a
coupling learns is a `conditioner`: any function from the part that passes to the parameters of the part that changes.

Sources: Dinh, Sohl-Dickstein & Bengio 2017 (RealNVP, arXiv 1605.08803), eqs 7-8 and section 3.6; Kingma & Dhariwal 2018
(Glow, arXiv 1807.03039), section 3; Durkan et al. 2019 (neural spline flows, arXiv 1906.04032), section 3.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from genjax.arrays import softplus, sum_events
from genjax.divergences import gaussian_log_density
from genjax.typing import Array

Map = Callable[[Array], tuple[Array, Array]]
"""`x [B, ...] -> (y [B, ...], log |det dy/dx| [B])`."""

Conditioner = Callable[[Array], Array]
"""`passing [B, ..., K] -> parameters [B, ..., P]` of the coordinates that do not pass."""


class Bijector(NamedTuple):
    """A map of examples that can be undone, each way with the logarithm of its volume change."""

    forward_and_log_det: Map
    inverse_and_log_det: Map

    def forward(self, x: Array) -> Array:
        """`f(x)`."""
        return self.forward_and_log_det(x)[0]

    def inverse(self, y: Array) -> Array:
        """The `x` with `f(x) = y`."""
        return self.inverse_and_log_det(y)[0]


def log_density(flow: Bijector, data: Array) -> Array:
    """`log p(data)` where `flow(data)` is standard normal: `[B]`, nats."""
    noise, log_det = flow.forward_and_log_det(data)
    zeros = jnp.zeros_like(noise)
    return gaussian_log_density(noise, zeros, zeros) + log_det


def chain(bijectors: Sequence[Bijector]) -> Bijector:
    """The first, then the second, ...; log-determinants add.

    >>> double = affine(jnp.zeros(1), jnp.log(jnp.full(1, 2.0)))
    >>> chain([double, double]).forward(jnp.ones((1, 1))).round(4).tolist()
    [[4.0]]
    """

    def through(maps: Sequence[Map]) -> Map:
        def run(x: Array) -> tuple[Array, Array]:
            total = jnp.zeros(x.shape[0], x.dtype)
            for step in maps:
                x, log_det = step(x)
                total = total + log_det
            return x, total

        return run

    return Bijector(
        through([one.forward_and_log_det for one in bijectors]),
        through([one.inverse_and_log_det for one in reversed(bijectors)]),
    )


def inverse(bijector: Bijector) -> Bijector:
    """The same map, run the other way."""
    return Bijector(bijector.inverse_and_log_det, bijector.forward_and_log_det)


def affine(shift: Array, log_scale: Array) -> Bijector:
    """`y = x exp(log_scale) + shift` on the last axis, the same at every position of an image.

    Glow's activation normalisation ("actnorm") is this one with parameters from `normalising` or learned.

    Args:
        shift: `[D]`.
        log_scale: `[D]`.
    """

    def forward(x: Array) -> tuple[Array, Array]:
        return x * jnp.exp(_last(log_scale, x)) + _last(shift, x), _everywhere(jnp.sum(log_scale), x)

    def backward(y: Array) -> tuple[Array, Array]:
        return (y - _last(shift, y)) * jnp.exp(-_last(log_scale, y)), _everywhere(-jnp.sum(log_scale), y)

    return Bijector(forward, backward)


def normalising(data: Array) -> tuple[Array, Array]:
    """`(shift, log_scale)`, each `[D]`, with which `affine` gives `data [B, ..., D]` mean 0 and variance 1.

    Source: Kingma & Dhariwal 2018, section 3.1.
    """
    axes = tuple(range(data.ndim - 1))
    log_scale = -jnp.log(jnp.std(data, axis=axes))
    return -jnp.mean(data, axis=axes) * jnp.exp(log_scale), log_scale


def permutation(order: Sequence[int] | np.ndarray) -> Bijector:
    """`y_i = x_order[i]` along the last axis."""
    order = np.asarray(order)
    undo = np.argsort(order)

    def by(indices: np.ndarray) -> Map:
        return lambda x: (x[..., indices], jnp.zeros(x.shape[0], x.dtype))

    return Bijector(by(order), by(undo))


class Triangular(NamedTuple):
    """A matrix `W = P L (U + diag(sign exp(log_diagonal)))`; the first three are learned, each `[D, D]` or `[D]`.

    Of `lower` and `upper` only the entries strictly below and above the diagonal count; L has ones on its diagonal.
    """

    lower: Array
    upper: Array
    log_diagonal: Array


class Pivots(NamedTuple):
    """What stays fixed while a `Triangular` is learned: `(P a)_i = a_order[i]`, and the signs of the diagonal."""

    order: np.ndarray
    sign: np.ndarray


def triangular_of(matrix: np.ndarray) -> tuple[Triangular, Pivots]:
    """The factors of an invertible matrix `[D, D]`, from which learning starts: a rotation, say, or a permutation."""
    import scipy.linalg

    rows, lower, upper = scipy.linalg.lu(matrix)
    diagonal = np.diag(upper)
    learned = Triangular(
        jnp.asarray(np.tril(lower, -1)), jnp.asarray(np.triu(upper, 1)), jnp.log(jnp.abs(jnp.asarray(diagonal)))
    )
    return learned, Pivots(np.argmax(rows, axis=1), np.sign(diagonal))


def linear(factors: Triangular, pivots: Pivots) -> Bijector:
    """`y = W x` along the last axis, W given by its LU factors: the log-determinant is a sum and the inverse two solves.

    On images this is Glow's invertible 1x1 convolution; with a rotation from `triangular_of`, a learned rotation.

    Source: Kingma & Dhariwal 2018, eqs 10-11.
    """
    dimension = len(pivots.order)
    identity = jnp.eye(dimension, dtype=factors.lower.dtype)
    lower = jnp.tril(factors.lower, -1) + identity
    upper = jnp.triu(factors.upper, 1) + jnp.diag(
        jnp.asarray(pivots.sign, identity.dtype) * jnp.exp(factors.log_diagonal)
    )

    def forward(x: Array) -> tuple[Array, Array]:
        matrix = (lower @ upper)[pivots.order]
        return _matmul(x, matrix), _everywhere(jnp.sum(factors.log_diagonal), x)

    def backward(y: Array) -> tuple[Array, Array]:
        pivoted = identity[:, pivots.order]
        half = jax.scipy.linalg.solve_triangular(lower, pivoted, lower=True, unit_diagonal=True)
        matrix = jax.scipy.linalg.solve_triangular(upper, half)
        return _matmul(y, matrix), _everywhere(-jnp.sum(factors.log_diagonal), y)

    return Bijector(forward, backward)


def _matmul(x: Array, matrix: Array) -> Array:
    return jnp.einsum("...j,ij->...i", x, matrix, precision="highest")


def coupling(transform: Callable[[Array], Bijector], conditioner: Conditioner, *, passing: int) -> Bijector:
    """The first `passing` coordinates of the last axis pass; the others go through a bijector that these choose.

    Args:
        transform: from the conditioner's output to the bijector of the other coordinates.
        conditioner: `x[..., :passing] -> parameters`.
        passing: how many pass.
    """

    def way(choose: Callable[[Bijector], Map]) -> Map:
        def run(x: Array) -> tuple[Array, Array]:
            kept, changed = x[..., :passing], x[..., passing:]
            changed, log_det = choose(transform(conditioner(kept)))(changed)
            return jnp.concatenate([kept, changed], axis=-1), log_det

        return run

    return Bijector(way(lambda one: one.forward_and_log_det), way(lambda one: one.inverse_and_log_det))


def affine_coupling(conditioner: Conditioner, *, passing: int, max_log_scale: float = 2.0) -> Bijector:
    """RealNVP's coupling `y_b = x_b exp(s(x_a)) + t(x_a)`, `y_a = x_a`.

    Args:
        conditioner: `x_a [B, ..., passing] -> [B, ..., 2 (D - passing)]`: t, and what `s = m tanh(. / m)` is made of.
        passing: how many coordinates of the last axis are x_a.
        max_log_scale: m; the scale of one coupling stays within `exp(-m)` and `exp(m)`.

    Source: Dinh et al. 2017, eqs 4-5; s through a tanh as in section 4.1.
    """

    def transform(parameters: Array) -> Bijector:
        shift, raw = jnp.split(parameters, 2, axis=-1)
        log_scale = max_log_scale * jnp.tanh(raw / max_log_scale)
        return Bijector(
            lambda x: (x * jnp.exp(log_scale) + shift, sum_events(log_scale)),
            lambda y: ((y - shift) * jnp.exp(-log_scale), -sum_events(log_scale)),
        )

    return coupling(transform, conditioner, passing=passing)


def spline_coupling(conditioner: Conditioner, *, passing: int, bins: int, bound: float = 4.0) -> Bijector:
    """A coupling whose coordinates go through monotone rational-quadratic splines (`spline`) chosen by those that pass.

    Args:
        conditioner: `x_a [B, ..., passing] -> [B, ..., (D - passing) (3 bins - 1)]`.
        passing: how many coordinates of the last axis are x_a.
        bins: of each spline.
        bound: the spline lives on [-bound, bound]; outside it is the identity.

    Source: Durkan et al. 2019, section 3.2.
    """

    def transform(parameters: Array) -> Bijector:
        raw = parameters.reshape(*parameters.shape[:-1], -1, 3 * bins - 1)
        return spline(raw, bound=bound)

    return coupling(transform, conditioner, passing=passing)


class Knots(NamedTuple):
    """The pieces of a spline: `left`, `bottom`, `width`, `height [..., K]`, and slopes at both ends of each."""

    left: Array
    bottom: Array
    width: Array
    height: Array
    slope_left: Array
    slope_right: Array


def spline_knots(raw: Array, *, bound: float, least: float = 1e-3) -> Knots:
    """K pieces that tile [-bound, bound] both ways, from unconstrained parameters `[..., 3K - 1]`; 0 is the identity.

    Args:
        raw: K logits of widths, K of heights, and K - 1 of inner slopes; the outer slopes are 1.
        bound: half of the width tiled.
        least: of a width and a height over `2 bound`, and of a slope.

    Source: Durkan et al. 2019, section 3.1 and appendix B.1.
    """
    bins = (raw.shape[-1] + 1) // 3
    width_logits, height_logits, slope_logits = jnp.split(raw, [bins, 2 * bins], axis=-1)

    def tiles(logits: Array) -> tuple[Array, Array]:
        share = least + (1 - bins * least) * jax.nn.softmax(logits, axis=-1)
        size = 2 * bound * share
        return jnp.cumsum(size, axis=-1) - size - bound, size

    left, width = tiles(width_logits)
    bottom, height = tiles(height_logits)
    unit = math.log(math.expm1(1 - least))
    inner = least + softplus(slope_logits + unit)
    end = jnp.ones_like(inner[..., :1])
    slope_left = jnp.concatenate([end, inner], axis=-1)
    slope_right = jnp.concatenate([inner, end], axis=-1)
    return Knots(left, bottom, width, height, slope_left, slope_right)


def spline(raw: Array, *, bound: float) -> Bijector:
    """A monotone rational-quadratic spline for each coordinate, the identity outside [-bound, bound].

    Within a piece, with `u = (x - left) / width`, `s = height / width` and slopes d, e at its two ends,

        y = bottom + height (s u^2 + d u (1 - u)) / (s + (d + e - 2 s) u (1 - u))

    Args:
        raw: `[B, ..., 3K - 1]`, one row for each coordinate of x `[B, ...]`; see `spline_knots`.
        bound: half of the interval.

    Source: Durkan et al. 2019, eqs 4-8; Gregory & Delbourgo 1982.
    """
    knots = spline_knots(raw, bound=bound)

    def forward(x: Array) -> tuple[Array, Array]:
        inside = jnp.abs(x) < bound
        within = jnp.where(inside, x, 0.0)
        piece = _piece(knots, knots.left, within)
        u = (within - piece.left) / piece.width
        y = piece.bottom + piece.height * _rise(piece, u)
        return jnp.where(inside, y, x), sum_events(jnp.where(inside, _log_slope(piece, u), 0.0))

    def backward(y: Array) -> tuple[Array, Array]:
        inside = jnp.abs(y) < bound
        within = jnp.where(inside, y, 0.0)
        piece = _piece(knots, knots.bottom, within)
        u = _position_of(piece, within)
        x = piece.left + piece.width * u
        return jnp.where(inside, x, y), -sum_events(jnp.where(inside, _log_slope(piece, u), 0.0))

    return Bijector(forward, backward)


def _piece(knots: Knots, starts: Array, x: Array) -> Knots:
    """The piece of each x, whose `starts` are the last ones not above it."""
    begun = x[..., None] >= starts[..., 1:]
    first = jnp.ones((*x.shape, 1), bool)
    here = jnp.concatenate([first, begun], axis=-1) & ~jnp.concatenate([begun, ~first], axis=-1)
    return Knots(*(jnp.sum(jnp.where(here, values, 0), axis=-1) for values in knots))


def _rise(piece: Knots, u: Array) -> Array:
    s = piece.height / piece.width
    both = u * (1 - u)
    return (s * jnp.square(u) + piece.slope_left * both) / (s + (piece.slope_left + piece.slope_right - 2 * s) * both)


def _log_slope(piece: Knots, u: Array) -> Array:
    s = piece.height / piece.width
    both = u * (1 - u)
    steepness = piece.slope_right * jnp.square(u) + 2 * s * both + piece.slope_left * jnp.square(1 - u)
    bend = s + (piece.slope_left + piece.slope_right - 2 * s) * both
    return 2 * jnp.log(s) + jnp.log(steepness) - 2 * jnp.log(bend)


def _position_of(piece: Knots, y: Array) -> Array:
    """The root u in [0, 1] of `a u^2 + b u + c`, of its two forms the one that does not cancel."""
    s = piece.height / piece.width
    above = y - piece.bottom
    bend = above * (piece.slope_left + piece.slope_right - 2 * s)
    a = piece.height * (s - piece.slope_left) + bend
    b = piece.height * piece.slope_left - bend
    c = -s * above
    root = jnp.sqrt(jnp.maximum(jnp.square(b) - 4 * a * c, 0))
    falling = b < 0
    u = jnp.where(falling, root - b, 2 * c) / jnp.where(falling, 2 * a, -b - root)
    return jnp.clip(u, 0, 1)


def logit(*, margin: float = 0.05) -> Bijector:
    """From (-1, 1) to the line: `log p - log(1 - p)` with `p = m + (1 - 2 m) (x + 1) / 2`, coordinate by coordinate.

    Dequantised images fill [-1, 1]; the margin m keeps their ends finite.

    Args:
        margin: in (0, 1/2).

    Source: Dinh et al. 2017, section 4.1.
    """
    log_scale = math.log((1 - 2 * margin) / 2)

    def forward(x: Array) -> tuple[Array, Array]:
        p = margin + (1 - 2 * margin) * (x + 1) / 2
        return jnp.log(p) - jnp.log1p(-p), sum_events(log_scale - jnp.log(p) - jnp.log1p(-p))

    def backward(y: Array) -> tuple[Array, Array]:
        x = 2 * (jax.nn.sigmoid(y) - margin) / (1 - 2 * margin) - 1
        return x, sum_events(-softplus(-y) - softplus(y) - log_scale)

    return Bijector(forward, backward)


def squeeze() -> Bijector:
    """`[B, H, W, C]` to `[B, H/2, W/2, 4C]`: each 2x2 block becomes the channels of one pixel.

    Source: Dinh et al. 2017, section 3.6.
    """

    def forward(x: Array) -> tuple[Array, Array]:
        batch, height, width, channels = x.shape
        blocks = x.reshape(batch, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 2, 4, 5)
        return blocks.reshape(batch, height // 2, width // 2, 4 * channels), jnp.zeros(batch, x.dtype)

    def backward(y: Array) -> tuple[Array, Array]:
        batch, height, width, channels = y.shape
        blocks = y.reshape(batch, height, width, 2, 2, channels // 4).transpose(0, 1, 3, 2, 4, 5)
        return blocks.reshape(batch, 2 * height, 2 * width, channels // 4), jnp.zeros(batch, y.dtype)

    return Bijector(forward, backward)


def _last(values: Array, x: Array) -> Array:
    return values.reshape((1,) * (x.ndim - 1) + values.shape)


def _everywhere(log_det: Array, x: Array) -> Array:
    """The log-determinant of what happens at every position of the axes between the first and the last."""
    return jnp.broadcast_to(math.prod(x.shape[1:-1]) * log_det, x.shape[:1])
