"""What the networks share: layers with this package's initializers, norms and attention with safe statistics."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from genjax.networks import initialisation
from genjax.networks.initialisation import Initializer
from genjax.typing import Array

_FAN_IN = initialisation.normal()
_SELU_SCALE, _SELU_ALPHA = 1.0507009873554805, 1.6732632423543772


def compute_dtype(dtype: Any, x: Array) -> jnp.dtype:
    """What a network asked for `dtype` computes `x` in: `dtype`, or float64 where float32 was asked and `x` is that."""
    dtype = jnp.dtype(dtype)
    return jnp.promote_types(dtype, x.dtype) if dtype == jnp.float32 else dtype


def parameter_dtype(dtype: Any) -> jnp.dtype:
    """The dtype of parameters and statistics under compute `dtype`: itself, but at least float32."""
    return jnp.promote_types(dtype, jnp.float32)


def dense(features: int, dtype: jnp.dtype, name: str | None = None, kernel_init: Initializer = _FAN_IN) -> nn.Dense:
    """`x W + b`, by default `W ~ N(0, 1 / fan in)` and `b = 0`."""
    return nn.Dense(
        features,
        dtype=dtype,
        param_dtype=parameter_dtype(dtype),
        kernel_init=kernel_init,
        bias_init=initialisation.zeros,
        name=name,
    )


def convolution(
    features: int,
    dtype: jnp.dtype,
    name: str | None = None,
    stride: int = 1,
    kernel_init: Initializer = _FAN_IN,
) -> nn.Conv:
    """A 3x3 convolution with zero padding, initialised like `dense`."""
    return nn.Conv(
        features,
        (3, 3),
        strides=stride,
        dtype=dtype,
        param_dtype=parameter_dtype(dtype),
        kernel_init=kernel_init,
        bias_init=initialisation.zeros,
        name=name,
    )


def double(x: Array) -> Array:
    """Nearest-neighbour enlargement, `[B, H, W, C]` to `[B, 2H, 2W, C]`."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def selu(x: Array) -> Array:
    """`scale x` above 0, `scale alpha (exp(x) - 1)` below, with mean 0 and variance 1 as its fixed point.

    By `exp`, in half of the time of `jax.nn.selu`, which takes `expm1`: the same to rounding of the value 1.

    Source: Klambauer et al. 2017 (arXiv 1706.02515), eq. 2.
    """
    below = jnp.exp(jnp.where(x > 0, 0.0, x)) - 1
    return _SELU_SCALE * jnp.where(x > 0, x, _SELU_ALPHA * below)


def table(rows: int, features: int, dtype: jnp.dtype, name: str | None = None, std: float = 1.0) -> nn.Embed:
    """A learned vector for each index, `N(0, std^2)` at the start."""
    return nn.Embed(
        rows,
        features,
        dtype=dtype,
        param_dtype=parameter_dtype(dtype),
        embedding_init=initialisation.normal(std),
        name=name,
    )


def check_label(x: Array, label: Array | None, num_classes: int) -> None:
    """Refuse (ValueError) labels where there are no classes, classes without labels, and labels not int32 `[B]`."""
    if (label is not None) != (num_classes > 0):
        raise ValueError(
            f"a network of {num_classes} classes needs labels" if num_classes else "this network takes no labels"
        )
    if label is not None and (label.shape != x.shape[:1] or not jnp.issubdtype(label.dtype, jnp.integer)):
        raise ValueError(f"label is {label.dtype}{list(label.shape)}; expected int32{list(x.shape[:1])}")


def group_norm(x: Array, groups: int, gain: Array, shift: Array, epsilon: float = 1e-5) -> Array:
    """`(x - mean) / sqrt(variance + epsilon) * gain + shift`, moments over pixels and the channels of a group.

    Args:
        x: `[B, H, W, C]`; moments are taken in float32 or wider.
        groups: divides C.
        gain: `[B, C]` or `[1, C]`.
        shift: like `gain`.
        epsilon: added to the variance.

    Source: Wu & He 2018 (arXiv 1803.08494), eq. 1 and section 3.1.
    """
    batch, height, width, channels = x.shape
    dtype = parameter_dtype(x.dtype)
    pixels = x.reshape(batch, height * width, channels).astype(dtype)
    weights = jnp.full((height * width,), 1 / (height * width), dtype)
    by_group = (-1, groups, channels // groups)

    def group_mean(values: Array) -> Array:
        channel_means = jnp.einsum("bpc,p->bc", values, weights, precision="highest")
        return jnp.mean(channel_means.reshape(by_group), axis=-1, keepdims=True)

    mean = group_mean(pixels)
    variance = jnp.maximum(group_mean(jnp.square(pixels)) - jnp.square(mean), 0)
    scale = jax.lax.rsqrt(variance + epsilon) * gain.astype(dtype).reshape(by_group)
    offset = shift.astype(dtype).reshape(by_group) - mean * scale
    normalised = pixels * scale.reshape(batch, 1, channels) + offset.reshape(batch, 1, channels)
    return normalised.reshape(x.shape).astype(x.dtype)


def layer_norm(x: Array, epsilon: float = 1e-6) -> Array:
    """`(x - mean) / sqrt(variance + epsilon)` over the last axis, moments in float32 or wider.

    Source: Ba, Kiros & Hinton 2016 (arXiv 1607.06450), eq. 4, without gain and bias.
    """
    values = x.astype(parameter_dtype(x.dtype))
    centred = values - jnp.mean(values, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    return (centred * jax.lax.rsqrt(variance + epsilon)).astype(x.dtype)


def self_attention(qkv: Array, heads: int) -> Array:
    """`softmax(q k^T / sqrt(d)) v` for each of `heads` heads of d channels; the softmax is in float32 or wider.

    Args:
        qkv: queries, keys and values of N tokens side by side, `[B, N, 3 * heads * d]`.
        heads: how many.

    Returns:
        `[B, N, heads * d]`, in the dtype of `qkv`.

    Source: Vaswani et al. 2017 (arXiv 1706.03762), eq. 1.
    """
    batch, tokens, features = qkv.shape
    width = features // (3 * heads)
    query, keys, values = jnp.unstack(qkv.reshape(batch, tokens, 3, heads, width), axis=2)
    logits = jnp.einsum("bihd,bjhd->bhij", query * width**-0.5, keys, preferred_element_type=parameter_dtype(qkv.dtype))
    weights = jax.nn.softmax(logits, axis=-1).astype(qkv.dtype)
    return jnp.einsum("bhij,bjhd->bihd", weights, values).reshape(batch, tokens, heads * width)
