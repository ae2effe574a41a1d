"""The diffusion transformer: patches as tokens, told the time (and the label) by adaptive layer norms.

Peebles & Xie 2023 (arXiv 2212.09748), the adaLN-zero block: scale, shift and gate of both branches are regressed from
the condition by a layer that starts at 0, so that each block starts as the identity and the network at 0.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from genjax.networks.embeddings import ConditionEmbedding, check_inputs, parameter_dtype, positions_2d
from genjax.networks.initialisation import normal
from genjax.networks.net import from_linen
from genjax.typing import Array, Net


def layer_norm(x: Array, epsilon: float = 1e-6) -> Array:
    """`(x - mean) / sqrt(variance + epsilon)` over the last axis, moments in float32 or wider."""
    values = x.astype(parameter_dtype(x.dtype))
    centred = values - jnp.mean(values, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    return (centred * jax.lax.rsqrt(variance + epsilon)).astype(x.dtype)


def _modulate(x: Array, shift: Array, scale: Array) -> Array:
    return x * (1 + scale[:, None, :]) + shift[:, None, :]


class Block(nn.Module):
    """Self-attention and a perceptron, each `x + gate * branch(norm(x) (1 + scale) + shift)`."""

    heads: int
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, condition: Array) -> Array:
        """Tokens `x [B, N, D]` and `condition [B, D]` to `[B, N, D]`."""
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        batch, tokens, width = x.shape
        zeros = nn.initializers.zeros
        modulation = nn.Dense(6 * width, kernel_init=zeros, name="modulation", **dtypes)(nn.silu(condition))
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = jnp.split(modulation, 6, axis=-1)
        qkv = nn.Dense(3 * width, kernel_init=normal(), name="qkv", **dtypes)(
            _modulate(layer_norm(x), shift_a, scale_a)
        )
        query, keys, values = jnp.moveaxis(qkv.reshape(batch, tokens, 3, self.heads, width // self.heads), 2, 0)
        logits = jnp.einsum("bihc,bjhc->bhij", query, keys) / (width // self.heads) ** 0.5
        weights = jax.nn.softmax(logits.astype(parameter_dtype(x.dtype)), axis=-1).astype(x.dtype)
        mixed = jnp.einsum("bhij,bjhc->bihc", weights, values).reshape(batch, tokens, width)
        mixed = nn.Dense(width, kernel_init=normal(), name="attended", **dtypes)(mixed)
        x = x + gate_a[:, None, :] * mixed
        hidden = nn.Dense(4 * width, kernel_init=normal(), name="widen", **dtypes)(
            _modulate(layer_norm(x), shift_m, scale_m)
        )
        hidden = nn.Dense(width, kernel_init=normal(), name="narrow", **dtypes)(nn.gelu(hidden))
        return x + gate_m[:, None, :] * hidden


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
        check_inputs(x, t, label, self.num_classes)
        batch, height, width, channels = _checked_shape(x.shape, self.patch)
        compute = jnp.promote_types(self.dtype, x.dtype) if self.dtype == jnp.float32 else self.dtype
        dtypes: dict[str, Any] = {"dtype": compute, "param_dtype": parameter_dtype(compute)}
        rows, columns, side = height // self.patch, width // self.patch, self.patch
        patches = x.reshape(batch, rows, side, columns, side, channels).swapaxes(2, 3)
        patches = patches.reshape(batch, rows * columns, side * side * channels).astype(compute)
        positions = jnp.asarray(positions_2d(rows, columns, self.width), compute)
        tokens = nn.Dense(self.width, kernel_init=normal(), name="embed", **dtypes)(patches) + positions[None]
        condition = ConditionEmbedding(self.width, 256, self.time_scale, self.num_classes, compute)(t, label)
        for _ in range(self.depth):
            tokens = Block(self.heads, **dtypes)(tokens, condition)
        zeros = nn.initializers.zeros
        modulation = nn.Dense(2 * self.width, kernel_init=zeros, name="modulation", **dtypes)(nn.silu(condition))
        shift, scale = jnp.split(modulation, 2, axis=-1)
        out = nn.Dense(side * side * channels, kernel_init=zeros, name="out", **dtypes)(
            _modulate(layer_norm(tokens), shift, scale)
        )
        return out.reshape(batch, rows, columns, side, side, channels).swapaxes(2, 3).reshape(x.shape).astype(x.dtype)


def _checked_shape(shape: tuple[int, ...], patch: int) -> tuple[int, ...]:
    if len(shape) != 4 or shape[1] % patch or shape[2] % patch:
        raise ValueError(
            f"images of shape {shape[1:]} cannot be cut into patches; expected [H, W, C] with H and W "
            f"multiples of {patch}"
        )
    return shape


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
            do not tile.
    """
    if width % heads or width % 4:
        raise ValueError(f"width is {width}; expected a multiple of heads, {heads}, and of 4")
    return from_linen(DiT(patch, width, depth, heads, time_scale, num_classes, dtype))
