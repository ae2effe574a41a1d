"""Networks of couplings and of other parameters-of-a-map: 0 at initialisation, so that the map starts as the identity."""

import flax.linen as nn
import jax.numpy as jnp

from genjax.networks.initialisation import zeros
from genjax.networks.layers import compute_dtype, convolution, dense
from genjax.networks.net import from_linen
from genjax.typing import Array, Net


class PointConditioner(nn.Module):
    """`x [B, K]` to `[B, outputs]`, by residual blocks of two layers."""

    outputs: int
    width: int
    blocks: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Parameters of the coordinates that are changed."""
        dtype = compute_dtype(jnp.float32, x)
        hidden = dense(self.width, dtype, "in")(x)
        for index in range(self.blocks):
            inner = nn.silu(dense(self.width, dtype, f"widen_{index}")(nn.silu(hidden)))
            hidden = hidden + dense(self.width, dtype, f"narrow_{index}")(inner)
        return dense(self.outputs, dtype, "out", kernel_init=zeros)(nn.silu(hidden))


class ImageConditioner(nn.Module):
    """`x [B, H, W, K]` to `[B, H, W, outputs]`, by residual blocks of two 3x3 convolutions."""

    outputs: int
    width: int
    blocks: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Parameters of the channels that are changed."""
        dtype = compute_dtype(jnp.float32, x)
        hidden = convolution(self.width, dtype, "in")(x)
        for index in range(self.blocks):
            inner = nn.silu(convolution(self.width, dtype, f"first_{index}")(nn.silu(hidden)))
            hidden = hidden + convolution(self.width, dtype, f"second_{index}")(inner)
        return convolution(self.outputs, dtype, "out", kernel_init=zeros)(nn.silu(hidden))


def point_conditioner(outputs: int, *, width: int = 128, blocks: int = 1) -> Net:
    """A residual perceptron `x [B, K] -> [B, outputs]`, 0 at initialisation."""
    return from_linen(PointConditioner(outputs, width, blocks))


def image_conditioner(outputs: int, *, width: int = 64, blocks: int = 1) -> Net:
    """A residual convolutional network `x [B, H, W, K] -> [B, H, W, outputs]`, 0 at initialisation."""
    return from_linen(ImageConditioner(outputs, width, blocks))
