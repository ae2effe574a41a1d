"""Flow matching: learn the velocity of a path from noise to data, sample by integrating it.

    loss    E || model(x_t, t) - dx_t/dt ||^2,   x_t = alpha(t) data + sigma(t) noise
    sample  dx/dt = model(x, t), from x ~ N(0, I) at the noise end to the data end

Lipman et al. 2023 (arXiv 2210.02747), Liu et al. 2023 (arXiv 2209.03003), Albergo & Vanden-Eijnden 2023 (2209.15571).
"""

import dataclasses
from typing import Literal

import optax

from genjax import paths, predictions, times
from genjax.errors import UsageError
from genjax.losses import denoising
from genjax.methods import network_options, path_models
from genjax.methods.network_options import NetworkOptions
from genjax.methods.recommended import Recommended, for_path_models
from genjax.typing import Examples, Method

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
    return dataclasses.replace(config, network=network_options.resolve(config.network, examples.event_shape))


def build(config: Config, optimizer: optax.GradientTransformation, examples: Examples) -> Method:
    """The method for such examples, with their labels if class-conditional."""
    config = resolve(config, examples)
    num_classes = examples.num_classes if config.class_conditional else 0
    path, predict = _PATHS[config.path](), predictions.KINDS[config.predict]
    return path_models.build(
        network_options.make_net(config.network, examples.event_shape, num_classes),
        optimizer,
        event_shape=examples.event_shape,
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
    )
