"""Critics: from examples, and labels if any, to one logit each; no normalisation mixes the examples of a batch.

A label enters by projection, `logit = w . h(x) + e_label . h(x)` (Miyato & Koyama 2018, arXiv 1802.05637, eq. 4).

A perceptron is slow to learn structure much finer than its input (Rahaman et al. 2019, arXiv 1806.08734); points are
therefore also shown as `cos(2^k x)` and `sin(2^k x)`, k = 0, 1, ... (Tancik et al. 2020, 2006.10739, section 6).
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from genjax.networks import initialisation
from genjax.networks.autoencoder import HIDDEN, check_halvings
from genjax.networks.layers import check_label, compute_dtype, convolution, dense, table
from genjax.networks.net import from_linen
from genjax.typing import Array, Net, Params


def leaky(x: Array) -> Array:
    """`max(x, 0.2 x)`: no unit is ever without a gradient."""
    return jax.nn.leaky_relu(x, 0.2)


def octave_features(x: Array, octaves: int) -> Array:
    """`[x, cos(2^k x), sin(2^k x)]` for k = 0 .. octaves - 1, on each axis: `[B, D]` to `[B, D (1 + 2 octaves)]`.

    >>> octave_features(jnp.zeros((1, 1)), 2).tolist()
    [[0.0, 1.0, 1.0, 0.0, 0.0]]
    """
    angles = (x[:, :, None] * jnp.asarray(2.0 ** np.arange(octaves), x.dtype)[None, None, :]).reshape(len(x), -1)
    return jnp.concatenate([x, jnp.cos(angles), jnp.sin(angles)], axis=-1)


class PointCritic(nn.Module):
    """`x [B, D]`, `label [B]` to logits `[B]`."""

    features: tuple[int, ...]
    octaves: int
    num_classes: int

    @nn.compact
    def __call__(self, x: Array, label: Array | None = None) -> Array:
        """The logits."""
        dtype = compute_dtype(jnp.float32, x)
        hidden = octave_features(x.astype(dtype), self.octaves)
        for index, features in enumerate(self.features):
            hidden = leaky(dense(features, dtype, f"hidden_{index}", keeping_size(hidden.shape[-1]))(hidden))
        return _logits(hidden, label, self.num_classes, dtype)


class ImageCritic(nn.Module):
    """`x [B, H, W, C]`, `label [B]` to logits `[B]`."""

    base: int
    halvings: int
    num_classes: int

    @nn.compact
    def __call__(self, x: Array, label: Array | None = None) -> Array:
        """The logits."""
        dtype = compute_dtype(jnp.float32, x)
        hidden = leaky(convolution(self.base, dtype, "in", kernel_init=keeping_size(9 * x.shape[-1]))(x))
        for level in range(1, self.halvings + 1):
            init = keeping_size(9 * hidden.shape[-1])
            layer = convolution(self.base * 2**level, dtype, f"down_{level}", stride=2, kernel_init=init)
            hidden = leaky(layer(hidden))
        hidden = hidden.reshape(len(hidden), -1)
        hidden = leaky(dense(HIDDEN, dtype, "hidden", keeping_size(hidden.shape[-1]))(hidden))
        return _logits(hidden, label, self.num_classes, dtype)


def keeping_size(fan_in: int) -> initialisation.Initializer:
    """The initializer under which `leaky` leaves features about as large as they were."""
    return initialisation.normal(math.sqrt(2 / fan_in))


def _logits(hidden: Array, label: Array | None, num_classes: int, dtype: jnp.dtype) -> Array:
    """`w . h + b`, plus `e_label . h`; called within a module, whose layers these are."""
    check_label(hidden, label, num_classes)
    logits = dense(1, dtype, "out")(hidden)[:, 0]
    if label is None:
        return logits
    width = hidden.shape[-1]
    return logits + jnp.sum(table(num_classes, width, dtype, "label", std=width**-0.5)(label) * hidden, axis=-1)


def point_critic(*, features: tuple[int, ...] = (128, 128, 128), octaves: int = 7, num_classes: int = 0) -> Net:
    """A perceptron `(x [B, D][, label [B]]) -> [B]` on `octave_features(x, octaves)`.

    Args:
        features: width of each hidden layer.
        octaves: the finest wave has a length of `2 pi / 2^(octaves - 1)` in units of `x`; 0 for `x` alone.
        num_classes: labels 0 .. K - 1; 0 for a critic without labels.
    """
    return from_linen(PointCritic(tuple(features), octaves, num_classes))


def image_critic(event_shape: tuple[int, ...], *, base: int = 32, halvings: int = 2, num_classes: int = 0) -> Net:
    """Strided convolutions `(x [B, H, W, C][, label [B]]) -> [B]`.

    Args:
        event_shape: `(H, W, C)`.
        base: channels at full size, doubled with each halving.
        halvings: how often the sides are halved.
        num_classes: labels 0 .. K - 1; 0 for a critic without labels.

    Raises:
        ValueError: sides that cannot be halved so often.
    """
    check_halvings(event_shape, halvings)
    return from_linen(ImageCritic(base, halvings, num_classes))


def spectral_normalise(params: Params, *, squarings: int = 12) -> Params:
    """Every kernel divided by its largest singular value, so that its layer stretches no distance.

    A convolution's kernel is the matrix `[height * width * channels, features]`; as overlapping patches see a pixel up to
    height * width times, the convolution itself may stretch by the root of that.

    The value is that of power iteration, `sigma^2 = tr(P G)` with `G = W^T W` and `P = G^n / tr(G^n)`, n reached by
    repeated squaring: no start vector, and no state. Gradients see P as a constant, as they see the singular vectors in
    the source.

    Args:
        params: of a network; leaves called `kernel` are changed, others kept.
        squarings: n is 2 to this power; sigma is then too small by a factor of at least about `1 - log(width) / (2 n)`.

    Source: Miyato et al. 2018 (arXiv 1802.05957), eqs 8 and 12.
    """

    def normalised(path: tuple[jax.tree_util.DictKey, ...], leaf: Array) -> Array:
        return leaf / _spectral_norm(leaf, squarings) if path[-1].key == "kernel" else leaf

    return jax.tree_util.tree_map_with_path(normalised, params)


def _spectral_norm(kernel: Array, squarings: int) -> Array:
    matrix = kernel.reshape(-1, kernel.shape[-1])
    rows, columns = matrix.shape
    gram = matrix.T @ matrix if rows >= columns else matrix @ matrix.T
    power = gram / jnp.trace(gram)
    for _ in range(squarings):
        power = power @ power
        power = power / jnp.trace(power)
    return jnp.sqrt(jnp.sum(jax.lax.stop_gradient(power) * gram))
