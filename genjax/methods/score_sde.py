"""Score-based model of an SDE: learn the score of data that a diffusion turns into noise, run the diffusion backwards.

    forward  dx = f(t) x dt + g(t) dw                        vp, sub-vp or ve: paths of that name
    loss     E sigma(t)^2 || score_model(x_t, t) - grad log q(x_t | data) ||^2 = E || noise - model(x_t, t) ||^2
    sample   the reverse SDE dx = (f x - g^2 score) dt + g dw, with or without a Langevin corrector at every level;
             or the ODE dx/dt = f x - g^2 score / 2 of the same marginals

Song, Sohl-Dickstein, Kingma, Kumar, Ermon & Poole 2021 (arXiv 2011.13456); the weighting `likelihood` is that of Song, Durkan,
Murray & Ermon 2021 (2101.09258), which bounds -log p. The network predicts the noise, `-sigma score`, which is of size 1.
"""

import dataclasses
import math
from typing import Annotated, Literal

import optax
import tyro

from genjax import paths, predictions, times
from genjax.errors import UsageError
from genjax.losses import denoising
from genjax.methods import network_options, path_models
from genjax.methods.network_options import NetworkOptions
from genjax.methods.recommended import Recommended, for_path_models
from genjax.typing import Examples, Knot, Method, Path

_WEIGHTINGS = {"uniform": denoising.uniform, "likelihood": denoising.likelihood}

_FIRST_TIME = 1e-4
"""The last time before the data that training draws on vp and sub-vp: beyond it the noise drowns in float32."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Score-based model of an SDE."""

    sde: Literal["vp", "sub-vp", "ve"] = "vp"
    """how data become noise: at constant variance, below it, or by ever more noise"""
    beta_min: float = 0.1
    """rate of the noise at the data (vp, sub-vp)"""
    beta_max: float = 20.0
    """rate of the noise at the noise end (vp, sub-vp)"""
    sigma_min: float = 0.01
    """least noise level (ve)"""
    sigma_max: Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="(default: by data)")] = None
    """greatest noise level (ve): about the greatest distance between two examples"""
    weighting: Literal["uniform", "likelihood"] = "uniform"
    """factor on the squared error of the noise"""
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
    sigma_max = path_models.greatest_distance(examples) if config.sigma_max is None else config.sigma_max
    path_models.check_levels(config.sigma_min, sigma_max)
    if not 0 <= config.beta_min < config.beta_max < math.inf:
        raise UsageError(f"--beta-min is {config.beta_min} and --beta-max {config.beta_max}; expected 0 <= min < max")
    network = network_options.resolve(config.network, examples.event_shape)
    return dataclasses.replace(config, sigma_max=sigma_max, network=network)


def build(config: Config, optimizer: optax.GradientTransformation, examples: Examples) -> Method:
    """The method for such examples, with their labels if class-conditional."""
    config = resolve(config, examples)
    num_classes = examples.num_classes if config.class_conditional else 0
    path = _path(config)
    net = network_options.make_net(config.network, examples.event_shape, num_classes)
    net = path_models.with_unit_input(net, path, data_std=path_models.data_std(examples))
    first = None if config.sde == "ve" else _FIRST_TIME

    def knots(steps: int) -> Knot:
        return path_models.ending_at_data(paths.knots(path, times.uniform(path, steps)))

    return path_models.build(
        net,
        optimizer,
        examples=examples,
        num_classes=num_classes,
        path=path,
        predict=predictions.noise,
        error=predictions.noise,
        weighting=_WEIGHTINGS[config.weighting],
        density=times.low_discrepancy_density(path, end=first),
        knots=knots,
        default_sampler="euler-maruyama",
        default_steps=250 if examples.are_images else 500,
        first_order_end=True,
        ema_decay=config.ema_decay,
        label_dropout=config.label_dropout,
        compiler_options=network_options.compiler_options(config.network),
        sampling_net=network_options.sampling_net(config.network, net),
        training_options=network_options.training_options(config.network, examples.event_shape),
        sampling_options=network_options.sampling_options(config.network),
    )


def _path(config: Config) -> Path:
    if config.sde == "ve":
        return paths.ve(config.sigma_min, config.sigma_max or 1.0)
    make = paths.vp if config.sde == "vp" else paths.sub_vp
    return make(config.beta_min, config.beta_max)
