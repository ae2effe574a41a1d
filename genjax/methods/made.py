"""Masked autoencoder (MADE): each coordinate or bit given those before it, exact log p(data).

    points               p(x_d | x_<d) a mixture of Gaussians
    images of two levels p(x_d = 1 | x_<d) = sigmoid(logit), pixels row by row

One network call gives log p of all dimensions; a draw takes one call a dimension. Germain et al. 2015 (arXiv 1502.03509).
"""

import dataclasses
import math
from typing import Annotated

import jax
import jax.numpy as jnp
import optax

from genjax.errors import UsageError
from genjax.losses import likelihood
from genjax.methods import autoregressive, density_models, labels
from genjax.methods.network_options import ByData
from genjax.methods.recommended import Recommended
from genjax.typing import Array, Examples, Key, Method, Net, Params

_LEAST_LOG_SCALE = -7.0
"""Of a component, so that a density cannot grow without bound on one example."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Masked autoencoder."""

    width: Annotated[int | None, ByData] = None
    """units of a hidden layer"""
    depth: Annotated[int | None, ByData] = None
    """hidden layers"""
    components: int = 16
    """Gaussians in the mixture of a coordinate (points)"""
    class_conditional: bool = False
    """learn p(x | label)"""
    ema_decay: float = 0.999
    """decay of the moving average of the parameters that sampling uses"""


def recommended(examples: Examples) -> Recommended:
    """Training that gives a good result on such examples."""
    if examples.are_images:
        steps = 1_500 if examples.are_small_images else 10_000
        return Recommended(steps, 128, 2e-3, steps_per_dispatch=50)
    return Recommended(steps=5_000, batch_size=512, learning_rate=4e-3, steps_per_dispatch=100)


def resolve(config: Config, examples: Examples) -> Config:
    """`config` with every default chosen.

    Raises:
        UsageError: options that do not fit the data.
    """
    for name in ("width", "depth", "components"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name} is {value}; expected at least 1")
    labels.check_config(config.class_conditional, examples.num_classes)
    if examples.are_images and examples.levels != 2:
        kind = f"of {examples.levels} levels" if examples.levels else "of floats"
        raise UsageError(f"made takes points and images of two levels; for images {kind} use --binarise or pixelcnn")
    width, depth = (128, 3) if not examples.are_images else (256, 1) if examples.are_small_images else (1024, 1)
    return dataclasses.replace(
        config,
        width=config.width or width,
        depth=config.depth or depth,
    )


def build(config: Config, optimizer: optax.GradientTransformation, examples: Examples) -> Method:
    """The method for such examples, given their labels if class-conditional."""
    config = resolve(config, examples)
    num_classes = examples.num_classes if config.class_conditional else 0
    dimensions = math.prod(examples.event_shape)
    net = _network(config, dimensions, 1 if examples.levels else 3 * config.components, num_classes)

    def flat(data: Array) -> Array:
        return data.reshape(-1, dimensions)

    def log_density(params: Params, key: Key, data: Array, label: Array | None) -> Array:
        output = net.apply(params, flat(data), label)
        if examples.levels:
            bits = likelihood.levels_of(flat(data), levels=2)
            return likelihood.bernoulli(output[..., 0], bits.astype(output.dtype))
        logits, mean, log_scale = _mixture(output)
        return likelihood.gaussian_mixture(logits, mean, flat(data), log_scale=log_scale)

    def draw(params: Params, keys: Key, label: Array | None) -> Array:
        x = autoregressive.one_by_one(
            lambda x, dimension: net.apply(params, x, label, dimension)[:, 0],
            keys,
            jnp.zeros((len(keys), dimensions)),
            draw=_draw_bit if examples.levels else _draw_from_mixture,
        )
        return x.reshape(-1, *examples.event_shape)

    return density_models.build(
        lambda key, data, label: net.init(key, flat(data), label),
        log_density,
        draw,
        optimizer,
        examples=examples,
        num_classes=num_classes,
        network_calls=dimensions,
        ema_decay=config.ema_decay,
    )


def _mixture(output: Array) -> tuple[Array, Array, Array]:
    """Logits, means and log-scales of components that start spread over the data: `[..., K]` each."""
    logits, mean, log_scale = jnp.split(output, 3, axis=-1)
    spread = jnp.linspace(-2.0, 2.0, mean.shape[-1]).reshape((1,) * (mean.ndim - 1) + (-1,))
    return logits, mean + spread, jnp.maximum(log_scale - 1, _LEAST_LOG_SCALE)


def _draw_from_mixture(key: Key, output: Array) -> Array:
    component_key, noise_key = jax.random.split(key)
    logits, mean, log_scale = _mixture(output)
    component = jax.random.categorical(component_key, logits)
    return mean[component] + jnp.exp(log_scale[component]) * jax.random.normal(noise_key)


def _draw_bit(key: Key, output: Array) -> Array:
    bit = jax.random.uniform(key) < jax.nn.sigmoid(output[0])
    return likelihood.centres_of(bit, levels=2)


def _network(config: Config, dimensions: int, outputs: int, num_classes: int) -> Net:
    from genjax.networks.masked import made

    return made(dimensions, outputs, features=config.width or 0, depth=config.depth or 0, num_classes=num_classes)
