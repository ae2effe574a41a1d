"""What normalizing flows share: layers of a bijector from data to noise, trained by maximum likelihood.

    loss    -log N(f(data); 0, I) - log |det df/ddata|
    sample  f^-1(noise), noise ~ N(0, I)

A layer is a learned scale and shift, a learned linear map that mixes coordinates, and a coupling; it starts as a rotation.
Points go through `depth` layers. Images are dequantised, go through a logit, and through `depth` layers at each of two
resolutions, where 2x2 pixels become channels of one.
"""

import dataclasses
from collections.abc import Callable
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from genjax import bijectors
from genjax.arrays import as_example_keys, normal
from genjax.bijectors import Bijector, Conditioner
from genjax.errors import UsageError
from genjax.losses import likelihood
from genjax.methods.network_options import ByData, check_halvings
from genjax.methods.recommended import Recommended
from genjax.training.compilation import convolution_options, convolution_steps_per_dispatch
from genjax.training.steps import from_loss, new_state, with_ema
from genjax.typing import Array, Batch, Examples, Key, Method, Metrics, Net, Params, State

_LEVELS = 2
"""How often the sides of an image are halved."""

Coupling = Callable[[Conditioner, int], Bijector]
"""`(conditioner, passing) -> bijector` of the last axis."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of a flow."""

    depth: Annotated[int | None, ByData] = None
    """layers (points), layers at each resolution (images)"""
    width: Annotated[int | None, ByData] = None
    """hidden units (points) or channels (images) of the networks in the couplings"""
    ema_decay: float = 0.999
    """decay of the moving average of the parameters that sampling uses"""


def recommended(examples: Examples) -> Recommended:
    """Training that gives a good result on such examples."""
    if examples.are_images:
        steps, batch_size = (500, 128) if max(examples.event_shape[:2]) <= 16 else (3_000, 64)
        return Recommended(steps, batch_size, 1e-3, steps_per_dispatch=convolution_steps_per_dispatch())
    return Recommended(steps=15_000, batch_size=512, learning_rate=1e-3, steps_per_dispatch=100)


def check(config: Config, examples: Examples) -> None:
    """Refuse (UsageError) options that do not fit the data."""
    for name in ("depth", "width"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name} is {value}; expected at least 1")
    check_halvings(examples, _LEVELS)


class Piece(NamedTuple):
    """A layer whose parameters are learned."""

    init: Callable[[Key], Params]
    bijector: Callable[[Params], Bijector]


def build(
    coupling: Coupling,
    optimizer: optax.GradientTransformation,
    examples: Examples,
    *,
    outputs: int,
    depth: int,
    width: int,
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
        ema_decay: of the parameters that sampling uses.
    """
    shape = examples.event_shape
    pieces = _pieces(coupling, shape, outputs=outputs, depth=depth, width=width)
    layers = [piece for piece in pieces if isinstance(piece, Piece)]

    def flow(params: Params) -> Bijector:
        remaining = iter(params)
        return bijectors.chain([p.bijector(next(remaining)) if isinstance(p, Piece) else p for p in pieces])

    def init(key: Key, batch: Batch) -> State:
        run_key, *keys = jax.random.split(key, len(layers) + 1)
        params = [layer.init(layer_key) for layer, layer_key in zip(layers, keys, strict=True)]
        return new_state(run_key, params, optimizer.init(params))

    def log_prob(params: Params, key: Key, data: Array) -> Array:
        """`log p(data)`, `[B]`, nats: of integers a lower bound, by dequantisation, of anything else exact."""

        def log_density(data: Array) -> Array:
            return bijectors.log_density(flow(params), data)

        return likelihood.dequantised(log_density, key, data, levels=examples.levels)

    def loss(params: Params, key: Key, batch: Batch) -> tuple[Array, Metrics]:
        log_density = log_prob(params, key, batch.data)
        metrics = {"bits_per_dim": jnp.mean(likelihood.bits_per_dim(log_density, shape))} if examples.levels else {}
        return jnp.mean(likelihood.negative_log_likelihood(log_density)), metrics

    def evaluate(params: Params, key: Key, batch: Batch) -> Metrics:
        value, metrics = loss(params, key, batch)
        return {"loss": value, **metrics}

    def sample(params: Params, key: Key, num: int) -> Array:
        """`num` draws `[num, ...]` in model units."""
        noise = normal(as_example_keys(key, num), (num, *_noise_shape(shape)))
        return flow(params).inverse(noise)

    return Method(
        init,
        with_ema(from_loss(loss, optimizer), ema_decay),
        sample,
        evaluate=evaluate,
        log_prob=log_prob,
        bounds_log_prob=bool(examples.levels),
        compiler_options=convolution_options() if examples.are_images else None,
    )


def _noise_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) == 1:
        return shape
    height, width, channels = shape
    return height // 2**_LEVELS, width // 2**_LEVELS, channels * 4**_LEVELS


def _pieces(
    coupling: Coupling, shape: tuple[int, ...], *, outputs: int, depth: int, width: int
) -> list[Piece | Bijector]:
    """From data to noise, in order."""
    from genjax.networks.conditioner import image_conditioner, point_conditioner

    def layers(dimension: int, start: int) -> list[Piece | Bijector]:
        def make_net(parameters: int) -> Net:
            make = image_conditioner if len(shape) == 3 else point_conditioner
            return make(parameters, width=width)

        return [
            _layer(coupling, make_net, dimension, outputs, seed=start + index, spatial=(2,) * (len(shape) - 1))
            for index in range(depth)
        ]

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
    spatial: tuple[int, ...],
) -> Piece:
    """Scale and shift, a linear map that starts as a rotation, and a coupling of half of the coordinates."""
    passing = dimension // 2
    net = make_net((dimension - passing) * outputs)
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((dimension, dimension)))
    factors, pivots = bijectors.triangular_of(rotation)

    def init(key: Key) -> Params:
        return {
            "shift": jnp.zeros(dimension),
            "log_scale": jnp.zeros(dimension),
            "linear": factors._asdict(),
            "coupling": net.init(key, jnp.zeros((2, *spatial, max(passing, 1)))),
        }

    def conditioner(params: Params) -> Conditioner:
        def parameters(kept: Array) -> Array:
            return net.apply(params, kept if passing else jnp.zeros((*kept.shape[:-1], 1), kept.dtype))

        return parameters

    def bijector(params: Params) -> Bijector:
        return bijectors.chain(
            [
                bijectors.affine(params["shift"], params["log_scale"]),
                bijectors.linear(bijectors.Triangular(**params["linear"]), pivots),
                coupling(conditioner(params["coupling"]), passing),
            ]
        )

    return Piece(init, bijector)
