"""EDM: a denoiser whose input, output and loss are scaled so that the network always sees and says numbers of size one.

    path    x = data + sigma noise,   sigma from 80 down to 0
    model   D(x) = c_skip x + c_out F(c_in x, log(sigma) / 4)
    loss    E || F - its target ||^2,   log sigma ~ N(mean, 1.2^2)
    sample  Heun's method on dx/dsigma = (x - D) / sigma, on the grid of eq. 5; or with fresh noise at every step

Karras, Aittala, Aila & Laine 2022 (arXiv 2206.00364), table 1 and algorithms 1 and 2. The scalings are the prediction kind
`predictions.edm`; the loss weight of table 1 is 1 on the error of F.
"""

import dataclasses
import math
from typing import Annotated

import jax.numpy as jnp
import optax
import tyro

from genjax import paths, predictions, times
from genjax.errors import UsageError
from genjax.losses import denoising
from genjax.methods import network_options, path_models
from genjax.methods.network_options import NetworkOptions
from genjax.methods.recommended import Recommended, for_path_models
from genjax.typing import Examples, Knot, Method

_NumberByData = Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="(default: by data)")]


@dataclasses.dataclass(frozen=True)
class Config:
    """Preconditioned denoiser of EDM."""

    sigma_max: float = 80.0
    """the greatest noise level, where sampling starts"""
    sigma_min: float = 0.002
    """the least noise level before 0 in sampling"""
    rho: float = 7.0
    """how much denser the grid is near the data"""
    data_std: _NumberByData = None
    """standard deviation of the data in model units"""
    log_sigma_mean: _NumberByData = None
    """mean of the logarithm of the noise level in training"""
    log_sigma_std: float = 1.2
    """its standard deviation"""
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
    path_models.check_levels(config.sigma_min, config.sigma_max)
    data_std = path_models.data_std(examples) if config.data_std is None else config.data_std
    for name, value in {"rho": config.rho, "data-std": data_std, "log-sigma-std": config.log_sigma_std}.items():
        if not 0 < value < math.inf:
            raise UsageError(f"--{name} is {value}; expected a number above 0")
    # the mean of the paper is for data of deviation 0.5; what matters is the level relative to that of the data
    mean = -1.2 + math.log(data_std / 0.5) if config.log_sigma_mean is None else config.log_sigma_mean
    network = network_options.resolve(config.network, examples.event_shape)
    return dataclasses.replace(config, data_std=data_std, log_sigma_mean=mean, network=network)


def build(config: Config, optimizer: optax.GradientTransformation, examples: Examples) -> Method:
    """The method for such examples, with their labels if class-conditional."""
    config = resolve(config, examples)
    data_std, mean = config.data_std or 1.0, config.log_sigma_mean or 0.0
    num_classes = examples.num_classes if config.class_conditional else 0
    path, predict = paths.edm(config.sigma_max), predictions.edm(data_std)
    net = network_options.make_net(config.network, examples.event_shape, num_classes)
    net = path_models.with_unit_input(net, path, data_std=data_std, clock=lambda sigma: jnp.log(sigma) / 4)

    def knots(steps: int) -> Knot:
        grid = times.karras(path, steps, sigma_min=config.sigma_min, sigma_max=config.sigma_max, rho=config.rho)
        return paths.knots(path, grid)

    return path_models.build(
        net,
        optimizer,
        examples=examples,
        num_classes=num_classes,
        path=path,
        predict=predict,
        error=predict,
        weighting=denoising.uniform,
        density=times.lognormal_density(mean, config.log_sigma_std),
        knots=knots,
        default_sampler="heun",
        default_steps=18 if examples.are_images else 40,
        first_order_end=True,
        ema_decay=config.ema_decay,
        label_dropout=config.label_dropout,
        compiler_options=network_options.compiler_options(config.network),
        sampling_net=network_options.sampling_net(config.network, net),
        training_options=network_options.training_options(config.network, examples.event_shape),
        sampling_options=network_options.sampling_options(config.network),
    )
