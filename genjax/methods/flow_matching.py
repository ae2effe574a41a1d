"""Flow matching: learn the velocity of a path from noise to data, sample by integrating it.

    loss    E || model(x_t, t) - dx_t/dt ||^2,   x_t = alpha(t) data + sigma(t) noise
    sample  dx/dt = model(x, t), from x ~ N(0, I) at the noise end to the data end

Lipman et al. 2023 (arXiv 2210.02747), Liu et al. 2023 (arXiv 2209.03003), Albergo & Vanden-Eijnden 2023 (2209.15571).
"""

import dataclasses
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import optax
import tyro

from genjax import couplings, paths, predictions, times
from genjax.errors import UsageError, unknown
from genjax.losses import denoising
from genjax.methods import network_options, path_models
from genjax.methods.network_options import NetworkOptions
from genjax.methods.path_models import Source
from genjax.methods.recommended import Recommended, for_path_models
from genjax.training.data import toys
from genjax.typing import Array, Examples, Key, Method

_PATHS = {"linear": paths.linear, "cosine": paths.cosine, "vp": paths.vp}
_DENSITIES = {
    "uniform": times.uniform_density,
    "low-discrepancy": times.low_discrepancy_density,
    "logit-normal": times.logit_normal_density,
    "cosmap": times.cosmap_density,
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Flow matching."""

    path: Literal["linear", "cosine", "vp"] = "linear"
    """how data and noise are mixed"""
    predict: Literal["velocity", "data", "noise", "v"] = "velocity"
    """what the network predicts, and in what the squared error is taken"""
    time_density: Literal["uniform", "low-discrepancy", "logit-normal", "cosmap"] = "low-discrepancy"
    """how training times are drawn"""
    coupling: Literal["independent", "optimal", "entropic"] = "independent"
    """which noise a batch pairs with which example: by chance, by least total squared distance, or near to that"""
    regularisation: float = 0.05
    """of the entropic coupling, in units of the mean squared distance"""
    source: Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="(default: N(0, I))")] = None
    """the 2-D data set, standardised, that takes the place of the noise"""
    class_conditional: bool = False
    """learn p(data | label); labels are dropped in training so that guidance works"""
    label_dropout: float = 0.1
    """probability with which a label is dropped"""
    ema_decay: float = 0.999
    """decay of the moving average of the parameters that sampling uses"""
    network: NetworkOptions = dataclasses.field(default_factory=NetworkOptions)


def recommended(examples: Examples) -> Recommended:
    """Training that gives a good result on such examples."""
    return for_path_models(examples.event_shape)


def resolve(config: Config, examples: Examples) -> Config:
    """`config` with every default chosen.

    Raises:
        UsageError: options that do not fit the data or each other.
    """
    path_models.check_labels(config.class_conditional, config.label_dropout, examples.num_classes)
    if config.path == "vp" and config.predict == "velocity":
        raise UsageError("the velocity of --path vp is infinite at the data: use --predict v, noise or data")
    if not config.regularisation > 0:
        raise UsageError(f"--regularisation is {config.regularisation}; expected more than 0")
    if config.source is not None:
        _check_source(config, examples)
    return dataclasses.replace(config, network=network_options.resolve(config.network, examples.event_shape))


def build(config: Config, optimizer: optax.GradientTransformation, examples: Examples) -> Method:
    """The method for such examples, with their labels if class-conditional."""
    config = resolve(config, examples)
    num_classes = examples.num_classes if config.class_conditional else 0
    path, predict = _PATHS[config.path](), predictions.KINDS[config.predict]
    net = network_options.make_net(config.network, examples.event_shape, num_classes)
    return path_models.build(
        net,
        optimizer,
        examples=examples,
        num_classes=num_classes,
        path=path,
        predict=predict,
        error=predict,
        weighting=denoising.uniform,
        density=_DENSITIES[config.time_density](path),
        knots=lambda steps: path_models.uniform_knots(path, predict, steps),
        default_sampler="heun",
        default_steps=25 if examples.are_images else 50,
        first_order_end=examples.are_images or predict is predictions.data,
        ema_decay=config.ema_decay,
        label_dropout=config.label_dropout,
        compiler_options=network_options.compiler_options(config.network),
        sampling_net=network_options.sampling_net(config.network, net),
        training_options=network_options.training_options(config.network, examples.event_shape),
        sampling_options=network_options.sampling_options(config.network),
        source=None if config.source is None else _source(config.source),
        coupling={
            "independent": None,
            "optimal": couplings.optimal,
            "entropic": couplings.entropic(config.regularisation, relative=True),
        }[config.coupling],
    )


def _check_source(config: Config, examples: Examples) -> None:
    if config.source not in toys.GENERATORS:
        raise unknown("source", config.source or "", toys.GENERATORS)
    if toys.toy(config.source).examples.event_shape != examples.event_shape:
        raise UsageError(f"--source {config.source} has not the shape {examples.event_shape} of the data")
    if config.path != "linear":
        raise UsageError(f"--source needs --path linear, on which it moves to the data at once; not {config.path}")
    if config.predict in ("noise", "v"):
        raise UsageError(f"--predict {config.predict} is for Gaussian noise; with --source use velocity or data")


def _source(name: str) -> Source:
    """Draws, with replacement, of the standardised training points of the data set `name`."""
    dataset = toys.toy(name)
    points = jnp.asarray(dataset.scaling.to_model(jnp.asarray(dataset.train.data)))

    def draw(keys: Key) -> Array:
        return points[jax.vmap(lambda key: jax.random.randint(key, (), 0, len(points)))(keys)]

    return draw
