"""Networks of couplings and of other parameters-of-a-map: 0 at initialisation, so that the map starts as the identity.

A label adds a learned vector to the features of the first layer.
"""

import flax.linen as nn
import jax.numpy as jnp

from genjax.networks.initialisation import zeros
from genjax.networks.layers import check_label, compute_dtype, convolution, dense, table
from genjax.networks.net import from_linen
from genjax.typing import Array, Net


class PointConditioner(nn.Module):
    """`x [B, K]`, `label [B]` to `[B, outputs]`, by residual blocks of two layers."""

    outputs: int
    width: int
    blocks: int
    num_classes: int

    @nn.compact
    def __call__(self, x: Array, label: Array | None = None) -> Array:
        """Parameters of the coordinates that are changed."""
        dtype = compute_dtype(jnp.float32, x)
        hidden = _with_label(dense(self.width, dtype, "in")(x), label, self.num_classes)
        for index in range(self.blocks):
            inner = nn.silu(dense(self.width, dtype, f"widen_{index}")(nn.silu(hidden)))
            hidden = hidden + dense(self.width, dtype, f"narrow_{index}")(inner)
        return dense(self.outputs, dtype, "out", kernel_init=zeros)(nn.silu(hidden))


class ImageConditioner(nn.Module):
    """`x [B, H, W, K]`, `label [B]` to `[B, H, W, outputs]`, by residual blocks of two 3x3 convolutions."""

    outputs: int
    width: int
    blocks: int
    num_classes: int

    @nn.compact
    def __call__(self, x: Array, label: Array | None = None) -> Array:
        """Parameters of the channels that are changed."""
        dtype = compute_dtype(jnp.float32, x)
        hidden = _with_label(convolution(self.width, dtype, "in")(x), label, self.num_classes)
        for index in range(self.blocks):
            inner = nn.silu(convolution(self.width, dtype, f"first_{index}")(nn.silu(hidden)))
            hidden = hidden + convolution(self.width, dtype, f"second_{index}")(inner)
        return convolution(self.outputs, dtype, "out", kernel_init=zeros)(nn.silu(hidden))


def _with_label(hidden: Array, label: Array | None, num_classes: int) -> Array:
    """Called within a module, whose layer this is."""
    check_label(hidden, label, num_classes)
    if label is None:
        return hidden
    vector = table(num_classes, hidden.shape[-1], hidden.dtype, "label")(label)
    return hidden + vector.reshape(len(vector), *(1,) * (hidden.ndim - 2), -1)


def point_conditioner(outputs: int, *, width: int = 128, blocks: int = 1, num_classes: int = 0) -> Net:
    """A residual perceptron `(x [B, K][, label [B]]) -> [B, outputs]`, 0 at initialisation."""
    return from_linen(PointConditioner(outputs, width, blocks, num_classes))


def image_conditioner(outputs: int, *, width: int = 64, blocks: int = 1, num_classes: int = 0) -> Net:
    """A residual convolutional network `(x [B, H, W, K][, label [B]]) -> [B, H, W, outputs]`, 0 at initialisation."""
    return from_linen(ImageConditioner(outputs, width, blocks, num_classes))
