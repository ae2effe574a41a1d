"""What the networks share: layers with this package's initializers, norms and attention with safe statistics."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from genjax.networks import initialisation
from genjax.networks.initialisation import Initializer
from genjax.typing import Array

_FAN_IN = initialisation.normal()
_SELU_SCALE, _SELU_ALPHA = 1.0507009873554805, 1.6732632423543772
_FEW_COLUMNS = 16
"""With a transpose made before the loop, 256 by so many took less time or the same for every batch from 1 to 1,024."""


def compute_dtype(dtype: Any, x: Array) -> jnp.dtype:
    """What a network asked for `dtype` computes `x` in: `dtype`, or float64 where float32 was asked and `x` is that."""
    dtype = jnp.dtype(dtype)
    return jnp.promote_types(dtype, x.dtype) if dtype == jnp.float32 else dtype


def parameter_dtype(dtype: Any) -> jnp.dtype:
    """The dtype of parameters and statistics under compute `dtype`: itself, but at least float32."""
    return jnp.promote_types(dtype, jnp.float32)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def rows(values: Array, count: int) -> Array:
    """`values [..., C]` as each of `count` rows: `[..., count, C]`.

    Its derivative is a product with ones, because the transpose of that, the sum of rows in every gradient of a bias, is a
    product as well: XLA:CPU takes several times as long to reduce columns.

    >>> rows(jnp.asarray([1.0, 2.0]), 2).tolist()
    [[1.0, 2.0], [1.0, 2.0]]
    """
    return jnp.broadcast_to(values[..., None, :], (*values.shape[:-1], count, values.shape[-1]))


@rows.defjvp
def _rows_jvp(count: int, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (values,), (tangent,) = primals, tangents
    ones = jnp.ones((*values.shape[:-1], count, 1), values.dtype)
    return rows(values, count), jnp.matmul(ones, tangent[..., None, :], precision="highest")


def product(x: Array, matrix: Array) -> Array:
    """`x @ matrix`, faster where the matrix has few columns and is the same at every step of a sampler's loop.

    A row of its transpose is read at once. The copy is made before the loop (`genjax.samplers.invariants`); elsewhere XLA
    folds the transposition into the product.

    Args:
        x: `[B, D]`.
        matrix: `[D, F]`.

    Returns:
        `[B, F]`.
    """
    if matrix.shape[1] > _FEW_COLUMNS:
        return x @ matrix
    return jax.lax.dot_general(x, matrix.T, (((1,), (1,)), ((), ())))


class Dense(nn.Module):
    """`x W + b` of the last axis, all others in one: of several, XLA:CPU copies the cotangent for the gradient of W."""

    features: int
    dtype: jnp.dtype
    kernel_init: Initializer

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[..., D]` to `[..., features]`."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), parameter_dtype(self.dtype))
        bias = self.param("bias", initialisation.zeros, (self.features,), parameter_dtype(self.dtype))
        dtype = compute_dtype(self.dtype, x)
        flat = x.reshape(-1, x.shape[-1]).astype(dtype)
        outputs = product(flat, kernel.astype(dtype)) + rows(bias.astype(dtype), len(flat))
        return outputs.reshape(*x.shape[:-1], self.features)


def convolve(
    x: Array,
    kernel: Array,
    *,
    stride: int = 1,
    dilation: int = 1,
    padding: str | tuple[tuple[int, int], tuple[int, int]] = "SAME",
) -> Array:
    """The convolution of images `[B, H, W, C]` with `kernel [h, w, C, F]`: `[B, H', W', F]`."""
    return jax.lax.conv_general_dilated(
        x,
        kernel.astype(x.dtype),
        (stride, stride),
        padding,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def convolve_doubled(x: Array, kernel: Array) -> Array:
    """The convolution with zero padding of `x` doubled by nearest neighbours, at less than half of its cost.

    Of three neighbouring rows of the doubled image two are one row of `x`. So its pixels of each parity are a convolution
    of `x` with 2x2 sums of the kernel: 16 products in the place of 36.

    Args:
        x: `[B, H, W, C]`.
        kernel: `[3, 3, C, F]`.

    Returns:
        `[B, 2H, 2W, F]`.
    """
    batch, height, width, _ = x.shape
    tap_of_row = np.asarray([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])  # [parity, tap, row of the kernel]
    taps = jnp.asarray(tap_of_row, kernel.dtype)
    kernels = jnp.einsum("aur,bvs,rscf->abuvcf", taps, taps, kernel, precision="highest")

    def row_parity(a: int) -> Array:
        paddings = [((1 - a, a), (1 - b, b)) for b in (0, 1)]
        return jnp.stack([convolve(x, kernels[a, b], padding=paddings[b]) for b in (0, 1)], axis=3)

    return jnp.stack([row_parity(a) for a in (0, 1)], axis=2).reshape(batch, 2 * height, 2 * width, kernel.shape[-1])


class Conv(nn.Module):
    """A convolution of images with bias: `convolve(x, kernel) + b`."""

    features: int
    kernel_size: tuple[int, int]
    dtype: jnp.dtype
    kernel_init: Initializer
    convolve: Callable[[Array, Array], Array]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[B, H, W, C]` to `[B, H', W', features]`."""
        shape = (*self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, parameter_dtype(self.dtype))
        bias = self.param("bias", initialisation.zeros, (self.features,), parameter_dtype(self.dtype))
        dtype = compute_dtype(self.dtype, x)
        outputs = self.convolve(x.astype(dtype), kernel)
        flat = outputs.reshape(-1, self.features)
        return (flat + rows(bias.astype(dtype), len(flat))).reshape(outputs.shape)


def dense(features: int, dtype: jnp.dtype, name: str | None = None, kernel_init: Initializer = _FAN_IN) -> Dense:
    """`x W + b`, by default `W ~ N(0, 1 / fan in)` and `b = 0`."""
    return Dense(features, dtype, kernel_init, name=name)


def convolution(
    features: int,
    dtype: jnp.dtype,
    name: str | None = None,
    stride: int = 1,
    kernel_init: Initializer = _FAN_IN,
) -> Conv:
    """A 3x3 convolution with zero padding, initialised like `dense`."""
    return Conv(features, (3, 3), dtype, kernel_init, partial(convolve, stride=stride), name=name)


def doubling_convolution(features: int, dtype: jnp.dtype, name: str | None = None) -> Conv:
    """`convolution` of the image doubled by nearest neighbours."""
    return Conv(features, (3, 3), dtype, _FAN_IN, convolve_doubled, name=name)


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

    Sums, and what each channel has of its group's, are products of matrices: XLA:CPU neither vectorises a reduction over
    pixels nor a loop that looks up the group of a channel. The mean's negative is added, so that in a gradient
    the sums are negated and not every pixel.

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
    ones = jnp.ones((batch, 1, height * width), dtype)
    group = np.arange(channels) // (channels // groups)
    share = jnp.asarray((group[:, None] == group) * (groups / pixels[0].size), dtype)

    def group_mean(values: Array) -> Array:
        sums = jnp.matmul(ones, values, precision="highest")[:, 0]
        return jnp.matmul(sums, share, precision="highest")

    centred = pixels + rows(-group_mean(pixels), height * width)
    scale = jax.lax.rsqrt(group_mean(jnp.square(centred)) + epsilon) * gain.astype(dtype)
    shift = jnp.broadcast_to(shift.astype(dtype), (batch, channels))
    normalised = centred * rows(scale, height * width) + rows(shift, height * width)
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
