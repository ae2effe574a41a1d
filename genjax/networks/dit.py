"""The diffusion transformer: patches as tokens, told the time (and the label) by adaptive layer norms.

Peebles & Xie 2023 (arXiv 2212.09748), the adaLN-zero block: scale, shift and gate of both branches are regressed from
the condition by a layer that starts at 0, so that each block starts as the identity and the network at 0.
"""

import flax.linen as nn
import jax.numpy as jnp

from genjax.networks.embeddings import ConditionEmbedding, check_inputs, positions_2d
from genjax.networks.initialisation import zeros
from genjax.networks.layers import compute_dtype, dense, layer_norm, rows, self_attention
from genjax.networks.net import from_linen
from genjax.typing import Array, Net


class Block(nn.Module):
    """Self-attention and a perceptron, each `x + gate * branch(norm(x) (1 + scale) + shift)`."""

    heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, condition: Array) -> Array:
        """Tokens `x [B, N, D]` and `condition [B, D]` to `[B, N, D]`."""
        _, tokens, width = x.shape
        modulation = dense(6 * width, self.dtype, "modulation", kernel_init=zeros)(nn.silu(condition))
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = jnp.split(rows(modulation, tokens), 6, axis=-1)
        qkv = dense(3 * width, self.dtype, "qkv")(layer_norm(x) * (1 + scale_a) + shift_a)
        x = x + gate_a * dense(width, self.dtype, "attended")(self_attention(qkv, self.heads))
        hidden = dense(4 * width, self.dtype, "widen")(layer_norm(x) * (1 + scale_m) + shift_m)
        return x + gate_m * dense(width, self.dtype, "narrow")(nn.gelu(hidden))


class DiT(nn.Module):
    """`x [B, H, W, C]`, `t [B]`, `label [B]` to `[B, H, W, C]`."""

    patch: int
    width: int
    depth: int
    heads: int
    time_scale: float
    num_classes: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, t: Array, label: Array | None = None) -> Array:
        """The prediction, of the shape and dtype of `x`."""
        _check_size(x.shape, self.patch)
        check_inputs(x, t, label, self.num_classes)
        dtype = compute_dtype(self.dtype, x)
        batch, height, width, channels = x.shape
        side, down, across = self.patch, height // self.patch, width // self.patch
        patches = x.reshape(batch, down, side, across, side, channels).swapaxes(2, 3)
        tokens = patches.reshape(batch, down * across, side * side * channels).astype(dtype)
        positions = jnp.asarray(positions_2d(down, across, self.width), dtype)
        tokens = dense(self.width, dtype, "embed")(tokens) + positions[None]
        condition = ConditionEmbedding(self.width, 256, self.time_scale, self.num_classes, dtype)(t, label)
        for _ in range(self.depth):
            tokens = Block(self.heads, dtype)(tokens, condition)
        modulation = dense(2 * self.width, dtype, "modulation", kernel_init=zeros)(nn.silu(condition))
        shift, scale = jnp.split(rows(modulation, down * across), 2, axis=-1)
        tokens = layer_norm(tokens) * (1 + scale) + shift
        patches = dense(side * side * channels, dtype, "out", kernel_init=zeros)(tokens)
        patches = patches.reshape(batch, down, across, side, side, channels).swapaxes(2, 3)
        return patches.reshape(x.shape).astype(x.dtype)


def _check_size(shape: tuple[int, ...], patch: int) -> None:
    if len(shape) != 4:
        raise ValueError(f"x has shape {shape}; a dit takes images [B, H, W, C]")
    height, width = shape[1:3]
    if height % patch or width % patch:
        divisors = [str(n) for n in range(1, min(height, width) + 1) if height % n == 0 and width % n == 0]
        raise ValueError(
            f"images of {height}x{width} cannot be cut into patches of {patch}x{patch}: "
            f"give a patch that divides both sides ({', '.join(divisors)})"
        )


def dit(
    *,
    patch: int = 4,
    width: int = 256,
    depth: int = 6,
    heads: int = 4,
    time_scale: float = 1000.0,
    num_classes: int = 0,
    dtype: jnp.dtype = jnp.float32,
) -> Net:
    """A diffusion transformer `(x [B, H, W, C], t [B][, label [B]]) -> [B, H, W, C]`, 0 at initialisation.

    Args:
        patch: side of a token's patch; divides H and W.
        width: of a token, a multiple of `heads` and of 4.
        depth: blocks.
        heads: of the attention.
        time_scale: multiplies t before the sinusoids; 1000 for a clock of [0, 1].
        num_classes: labels 0 .. K - 1, and K for none; 0 for a network without labels.
        dtype: of the computation; parameters and moments are float32 or wider, the result has the dtype of x.

    Raises:
        ValueError: `width` is no multiple of `heads` or of 4; from `init` and `apply`, an image that patches
            do not tile, or labels that do not fit.
    """
    if width % heads or width % 4:
        raise ValueError(f"width is {width}; expected a multiple of heads, {heads}, and of 4")
    return from_linen(DiT(patch, width, depth, heads, time_scale, num_classes, dtype))
