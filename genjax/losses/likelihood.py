"""Log-likelihoods of data under what a network says of them, and their negatives as losses.

A model of an image or a point x outputs parameters of a distribution of x. Each function here takes such parameters
and x and gives log p(x), nats, summed over event axes, `[B]`:

    bernoulli             sum x l - softplus(l)                                    l logits, x in {0, 1} (or in [0, 1])
    gaussian              -1/2 sum (x - m)^2 / s^2 + log(2 pi s^2)
    gaussian_mixture      sum log sum_k softmax(l)_k N(x; m_k, s_k^2)              of each dimension its own
    categorical           sum log softmax(l)[x]                                    x in {0, ..., K - 1}
    discretized_logistic  sum log (F((x + h - m) / s) - F((x - h - m) / s))        F the sigmoid, h half a level

From logits throughout: no probability is formed whose logarithm could be -inf. `dequantised` makes of any density of
model units a lower bound of the log-probability of integers.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from genjax.arrays import expand, softplus, sum_events
from genjax.divergences import gaussian_log_density
from genjax.typing import Array, Key


def bernoulli(logits: Array, data: Array) -> Array:
    """`log p(data)` of independent bits with `p(1) = sigmoid(logits)`: `[B]`, nats.

    For grey values in (0, 1) this is the negative cross-entropy, which is no likelihood of the grey value.

    Args:
        logits: `[B, ...]`.
        data: `[B, ...]`, values in [0, 1].

    >>> bernoulli(jnp.zeros((1, 3)), jnp.ones((1, 3))) == -3 * jnp.log(2)
    Array([ True], dtype=bool)
    """
    return sum_events(data * logits - softplus(logits))


def gaussian(mean: Array, data: Array, *, log_variance: Array | float = 0.0) -> Array:
    """`log N(data; mean, diag exp(log_variance))`: `[B]`, nats.

    Args:
        mean: `[B, ...]`.
        data: `[B, ...]`.
        log_variance: a number (fixed), or `[B]` or `[B, ...]` (learned).
    """
    return gaussian_log_density(data, mean, jnp.broadcast_to(expand(log_variance, mean), mean.shape))


def gaussian_mixture(logits: Array, mean: Array, data: Array, *, log_scale: Array) -> Array:
    """`log p(data)` of dimensions that are each a mixture of K Gaussians on the line: `[B]`, nats.

    Args:
        logits: of the components, `[B, ..., K]`.
        mean: theirs, `[B, ..., K]`.
        data: `[B, ...]`.
        log_scale: log of their standard deviations, `[B, ..., K]`.

    Source: Bishop 1994, "Mixture density networks", eqs. 22 to 29.
    """
    standardised = (data[..., None] - mean) * jnp.exp(-log_scale)
    component = -0.5 * jnp.square(standardised) - log_scale - 0.5 * np.log(2 * np.pi)
    return sum_events(jax.nn.logsumexp(jax.nn.log_softmax(logits, axis=-1) + component, axis=-1))


def levels_of(data: Array, *, levels: int) -> Array:
    """The integers v in 0 .. levels - 1, int32, whose centres `(2 v - levels + 1) / levels` are nearest to `data`.

    >>> levels_of(jnp.asarray([-0.5, 0.5]), levels=2).tolist()
    [0, 1]
    """
    return jnp.clip(jnp.round((data * levels + levels - 1) / 2), 0, levels - 1).astype(jnp.int32)


def centres_of(values: Array, *, levels: int) -> Array:
    """`(2 v - levels + 1) / levels` of integers v: their place in model units, float32.

    >>> centres_of(jnp.arange(2), levels=2).tolist()
    [-0.5, 0.5]
    """
    return (2 * values.astype(jnp.float32) - levels + 1) / levels


def categorical(logits: Array, data: Array) -> Array:
    """`log p(data)` of independent categories: `[B]`, nats.

    Args:
        logits: `[B, ..., K]`.
        data: `[B, ...]` integers in 0 .. K - 1.
    """
    log_probability = jax.nn.log_softmax(logits, axis=-1)
    return sum_events(jnp.take_along_axis(log_probability, data[..., None], axis=-1))


def discretized_logistic(mean: Array, data: Array, *, log_scale: Array | float, levels: int) -> Array:
    """`log p(data)` of integers seen as bins of a logistic density: `[B]`, nats.

    A level is the bin of width 2 / levels around it; the lowest and the highest reach to infinity, so that the
    probabilities of all levels sum to 1.

    Args:
        mean: `[B, ...]`, in model units.
        data: `[B, ...]`, the centres `(2 v - levels + 1) / levels` of integers v in 0 .. levels - 1, which is what
            `Scaling.to_model` makes of integer images.
        log_scale: log of the logistic's scale: a number, `[B]` or `[B, ...]`.
        levels: how many there are.

    Source: Salimans et al. 2017 (PixelCNN++, arXiv 1701.05517), eq. 2, with bins of equal width.
    """
    half = 1 / levels
    inverse_scale = jnp.exp(-expand(log_scale, mean))
    upper, lower = inverse_scale * (data + half - mean), inverse_scale * (data - half - mean)
    # F(u) - F(l) = F(u) F(-l) (1 - e^(l - u))
    below, above = -softplus(-upper), -softplus(lower)
    inside = below + above + _log1mexp(upper - lower)
    lowest, highest = data < -1 + 2 * half, data > 1 - 2 * half
    return sum_events(jnp.where(lowest, below, jnp.where(highest, above, inside)))


def _log1mexp(x: Array) -> Array:
    """`log(1 - exp(-x))` for x > 0."""
    return jnp.where(x < np.log(2), jnp.log(-jnp.expm1(-x)), jnp.log1p(-jnp.exp(-jnp.maximum(x, np.log(2)))))


def dequantised(log_density: Callable[[Array], Array], key: Key, data: Array, *, levels: int) -> Array:
    """One draw of `log p(data + u) + D log(2 / levels)`, u uniform on a level's bin: `[B]`, nats.

    Its mean over u is at most `log P(data) = log` of the mass that p gives to the bins, by Jensen, and equal to it
    where p is constant in each bin: what a continuous density says of integers. `exp` of it has the mean `P(data)`.

    Args:
        log_density: of model units, `[B, ...] -> [B]`, nats.
        key: of the noise.
        data: `[B, ...]`, the centres `(2 v - levels + 1) / levels` of integers v in 0 .. levels - 1.
        levels: how many there are; 0 for continuous data, which get neither noise nor offset.

    Source: Theis et al. 2015 (arXiv 1511.01844), section 3.1.
    """
    if not levels:
        return log_density(data)
    half = 1 / levels
    noise = jax.random.uniform(key, data.shape, data.dtype, -half, half)
    return log_density(data + noise) + math.prod(data.shape[1:]) * math.log(2 * half)


def negative_log_likelihood(log_density: Array) -> Array:
    """`-log p(data)` as a loss, `[B]`, nats."""
    return -log_density


def bits_per_dim(log_density: Array, event_shape: tuple[int, ...], *, levels: int = 0) -> Array:
    """`-log2 p(data)` per dimension, `[B]`.

    Args:
        log_density: `log p`, `[B]`, nats: of integers; or of dequantised integers in model units, when `levels` is given.
        event_shape: of an example.
        levels: L for a density of model units, in which a level is 2 / L wide: adds `log2(L / 2)` a dimension, so
            that the result is that of the integers (Theis et al. 2015, arXiv 1511.01844, section 3.1).

    >>> bits_per_dim(jnp.log(jnp.full(1, 0.5**8)), (2, 2)).tolist()
    [2.0]
    """
    offset = np.log2(levels / 2) if levels else 0.0
    return -log_density / (np.log(2) * int(np.prod(event_shape))) + offset
