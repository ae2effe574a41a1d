"""Gated PixelCNN: each pixel given those above and left of it, exact log p of integer images.

    p(x) = prod over pixels, row by row, and channels of softmax(logits(earlier values))[value]

One network call gives log p of a whole image. A draw calls the part of the network that looks at the rows above once
a row, and the part that goes along a row once a pixel, on that row alone. van den Oord et al. 2016 (arXiv 1606.05328).
"""

import dataclasses
from typing import TYPE_CHECKING, Annotated

import jax
import jax.numpy as jnp
import optax

from genjax.arrays import fold_each
from genjax.errors import UsageError
from genjax.losses import likelihood
from genjax.methods import autoregressive, density_models, labels
from genjax.methods.network_options import ByData
from genjax.methods.recommended import Recommended
from genjax.training.compilation import (
    convolution_options,
    convolution_sampling_options,
    convolution_steps_per_dispatch,
    convolution_training_options,
)
from genjax.typing import Array, Examples, Key, Method, Params

if TYPE_CHECKING:
    from genjax.networks.masked import PixelNet


@dataclasses.dataclass(frozen=True)
class Config:
    """Gated PixelCNN."""

    width: Annotated[int | None, ByData] = None
    """channels of a layer"""
    depth: Annotated[int | None, ByData] = None
    """layers; a pixel sees as far as the sum of their dilations 1, 2, 4, 1, 2, 4, ..."""
    class_conditional: bool = False
    """learn p(x | label)"""
    ema_decay: float = 0.999
    """decay of the moving average of the parameters that sampling uses"""


def recommended(examples: Examples) -> Recommended:
    """Training that gives a good result on such examples."""
    steps, rate = (900, 1e-3) if examples.are_small_images else (3_000, 2e-3)
    return Recommended(steps, 32, rate, steps_per_dispatch=convolution_steps_per_dispatch())


def resolve(config: Config, examples: Examples) -> Config:
    """`config` with every default chosen.

    Raises:
        UsageError: options that do not fit the data.
    """
    for name in ("width", "depth"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name} is {value}; expected at least 1")
    labels.check_config(config.class_conditional, examples.num_classes)
    if not examples.are_images:
        raise UsageError("pixelcnn is for images of integer levels; points take made")
    if not examples.levels:
        raise UsageError("pixelcnn is for images of integer levels; these data are images of floats")
    return dataclasses.replace(config, width=config.width or 32, depth=config.depth or 6)


def build(config: Config, optimizer: optax.GradientTransformation, examples: Examples) -> Method:
    """The method for such examples, given their labels if class-conditional."""
    config = resolve(config, examples)
    num_classes = examples.num_classes if config.class_conditional else 0
    height, columns, channels = examples.event_shape
    levels = examples.levels
    net = _network(config, examples, num_classes)

    def log_density(params: Params, key: Key, data: Array, label: Array | None) -> Array:
        values = likelihood.levels_of(data, levels=levels)
        return likelihood.categorical(net.apply(params, likelihood.centres_of(values, levels=levels), label), values)

    def draw_level(key: Key, logits: Array) -> Array:
        return likelihood.centres_of(jax.random.categorical(key, logits), levels=levels)

    def draw(params: Params, keys: Key, label: Array | None) -> Array:
        def draw_pixel(context: Array, index: Array) -> Array:
            return autoregressive.one_by_one(
                lambda x, channel: net.pixels(params, x, context, channel)[:, 0],
                fold_each(keys, index),
                jnp.zeros((len(keys), channels)),
                draw=draw_level,
            )

        def draw_row(images: Array, row: Array) -> tuple[Array, None]:
            above = [jax.lax.dynamic_slice_in_dim(found, row, 1, axis=1) for found in net.above(params, images, label)]

            def next_pixel(pixels: Array, column: Array) -> tuple[Array, None]:
                context = jax.lax.dynamic_index_in_dim(net.along(params, pixels, above)[:, 0], column, 1, False)
                pixel = draw_pixel(context, row * columns + column)
                return jax.lax.dynamic_update_slice(pixels, pixel[:, None, None, :], (0, 0, column, 0)), None

            pixels, _ = jax.lax.scan(next_pixel, jnp.zeros((len(keys), 1, columns, channels)), jnp.arange(columns))
            return jax.lax.dynamic_update_slice_in_dim(images, pixels, row, axis=1), None

        blank = jnp.zeros((len(keys), *examples.event_shape))
        return jax.lax.scan(draw_row, blank, jnp.arange(height))[0]

    method = density_models.build(
        lambda key, data, label: net.init(key, data, label),
        log_density,
        draw,
        optimizer,
        examples=examples,
        num_classes=num_classes,
        network_calls=max(height, columns),
        ema_decay=config.ema_decay,
        compiler_options=convolution_options(),
    )
    return method._replace(
        training_options=convolution_training_options(examples.event_shape),
        sampling_options=convolution_sampling_options,
    )


def _network(config: Config, examples: Examples, num_classes: int) -> "PixelNet":
    from genjax.networks.masked import pixelcnn

    return pixelcnn(
        examples.event_shape,
        examples.levels,
        width=config.width or 0,
        depth=config.depth or 0,
        num_classes=num_classes,
    )
