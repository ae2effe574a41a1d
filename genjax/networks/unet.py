"""The U-Net of diffusion models for images: residual blocks told the time (and the label) by scale and shift.

Ho et al. 2020 (arXiv 2006.11239, appendix B), with the adaptive group normalisation of Dhariwal & Nichol 2021 (arXiv
2105.05233, section 3.1): `norm(h) (1 + scale) + shift`. The last convolution of each block and of the network starts
at 0.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from genjax.networks.embeddings import ConditionEmbedding, check_inputs, parameter_dtype
from genjax.networks.initialisation import normal
from genjax.networks.net import from_linen
from genjax.typing import Array, Net


def group_norm(x: Array, groups: int, gain: Array, shift: Array, epsilon: float = 1e-5) -> Array:
    """`(x - mean) / sqrt(variance + epsilon) * gain + shift`, moments over pixels and the channels of a group.

    Args:
        x: `[B, H, W, C]`; moments are taken in float32 or wider.
        groups: divides C.
        gain: `[B, C]` or `[1, C]`.
        shift: like `gain`.
        epsilon: added to the variance.
    """
    batch, _, _, channels = x.shape
    pixels = x.astype(parameter_dtype(x.dtype))
    grouped = (batch, groups, channels // groups)

    def group_mean(values: Array) -> Array:
        return jnp.mean(jnp.mean(values, axis=(1, 2)).reshape(grouped), axis=-1, keepdims=True)

    mean = group_mean(pixels)
    variance = jnp.maximum(group_mean(jnp.square(pixels)) - jnp.square(mean), 0)
    scale = jax.lax.rsqrt(variance + epsilon) * gain.astype(pixels.dtype).reshape(-1, *grouped[1:])
    offset = shift.astype(pixels.dtype).reshape(-1, *grouped[1:]) - mean * scale
    scale, offset = scale.reshape(batch, 1, 1, channels), offset.reshape(batch, 1, 1, channels)
    return (pixels * scale + offset).astype(x.dtype)


class GroupNorm(nn.Module):
    """`group_norm` with a learned gain and shift for each channel."""

    groups: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`x [B, H, W, C]` normalised."""
        dtype = parameter_dtype(x.dtype)
        gain = self.param("gain", nn.initializers.ones, (x.shape[-1],), dtype)
        shift = self.param("shift", nn.initializers.zeros, (x.shape[-1],), dtype)
        return group_norm(x, self.groups, gain[None], shift[None])


class ResidualBlock(nn.Module):
    """norm, SiLU, conv, adaptive norm, SiLU, conv, plus the input (through a 1x1 where the channels change)."""

    channels: int
    groups: int
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, condition: Array) -> Array:
        """`x [B, H, W, C]`, `condition [B, E]` to `[B, H, W, channels]`."""
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        hidden = nn.silu(GroupNorm(self.groups, name="norm_in")(x))
        hidden = nn.Conv(self.channels, (3, 3), kernel_init=normal(), name="conv_in", **dtypes)(hidden)
        modulation = nn.Dense(2 * self.channels, kernel_init=normal(), name="modulation", **dtypes)(condition)
        scale, shift = jnp.split(modulation, 2, axis=-1)
        hidden = nn.silu(group_norm(hidden, self.groups, 1 + scale, shift))
        zeros = nn.initializers.zeros
        hidden = nn.Conv(self.channels, (3, 3), kernel_init=zeros, name="conv_out", **dtypes)(hidden)
        if x.shape[-1] != self.channels:
            x = nn.Dense(self.channels, kernel_init=normal(), name="skip", **dtypes)(x)
        return x + hidden


class Attention(nn.Module):
    """Self-attention over the pixels, `x + out(softmax(q k / sqrt(C)) v)`; the output layer starts at 0."""

    groups: int
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`x [B, H, W, C]`, same shape out; the softmax is in float32 or wider."""
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        batch, height, width, channels = x.shape
        tokens = GroupNorm(self.groups, name="norm")(x).reshape(batch, height * width, channels)
        qkv = nn.Dense(3 * channels, kernel_init=normal(), name="qkv", **dtypes)(tokens)
        query, keys, values = jnp.split(qkv, 3, axis=-1)
        logits = jnp.einsum("bic,bjc->bij", query, keys) / channels**0.5
        weights = jax.nn.softmax(logits.astype(parameter_dtype(x.dtype)), axis=-1).astype(x.dtype)
        mixed = jnp.einsum("bij,bjc->bic", weights, values)
        out = nn.Dense(channels, kernel_init=nn.initializers.zeros, name="out", **dtypes)(mixed)
        return x + out.reshape(x.shape)


class UNet(nn.Module):
    """`x [B, H, W, C]`, `t [B]`, `label [B]` to `[B, H, W, C]`."""

    base: int
    multipliers: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    groups: int
    time_scale: float
    num_classes: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, t: Array, label: Array | None = None) -> Array:
        """The prediction, of the shape and dtype of `x`."""
        check_inputs(x, t, label, self.num_classes)
        _check_size(x.shape, len(self.multipliers) - 1)
        compute = jnp.promote_types(self.dtype, x.dtype) if self.dtype == jnp.float32 else self.dtype
        dtypes: dict[str, Any] = {"dtype": compute, "param_dtype": parameter_dtype(compute)}
        condition = nn.silu(
            ConditionEmbedding(4 * self.base, self.base, self.time_scale, self.num_classes, compute)(t, label)
        )

        def convolution(features: int, stride: int = 1) -> nn.Conv:
            return nn.Conv(features, (3, 3), strides=stride, kernel_init=normal(), **dtypes)

        def block(hidden: Array, channels: int) -> Array:
            hidden = ResidualBlock(channels, self.groups, **dtypes)(hidden, condition)
            return Attention(self.groups, **dtypes)(hidden) if hidden.shape[1] in self.attention else hidden

        channels = [self.base * multiplier for multiplier in self.multipliers]
        hidden = convolution(channels[0])(x.astype(compute))
        skips = []
        for level, width in enumerate(channels):
            for _ in range(self.blocks):
                hidden = block(hidden, width)
                skips.append(hidden)
            if level < len(channels) - 1:
                hidden = convolution(width, stride=2)(hidden)
        hidden = block(hidden, channels[-1])
        hidden = ResidualBlock(channels[-1], self.groups, **dtypes)(hidden, condition)
        for level, width in reversed(list(enumerate(channels))):
            for _ in range(self.blocks):
                hidden = block(jnp.concatenate([hidden, skips.pop()], axis=-1), width)
            if level:
                hidden = convolution(channels[level - 1])(_double(hidden))
        hidden = nn.silu(GroupNorm(self.groups)(hidden))
        out = nn.Conv(x.shape[-1], (3, 3), kernel_init=nn.initializers.zeros, name="out", **dtypes)(hidden)
        return out.astype(x.dtype)


def _double(x: Array) -> Array:
    """Nearest-neighbour enlargement, `[B, H, W, C]` to `[B, 2H, 2W, C]`."""
    batch, height, width, channels = x.shape
    repeated = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
    return repeated.reshape(batch, 2 * height, 2 * width, channels)


def _check_size(shape: tuple[int, ...], halvings: int) -> None:
    factor = 2**halvings
    if len(shape) != 4 or shape[1] % factor or shape[2] % factor:
        raise ValueError(
            f"images of shape {shape[1:]} cannot be halved {halvings} times; expected [H, W, C] with H and W "
            f"multiples of {factor}, or fewer multipliers"
        )


def unet(
    *,
    base: int = 32,
    multipliers: tuple[int, ...] = (1, 2, 2),
    blocks: int = 2,
    attention: tuple[int, ...] = (7,),
    groups: int = 8,
    time_scale: float = 1000.0,
    num_classes: int = 0,
    dtype: jnp.dtype = jnp.float32,
) -> Net:
    """A U-Net `(x [B, H, W, C], t [B][, label [B]]) -> [B, H, W, C]`, 0 at initialisation.

    Args:
        base: channels of the first level, a multiple of `groups`.
        multipliers: channels of each level over `base`; each level but the first has half the side.
        blocks: residual blocks a level, on either way.
        attention: heights at which blocks are followed by self-attention.
        groups: of the group normalisation.
        time_scale: multiplies t before the sinusoids; 1000 for a clock of [0, 1].
        num_classes: labels 0 .. K - 1, and K for none; 0 for a network without labels.
        dtype: of the computation; parameters and moments are float32 or wider, the result has the dtype of x.

    Raises:
        ValueError: `base` is no multiple of `groups`; from `init` and `apply`, an image that cannot be halved.
    """
    if base % groups:
        raise ValueError(f"base is {base}; expected a multiple of groups, {groups}")
    module = UNet(base, tuple(multipliers), blocks, tuple(attention), groups, time_scale, num_classes, dtype)
    return from_linen(module)
