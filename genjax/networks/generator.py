"""Generators of adversarial methods: from a latent, and a label if any, to an example in one pass.

A label is appended to the latent as a one-hot vector. Points leave a perceptron of `leaky` units: a piecewise linear map
may pass from one mode to another as steeply as it needs to. Images leave the decoder of an autoencoder, squashed into
(-1, 1) (Radford et al. 2016, arXiv 1511.06434).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from genjax.networks.autoencoder import ImageDecoder, check_halvings
from genjax.networks.critic import keeping_size, leaky
from genjax.networks.layers import check_label, compute_dtype, dense
from genjax.networks.net import from_linen
from genjax.typing import Array, Net


class PointGenerator(nn.Module):
    """`z [B, L]`, `label [B]` to `[B, dimension]`."""

    dimension: int
    features: tuple[int, ...]
    num_classes: int

    @nn.compact
    def __call__(self, z: Array, label: Array | None = None) -> Array:
        """The output of the last layer, which has no activation."""
        dtype = compute_dtype(jnp.float32, z)
        hidden = _with_label(z, label, self.num_classes)
        for index, features in enumerate(self.features):
            hidden = leaky(dense(features, dtype, f"hidden_{index}", keeping_size(hidden.shape[-1]))(hidden))
        return dense(self.dimension, dtype, "out")(hidden)


class ImageGenerator(nn.Module):
    """`z [B, L]`, `label [B]` to `[B, H, W, C]` in (-1, 1)."""

    event_shape: tuple[int, ...]
    base: int
    halvings: int
    num_classes: int

    @nn.compact
    def __call__(self, z: Array, label: Array | None = None) -> Array:
        """The image."""
        decoder = ImageDecoder(self.event_shape, self.base, self.halvings, name="decoder")
        return jnp.tanh(decoder(_with_label(z, label, self.num_classes)))


def _with_label(z: Array, label: Array | None, num_classes: int) -> Array:
    check_label(z, label, num_classes)
    if label is None:
        return z
    return jnp.concatenate([z, jax.nn.one_hot(label, num_classes, dtype=z.dtype)], axis=-1)


def point_generator(dimension: int, *, features: tuple[int, ...] = (128, 128, 128), num_classes: int = 0) -> Net:
    """A perceptron `(z [B, L][, label [B]]) -> [B, dimension]`.

    Args:
        dimension: of a point.
        features: width of each hidden layer.
        num_classes: labels 0 .. K - 1; 0 for a generator without labels.
    """
    return from_linen(PointGenerator(dimension, tuple(features), num_classes))


def image_generator(event_shape: tuple[int, ...], *, base: int = 32, halvings: int = 2, num_classes: int = 0) -> Net:
    """Convolutions behind nearest-neighbour enlargement, `(z [B, L][, label [B]]) -> [B, H, W, C]`.

    Args:
        event_shape: `(H, W, C)`.
        base: channels at full size.
        halvings: how much smaller the coarsest features are, as a power of 2.
        num_classes: labels 0 .. K - 1; 0 for a generator without labels.

    Raises:
        ValueError: sides that cannot be halved so often.
    """
    check_halvings(event_shape, halvings)
    return from_linen(ImageGenerator(tuple(event_shape), base, halvings, num_classes))
