"""The U-Net of diffusion models for images: residual blocks told the time (and the label) by scale and shift.

Ho et al. 2020 (arXiv 2006.11239, appendix B), with the adaptive group normalisation of Dhariwal & Nichol 2021 (arXiv
2105.05233, section 3.1): `norm(h) (1 + scale) + shift`. The last layer of each block and of the network starts at 0.
"""

import flax.linen as nn
import jax.numpy as jnp

from genjax.networks.embeddings import ConditionEmbedding, check_inputs
from genjax.networks.initialisation import ones, zeros
from genjax.networks.layers import (
    compute_dtype,
    convolution,
    dense,
    doubling_convolution,
    group_norm,
    parameter_dtype,
    self_attention,
)
from genjax.networks.net import from_linen
from genjax.typing import Array, Net


def side_by_side(first: Array, second: Array) -> Array:
    """The channels of two images `[B, H, W, C]`, joined as rows of pixels: as images, XLA:CPU joins them anew for each use."""
    rows = [image.reshape(-1, image.shape[-1]) for image in (first, second)]
    return jnp.concatenate(rows, axis=-1).reshape(*first.shape[:3], -1)


class GroupNorm(nn.Module):
    """`group_norm` with a learned gain and shift for each channel."""

    groups: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`x [B, H, W, C]` normalised."""
        dtype = parameter_dtype(x.dtype)
        gain = self.param("gain", ones, (x.shape[-1],), dtype)
        shift = self.param("shift", zeros, (x.shape[-1],), dtype)
        return group_norm(x, self.groups, gain[None], shift[None])


class ResidualBlock(nn.Module):
    """norm, SiLU, conv, adaptive norm, SiLU, conv, plus the input (through a 1x1 where the channels change)."""

    channels: int
    groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, condition: Array) -> Array:
        """`x [B, H, W, C]`, `condition [B, E]` to `[B, H, W, channels]`."""
        hidden = nn.silu(GroupNorm(self.groups, name="norm_in")(x))
        hidden = convolution(self.channels, self.dtype, "conv_in")(hidden)
        scale, shift = jnp.split(dense(2 * self.channels, self.dtype, "modulation")(condition), 2, axis=-1)
        hidden = nn.silu(group_norm(hidden, self.groups, 1 + scale, shift))
        hidden = convolution(self.channels, self.dtype, "conv_out", kernel_init=zeros)(hidden)
        if x.shape[-1] != self.channels:
            x = dense(self.channels, self.dtype, "skip")(x)
        return x + hidden


class Attention(nn.Module):
    """Self-attention over the pixels, added to them, with heads of 64 channels; its last layer starts at 0."""

    groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`x [B, H, W, C]`, same shape out."""
        batch, height, width, channels = x.shape
        tokens = GroupNorm(self.groups, name="norm")(x).reshape(batch, height * width, channels)
        heads = channels // 64 if channels % 64 == 0 else 1
        mixed = self_attention(dense(3 * channels, self.dtype, "qkv")(tokens), heads)
        return x + dense(channels, self.dtype, "out", kernel_init=zeros)(mixed).reshape(x.shape)


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
        if x.ndim != 4:
            raise ValueError(f"x has shape {x.shape}; a unet takes images [B, H, W, C]")
        check_inputs(x, t, label, self.num_classes)
        dtype = compute_dtype(self.dtype, x)
        embed = ConditionEmbedding(4 * self.base, self.base, self.time_scale, self.num_classes, dtype)
        condition = nn.silu(embed(t, label))

        def block(hidden: Array, channels: int) -> Array:
            hidden = ResidualBlock(channels, self.groups, dtype)(hidden, condition)
            return Attention(self.groups, dtype)(hidden) if hidden.shape[1] in self.attention else hidden

        channels = [self.base * multiplier for multiplier in self.multipliers]
        hidden = convolution(channels[0], dtype)(x.astype(dtype))
        skips = []
        for level, width in enumerate(channels):
            for _ in range(self.blocks):
                hidden = block(hidden, width)
                skips.append(hidden)
            if level < len(channels) - 1:
                hidden = convolution(width, dtype, stride=2)(hidden)
        hidden = block(hidden, channels[-1])
        hidden = ResidualBlock(channels[-1], self.groups, dtype)(hidden, condition)
        for level, width in reversed(list(enumerate(channels))):
            for _ in range(self.blocks):
                hidden = block(side_by_side(hidden, skips.pop()), width)
            if level:
                _, height, image_width, _ = skips[-1].shape
                doubled = doubling_convolution(channels[level - 1], dtype)(hidden)
                hidden = doubled[:, :height, :image_width]
        hidden = nn.silu(GroupNorm(self.groups)(hidden))
        return convolution(x.shape[-1], dtype, "out", kernel_init=zeros)(hidden).astype(x.dtype)


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
        multipliers: channels of each level over `base`; each level but the first has half the side, rounded up.
        blocks: residual blocks a level, on either way.
        attention: heights at which blocks are followed by self-attention.
        groups: of the group normalisation.
        time_scale: multiplies t before the sinusoids; 1000 for a clock of [0, 1].
        num_classes: labels 0 .. K - 1, and K for none; 0 for a network without labels.
        dtype: of the computation; parameters and moments are float32 or wider, the result has the dtype of x.

    Raises:
        ValueError: `base` is no multiple of `groups`, or there is no multiplier; from `init` and `apply`, what is
            no image, or labels that do not fit.

    >>> import jax
    >>> net = unet(base=8, multipliers=(1, 2), blocks=1, attention=(4,))
    >>> x, t = jnp.ones((2, 8, 8, 1)), jnp.zeros(2)
    >>> params = net.init(jax.random.key(0), x, t)
    >>> jax.eval_shape(net.apply, params, x, t).shape
    (2, 8, 8, 1)
    """
    if not multipliers:
        raise ValueError("a unet needs at least one multiplier; got ()")
    if base % groups:
        raise ValueError(f"base is {base}; expected a multiple of groups, {groups}")
    return from_linen(UNet(base, tuple(multipliers), blocks, tuple(attention), groups, time_scale, num_classes, dtype))
