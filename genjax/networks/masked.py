"""Autoregressive networks: what is said of a dimension depends on those before it alone.

    p(x) = prod_d p(x_d | x_1, ..., x_{d-1}),   and one call of the network gives the parameters of all D factors.

MADE (Germain et al. 2015, arXiv 1502.03509) masks the kernels of a perceptron. Every unit has a degree, that of input
d being d; a unit of degree m sees units of degree at most m, and output d sees units of degree below d.

The gated PixelCNN (van den Oord et al. 2016, arXiv 1606.05328) orders an image row by row. Its convolutions see only
what is before a pixel because the image is shifted by one pixel and their padding is on one side, which is what masks
of type A (first layer) and B (the others) do. Two stacks leave no blind spot: one sees the rows above, the other goes
along a row and is told what the first one found. Dilations 1, 2, 4 widen the view at no cost (Yu & Koltun 2016, arXiv
1511.07122). The channels of a pixel are the dimensions of a small MADE, told what both stacks found.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from genjax.networks import initialisation
from genjax.networks.layers import Conv, check_label, compute_dtype, convolve, dense, table
from genjax.networks.net import from_linen
from genjax.typing import Array, Net, Params

_DILATIONS = (1, 2, 4)


def hidden_degrees(dimensions: int, units: int, *, least: int) -> np.ndarray:
    """Degrees of hidden units, spread evenly over `least, ..., D - 1`: `[units]`.

    >>> hidden_degrees(4, 7, least=1).tolist()
    [1, 1, 1, 2, 2, 3, 3]
    """
    least = min(least, dimensions - 1)
    return least + np.arange(units) * (dimensions - least) // units


def degree_mask(inputs: np.ndarray, outputs: np.ndarray, *, strict: bool) -> np.ndarray:
    """1 where an output may see an input, else 0, `[inputs, outputs]`: `m_in <= m_out`, or `<` where `strict`.

    Source: Germain et al. 2015 (arXiv 1502.03509), eqs. 8 and 9.

    >>> degree_mask(np.array([1, 2]), np.array([1, 2]), strict=True).tolist()
    [[0.0, 1.0], [0.0, 0.0]]
    """
    inputs, outputs = inputs[:, None], outputs[None, :]
    return np.asarray(inputs < outputs if strict else inputs <= outputs, np.float32)


class MaskedDense(nn.Module):
    """`x (W * mask) + b`: `[..., inputs]` to `[..., units, values]`, a unit's values sharing its column of the mask."""

    mask: np.ndarray
    values: int = 1

    @nn.compact
    def __call__(self, x: Array, unit: Array | None = None) -> Array:
        """All units, or the one whose index is given: `[..., 1, values]`."""
        dtype = compute_dtype(jnp.float32, x)
        std = max(float(self.mask.sum(axis=0).mean()), 1.0) ** -0.5
        kernel = self.param("kernel", initialisation.normal(std), (*self.mask.shape, self.values), dtype)
        bias = self.param("bias", initialisation.zeros, (self.mask.shape[1], self.values), dtype)
        kernel = kernel * jnp.asarray(self.mask, dtype)[:, :, None]
        if unit is not None:
            kernel = jax.lax.dynamic_slice_in_dim(kernel, unit, 1, axis=1)
            bias = jax.lax.dynamic_slice_in_dim(bias, unit, 1, axis=0)
        return jnp.tensordot(x.astype(dtype), kernel, 1) + bias.reshape((1,) * (x.ndim - 1) + bias.shape)


class MADE(nn.Module):
    """`x [..., D]`, and `context [..., E]` where `conditional`, to `[..., D, outputs]`.

    Hidden layers are residual. What an output may see also reaches it directly, so that every earlier dimension does
    where there are fewer units than dimensions.
    """

    dimensions: int
    outputs: int
    features: int
    depth: int
    conditional: bool = False

    @nn.compact
    def __call__(self, x: Array, context: Array | None = None, only: Array | None = None) -> Array:
        """The outputs of all dimensions, or of `only` that one: `[..., 1, outputs]`."""
        dtype = compute_dtype(jnp.float32, x)
        order = np.arange(1, self.dimensions + 1)
        degrees = hidden_degrees(self.dimensions, self.features, least=0 if self.conditional else 1)
        hidden = MaskedDense(degree_mask(order, degrees, strict=False), name="in")(x)[..., 0]
        if context is not None:
            hidden = hidden + dense(self.features, dtype, "context")(context)
        for layer in range(self.depth - 1):
            within = MaskedDense(degree_mask(degrees, degrees, strict=False), name=f"hidden_{layer}")
            hidden = hidden + within(nn.silu(hidden))[..., 0]
        out = MaskedDense(degree_mask(degrees, order, strict=True), self.outputs, name="out")(nn.silu(hidden), only)
        out = out + MaskedDense(degree_mask(order, order, strict=True), self.outputs, name="direct")(x, only)
        if context is not None:
            everyone = np.ones((context.shape[-1], self.dimensions), np.float32)
            out = out + MaskedDense(everyone, self.outputs, name="context_direct")(context, only)
        return out


class LabelledMADE(nn.Module):
    """`x [B, D]`, `label [B]` and `only` to `[B, D, outputs]`."""

    dimensions: int
    outputs: int
    features: int
    depth: int
    num_classes: int

    @nn.compact
    def __call__(self, x: Array, label: Array | None = None, only: Array | None = None) -> Array:
        """The outputs of all dimensions, or of `only` that one."""
        check_label(x, label, self.num_classes)
        context = None
        if label is not None:
            context = table(self.num_classes, self.features, compute_dtype(jnp.float32, x), "label")(label)
        net = MADE(self.dimensions, self.outputs, self.features, self.depth, label is not None, name="made")
        return net(x, context, only)


def made(dimensions: int, outputs: int, *, features: int, depth: int, num_classes: int = 0) -> Net:
    """A MADE: `apply(params, x [B, D], label [B] | None, only | None) -> [B, D, outputs]`.

    Output d depends on `x[:, :d]` (and the label) alone; with `only` a scalar index, that output alone, `[B, 1, outputs]`,
    at the cost of the hidden layers.

    Args:
        dimensions: D.
        outputs: numbers a dimension.
        features: units of each hidden layer.
        depth: hidden layers, at least 1.
        num_classes: of labels; 0 for none.

    Source: Germain et al. 2015 (arXiv 1502.03509); one set of degrees for all layers, so that these can be residual,
    Durkan & Nash 2019 (arXiv 1904.05626).
    """
    return from_linen(LabelledMADE(dimensions, outputs, features, depth, num_classes))


class PixelCNN(nn.Module):
    """`x [B, H, W, C]`, `label [B]` to `[B, H, W, C, outputs]`, in three parts that sampling calls one by one."""

    event_shape: tuple[int, ...]
    outputs: int
    width: int
    depth: int
    num_classes: int

    def setup(self) -> None:
        """The layers."""
        height, columns, channels = self.event_shape
        dilations = [_DILATIONS[layer % len(_DILATIONS)] for layer in range(self.depth)]
        self.above_in = _causal_convolution(self.width, (2, 3))
        self.position = self.param("position", initialisation.normal(0.1), (height, columns, self.width), jnp.float32)
        if self.num_classes:
            self.label = table(self.num_classes, self.width, jnp.dtype(jnp.float32))
        self.above_layers = [_causal_convolution(2 * self.width, (2, 3), dilation) for dilation in dilations]
        self.along_in = _pointwise(self.width)
        self.along_layers = [_causal_convolution(2 * self.width, (1, 2), dilation) for dilation in dilations]
        self.links = [_pointwise(2 * self.width) for _ in dilations]
        self.along_out = [_pointwise(self.width) for _ in dilations]
        self.channels = MADE(channels, self.outputs, 4 * self.width, 1, conditional=True)

    def __call__(self, x: Array, label: Array | None = None) -> Array:
        """The outputs of all pixels and channels."""
        return self.pixels(x, self.along(x, self.above(x, label)))

    def above(self, x: Array, label: Array | None = None) -> list[Array]:
        """What each layer finds in the rows above a pixel, `[B, H, W, width]` a layer."""
        check_label(x, label, self.num_classes)
        height = x.shape[1]
        found = self.above_in(jnp.pad(x, ((0, 0), (1, 0), (0, 0), (0, 0)))[:, :height]) + self.position[None]
        if label is not None:
            found = found + self.label(label)[:, None, None, :]
        layers = []
        for layer in self.above_layers:
            found = found + _gate(layer(found))
            layers.append(found)
        return layers

    def along(self, x: Array, above: list[Array]) -> Array:
        """What is found left of a pixel and above it, `[B, R, W, width]`, for any R rows and what is above these."""
        columns = x.shape[2]
        found = self.along_in(jnp.pad(x, ((0, 0), (0, 0), (1, 0), (0, 0)))[:, :, :columns])
        for layer, link, out, found_above in zip(self.along_layers, self.links, self.along_out, above, strict=True):
            found = found + out(_gate(layer(found) + link(found_above)))
        return found

    def pixels(self, x: Array, context: Array, only: Array | None = None) -> Array:
        """The outputs of pixels `x [..., C]` given what was found before them, `[..., C or 1, outputs]`."""
        return self.channels(x, nn.silu(context), only)


class PixelNet(NamedTuple):
    """The network `(init, apply)`, and its three parts as functions of `params`: `apply` is `pixels` after `along` after `above`.

    - `above(params, x [B, H, W, C], label | None) -> list of [B, H, W, width]`
    - `along(params, x [B, R, W, C], above) -> [B, R, W, width]`
    - `pixels(params, x [..., C], context [..., width], only | None) -> [..., C or 1, outputs]`
    """

    init: Callable[..., Params]
    apply: Callable[..., Array]
    above: Callable[..., list[Array]]
    along: Callable[..., Array]
    pixels: Callable[..., Array]


def pixelcnn(event_shape: tuple[int, ...], outputs: int, *, width: int, depth: int, num_classes: int = 0) -> PixelNet:
    """A gated PixelCNN: `apply(params, x [B, H, W, C], label [B] | None) -> [B, H, W, C, outputs]`.

    The outputs of a channel depend on the channels before it in its pixel, and on the earlier pixels, row by row, that
    are at most `2 + S` rows up and `1 + S` columns to either side: S is the sum of the dilations of all layers.

    Args:
        event_shape: `(H, W, C)`.
        outputs: numbers a channel, such as one logit a level.
        width: channels of a layer.
        depth: layers.
        num_classes: of labels; 0 for none.

    Source: van den Oord et al. 2016 (arXiv 1606.05328), section 2; both stacks are residual here.
    """
    module = PixelCNN(event_shape, outputs, width, depth, num_classes)
    net = from_linen(module)

    def part(method: Callable[..., Any]) -> Callable[..., Any]:
        return lambda params, *inputs: module.apply({"params": params}, *inputs, method=method)

    return PixelNet(net.init, net.apply, part(PixelCNN.above), part(PixelCNN.along), part(PixelCNN.pixels))


def _causal_convolution(features: int, kernel: tuple[int, int], dilation: int = 1) -> Conv:
    """A convolution that sees its own row and those above, and of a kernel of one row what is on the left."""
    rows, columns = kernel
    sides = (dilation, dilation) if rows > 1 else (dilation * (columns - 1), 0)
    causal = partial(convolve, dilation=dilation, padding=((dilation * (rows - 1), 0), sides))
    return Conv(features, kernel, jnp.dtype(jnp.float32), initialisation.normal(), causal)


def _pointwise(features: int) -> Conv:
    return _causal_convolution(features, (1, 1))


def _gate(x: Array) -> Array:
    """`tanh(a) sigmoid(b)` of the two halves of the channels (eq. 2)."""
    value, gate = jnp.split(x, 2, axis=-1)
    return jnp.tanh(value) * jax.nn.sigmoid(gate)
