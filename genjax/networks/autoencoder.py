"""Encoders and decoders of latent-variable models: perceptrons for points, convolutions for images.

An encoder halves an image by strided convolutions and doubles its channels each time; the decoder mirrors it with
nearest-neighbour enlargement (Odena et al. 2016, "Deconvolution and checkerboard artifacts", doi 10.23915/distill.00003).
"""

import math

import flax.linen as nn
import jax.numpy as jnp

from genjax.networks.layers import compute_dtype, convolution, dense, doubling_convolution
from genjax.networks.net import from_linen
from genjax.typing import Array, Net

HIDDEN = 256
"""Width of the layer between an image's features and its latent."""


class Perceptron(nn.Module):
    """`x [B, D]` to `[B, outputs]`."""

    features: tuple[int, ...]
    outputs: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """The output of the last layer, which has no activation."""
        dtype = compute_dtype(jnp.float32, x)
        for index, features in enumerate(self.features):
            x = nn.silu(dense(features, dtype, f"hidden_{index}")(x))
        return dense(self.outputs, dtype, "out")(x)


class ImageEncoder(nn.Module):
    """`x [B, H, W, C]` to `[B, outputs]`."""

    base: int
    halvings: int
    outputs: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """The output of the last layer, which has no activation."""
        dtype = compute_dtype(jnp.float32, x)
        hidden = _halved(x, self.base, self.halvings, dtype)
        hidden = nn.silu(dense(HIDDEN, dtype, "hidden")(hidden.reshape(len(hidden), -1)))
        return dense(self.outputs, dtype, "out")(hidden)


class MapEncoder(nn.Module):
    """`x [B, H, W, C]` to `[B, H', W', outputs]`, the sides halved."""

    base: int
    halvings: int
    outputs: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """The output of the last layer, which has no activation."""
        dtype = compute_dtype(jnp.float32, x)
        return convolution(self.outputs, dtype, "out")(_halved(x, self.base, self.halvings, dtype))


class ImageDecoder(nn.Module):
    """`z [B, L]` to `[B, H, W, C]`."""

    event_shape: tuple[int, ...]
    base: int
    halvings: int

    @nn.compact
    def __call__(self, z: Array) -> Array:
        """The output of the last layer, which has no activation."""
        dtype = compute_dtype(jnp.float32, z)
        height, width, channels = self.event_shape
        coarse = (height // 2**self.halvings, width // 2**self.halvings, self.base * 2**self.halvings)
        hidden = nn.silu(dense(HIDDEN, dtype, "hidden")(z))
        hidden = nn.silu(dense(math.prod(coarse), dtype, "in")(hidden)).reshape(len(z), *coarse)
        return convolution(channels, dtype, "out")(_doubled(hidden, self.base, self.halvings, dtype))


class MapDecoder(nn.Module):
    """`z [B, H', W', L]` to `[B, H, W, channels]`, the sides doubled."""

    channels: int
    base: int
    halvings: int

    @nn.compact
    def __call__(self, z: Array) -> Array:
        """The output of the last layer, which has no activation."""
        dtype = compute_dtype(jnp.float32, z)
        hidden = nn.silu(convolution(self.base * 2**self.halvings, dtype, "in")(z))
        return convolution(self.channels, dtype, "out")(_doubled(hidden, self.base, self.halvings, dtype))


def _halved(x: Array, base: int, halvings: int, dtype: jnp.dtype) -> Array:
    hidden = nn.silu(convolution(base, dtype, "in")(x))
    for level in range(1, halvings + 1):
        hidden = nn.silu(convolution(base * 2**level, dtype, f"down_{level}", stride=2)(hidden))
    return hidden


def _doubled(hidden: Array, base: int, halvings: int, dtype: jnp.dtype) -> Array:
    for level in reversed(range(halvings)):
        hidden = nn.silu(doubling_convolution(base * 2**level, dtype, f"up_{level}")(hidden))
    return hidden


def point_encoder(outputs: int, *, features: tuple[int, ...] = (256, 256)) -> Net:
    """A perceptron `x [B, D] -> [B, outputs]` with hidden layers of these `features`."""
    return from_linen(Perceptron(tuple(features), outputs))


def point_decoder(outputs: int, *, features: tuple[int, ...] = (256, 256)) -> Net:
    """A perceptron `z [B, L] -> [B, outputs]` with hidden layers of these `features`."""
    return from_linen(Perceptron(tuple(features), outputs))


def image_encoder(event_shape: tuple[int, ...], outputs: int, *, base: int = 32, halvings: int = 2) -> Net:
    """Convolutions `x [B, H, W, C] -> [B, outputs]`.

    Args:
        event_shape: `(H, W, C)`.
        outputs: how many.
        base: channels at full size.
        halvings: how often the sides are halved.

    Raises:
        ValueError: sides that cannot be halved so often.
    """
    check_halvings(event_shape, halvings)
    return from_linen(ImageEncoder(base, halvings, outputs))


def image_decoder(event_shape: tuple[int, ...], *, base: int = 32, halvings: int = 2) -> Net:
    """Convolutions `z [B, L] -> [B, H, W, C]`; arguments and errors of `image_encoder`."""
    check_halvings(event_shape, halvings)
    return from_linen(ImageDecoder(tuple(event_shape), base, halvings))


def map_encoder(event_shape: tuple[int, ...], outputs: int, *, base: int = 32, halvings: int = 2) -> Net:
    """Convolutions `x [B, H, W, C] -> [B, H / 2^halvings, W / 2^halvings, outputs]`, else as `image_encoder`."""
    check_halvings(event_shape, halvings)
    return from_linen(MapEncoder(base, halvings, outputs))


def map_decoder(event_shape: tuple[int, ...], *, base: int = 32, halvings: int = 2) -> Net:
    """Convolutions `z [B, H / 2^halvings, W / 2^halvings, L] -> [B, H, W, C]`, else as `image_encoder`."""
    check_halvings(event_shape, halvings)
    return from_linen(MapDecoder(event_shape[-1], base, halvings))


def check_halvings(event_shape: tuple[int, ...], halvings: int) -> None:
    """Refuse (ValueError) images whose sides cannot be halved so often."""
    height, width, _ = event_shape
    if height % 2**halvings or width % 2**halvings:
        raise ValueError(
            f"images of {height}x{width} cannot be halved {halvings} times: "
            f"pad or crop them to a multiple of {2**halvings}"
        )
