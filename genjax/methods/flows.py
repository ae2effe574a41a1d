"""What normalizing flows share: layers of a bijector from data to noise, trained by maximum likelihood.

    loss    -log N(f(data); 0, I) - log |det df/ddata|
    sample  f^-1(noise), noise ~ N(0, I)

A layer is a learned scale and shift, a learned linear map that mixes coordinates, and a coupling; it starts as a rotation of
normalised coordinates. Points go through `depth` layers. Images are dequantised, go through a logit, and through `depth` layers
at each of two resolutions, where 2x2 pixels become channels of one.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from genjax import bijectors
from genjax.arrays import normal
from genjax.bijectors import Bijector, Conditioner
from genjax.errors import UsageError
from genjax.losses import likelihood
from genjax.methods import density_models, labels
from genjax.methods.network_options import ByData, check_halvings
from genjax.methods.recommended import Recommended
from genjax.training.compilation import (
    convolution_options,
    convolution_sampling_options,
    convolution_steps_per_dispatch,
    convolution_training_options,
)
from genjax.typing import Array, Examples, Key, Method, Net, Params

_LEVELS = 2
"""How often the sides of an image are halved."""

_LEAST_LEVELS = 256
"""Of images of floats: noise of one such level keeps the deviation of a constant channel above 0."""

Coupling = Callable[[Conditioner, int], Bijector]
"""`(conditioner, passing) -> bijector` of the last axis."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of a flow."""

    depth: Annotated[int | None, ByData] = None
    """layers (points), layers at each resolution (images)"""
    width: Annotated[int | None, ByData] = None
    """hidden units (points) or channels (images) of the networks in the couplings"""
    class_conditional: bool = False
    """learn p(data | label)"""
    ema_decay: float = 0.999
    """decay of the moving average of the parameters that sampling uses"""


def recommended(examples: Examples) -> Recommended:
    """Training that gives a good result on such examples."""
    if examples.are_images:
        steps, batch_size = (500, 128) if examples.are_small_images else (3_000, 64)
        return Recommended(steps, batch_size, 1e-3, steps_per_dispatch=convolution_steps_per_dispatch())
    return Recommended(steps=15_000, batch_size=512, learning_rate=1e-3, steps_per_dispatch=100)


def check(config: Config, examples: Examples) -> None:
    """Refuse (UsageError) options that do not fit the data."""
    for name in ("depth", "width"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name} is {value}; expected at least 1")
    labels.check_config(config.class_conditional, examples.num_classes)
    check_halvings(examples, _LEVELS)


class Piece(NamedTuple):
    """A layer whose parameters are learned.

    - `init(key, x, label | None) -> (params, x)`, from examples of its input to those of its output.
    - `bijector(params, label | None)`.
    """

    init: Callable[[Key, Array, Array | None], tuple[Params, Array]]
    bijector: Callable[[Params, Array | None], Bijector]


def build(
    coupling: Coupling,
    optimizer: optax.GradientTransformation,
    examples: Examples,
    *,
    outputs: int,
    depth: int,
    width: int,
    num_classes: int,
    ema_decay: float,
) -> Method:
    """The method of a flow whose layers couple by `coupling`.

    Args:
        coupling: makes the bijector of a conditioner.
        optimizer: of all parameters.
        examples: what the data are.
        outputs: numbers that a coupling needs for each coordinate that it changes.
        depth: layers, at each resolution of images.
        width: of the conditioners.
        num_classes: 0 for a flow without labels.
        ema_decay: of the parameters that sampling uses.
    """
    shape = examples.event_shape
    pieces = _pieces(coupling, shape, outputs=outputs, depth=depth, width=width, num_classes=num_classes)
    layers = [piece for piece in pieces if isinstance(piece, Piece)]

    def flow(params: Params, label: Array | None) -> Bijector:
        remaining = iter(params)
        return bijectors.chain([p.bijector(next(remaining), label) if isinstance(p, Piece) else p for p in pieces])

    def init(key: Key, data: Array, label: Array | None) -> Params:
        noise_key, *keys = jax.random.split(key, len(layers) + 1)
        half = 1 / (examples.levels or _LEAST_LEVELS)
        x = data + jax.random.uniform(noise_key, data.shape, data.dtype, -half, half)
        params: list[Params] = []
        for piece in pieces:
            if isinstance(piece, Piece):
                layer, x = piece.init(keys[len(params)], x, label)
                params.append(layer)
            else:
                x, _ = piece.forward_and_log_det(x)
        return params

    def log_density(params: Params, key: Key, data: Array, label: Array | None) -> Array:
        def continuous(data: Array) -> Array:
            return bijectors.log_density(flow(params, label), data)

        return likelihood.dequantised(continuous, key, data, levels=examples.levels)

    def draw(params: Params, keys: Key, label: Array | None, temperature: Array | float = 1.0) -> Array:
        noise = normal(keys, (len(keys), *_noise_shape(shape)))
        return flow(params, label).inverse(temperature * noise)

    def sample(
        params: Params, key: Key, num: int, *, label: Array | None = None, temperature: Array | float = 1.0
    ) -> Array:
        """`num` draws `[num, ...]` in model units, of the classes `label [num]` or of any.

        The noise has the deviation `temperature`: below 1 the draws are likelier ones, and less varied than the model
        (Kingma & Dhariwal 2018, section 6).
        """
        tempered = functools.partial(draw, temperature=temperature)
        return density_models.sampling(tempered, num_classes)(params, key, num, label=label)

    method = density_models.build(
        init,
        log_density,
        draw,
        optimizer,
        examples=examples,
        num_classes=num_classes,
        network_calls=1,
        ema_decay=ema_decay,
        bounds_log_prob=bool(examples.levels),
        compiler_options=convolution_options() if examples.are_images else None,
    )
    if examples.are_images:
        method = method._replace(
            training_options=convolution_training_options(examples.event_shape),
            sampling_options=convolution_sampling_options,
        )
    return method._replace(sample=sample)


def _noise_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) == 1:
        return shape
    height, width, channels = shape
    return height // 2**_LEVELS, width // 2**_LEVELS, channels * 4**_LEVELS


def _pieces(
    coupling: Coupling, shape: tuple[int, ...], *, outputs: int, depth: int, width: int, num_classes: int
) -> list[Piece | Bijector]:
    """From data to noise, in order."""
    from genjax.networks.conditioner import image_conditioner, point_conditioner

    def layers(dimension: int, start: int) -> list[Piece | Bijector]:
        def make_net(parameters: int) -> Net:
            make = image_conditioner if len(shape) == 3 else point_conditioner
            return make(parameters, width=width, num_classes=num_classes)

        return [_layer(coupling, make_net, dimension, outputs, seed=start + index) for index in range(depth)]

    if len(shape) == 1:
        return layers(shape[0], 0)
    pieces: list[Piece | Bijector] = [bijectors.logit()]
    for level in range(_LEVELS):
        pieces += [bijectors.squeeze(), *layers(shape[-1] * 4 ** (level + 1), level * depth)]
    return pieces


def _layer(
    coupling: Coupling,
    make_net: Callable[[int], Net],
    dimension: int,
    outputs: int,
    *,
    seed: int,
) -> Piece:
    """Scale and shift, a linear map that starts as a rotation, and a coupling of half of the coordinates.

    Channels of images start with the mean 0 and the variance 1 of the first batch (Kingma & Dhariwal 2018, section 3.1);
    points are standardised already.
    """
    passing = dimension // 2
    net = make_net((dimension - passing) * outputs)
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((dimension, dimension)))
    factors, pivots = bijectors.triangular_of(rotation)

    def scale_and_mix(params: Params) -> Bijector:
        return bijectors.chain(
            [
                bijectors.affine(params["shift"], params["log_scale"]),
                bijectors.linear(bijectors.Triangular(**params["linear"]), pivots),
            ]
        )

    def init(key: Key, x: Array, label: Array | None) -> tuple[Params, Array]:
        shift, log_scale = bijectors.normalising(x) if x.ndim == 4 else (jnp.zeros(dimension), jnp.zeros(dimension))
        labels = () if label is None else (label,)
        params = {
            "shift": shift,
            "log_scale": log_scale,
            "linear": factors._asdict(),
            "coupling": net.init(key, jnp.zeros((*x.shape[:-1], max(passing, 1))), *labels),
        }
        return params, scale_and_mix(params).forward(x)  # the coupling starts as the identity

    def conditioner(params: Params, label: Array | None) -> Conditioner:
        def parameters(kept: Array) -> Array:
            kept = kept if passing else jnp.zeros((*kept.shape[:-1], 1), kept.dtype)
            return net.apply(params, kept) if label is None else net.apply(params, kept, label)

        return parameters

    def bijector(params: Params, label: Array | None) -> Bijector:
        return bijectors.chain([scale_and_mix(params), coupling(conditioner(params["coupling"], label), passing)])

    return Piece(init, bijector)
