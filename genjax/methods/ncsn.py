"""Noise-conditional score network: one score for each of many noise levels, sampled by Langevin steps from high to low.

    levels  sigma_max = sigma_1 > ... > sigma_L = sigma_min, geometric
    loss    1/L sum_i sigma_i^2 E || score_model(data + sigma_i noise, sigma_i) + noise / sigma_i ||^2
    sample  at each level in turn  x <- x + h score + sqrt(2 h) z,  h = step_size sigma_i^2;  last the mean of the data given x

Song & Ermon 2019 (arXiv 1907.05600), eqs 5-6 and algorithm 1; levels, size of the network's output and the last denoising as in
Song & Ermon 2020 (2006.09011). The network predicts the noise, `-sigma score`.
"""

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from genjax import paths, predictions
from genjax.errors import UsageError
from genjax.losses import denoising
from genjax.methods import network_options, path_models
from genjax.methods.network_options import ByData, NetworkOptions
from genjax.methods.recommended import Recommended, for_path_models
from genjax.typing import Array, Examples, Key, Knot, Method


@dataclasses.dataclass(frozen=True)
class Config:
    """Noise-conditional score network."""

    levels: Annotated[int | None, ByData] = None
    """how many noise levels"""
    sigma_min: float = 0.01
    """the least of them"""
    sigma_max: Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="(default: by data)")] = None
    """the greatest of them: about the greatest distance between two examples"""
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
    levels = (100 if examples.are_images else 30) if config.levels is None else config.levels
    if levels < 2:
        raise UsageError(f"--levels is {levels}; expected at least 2")
    network = network_options.resolve(config.network, examples.event_shape)
    return dataclasses.replace(config, levels=levels, sigma_max=sigma_max, network=network)


def build(config: Config, optimizer: optax.GradientTransformation, examples: Examples) -> Method:
    """The method for such examples, with their labels if class-conditional."""
    config = resolve(config, examples)
    levels, num_classes = config.levels or 2, examples.num_classes if config.class_conditional else 0
    path = paths.ve(config.sigma_min, config.sigma_max or 1.0)
    net = network_options.make_net(config.network, examples.event_shape, num_classes)
    net = path_models.with_unit_input(net, path, data_std=path_models.data_std(examples))

    def density(key: Key, num: int) -> Array:
        return jax.random.randint(key, (num,), 0, levels) / (levels - 1)

    def knots(steps: int) -> Knot:
        """Every level for an equal number of steps where there are more steps than levels, else some levels."""
        level = np.arange(steps) * levels // steps
        t = 1 - np.append(level, levels - 1) / (levels - 1)
        return path_models.ending_at_data(paths.knots(path, jnp.asarray(t, jnp.float32)))

    return path_models.build(
        net,
        optimizer,
        examples=examples,
        num_classes=num_classes,
        path=path,
        predict=predictions.noise,
        error=predictions.noise,
        weighting=denoising.uniform,
        density=density,
        knots=knots,
        default_sampler="annealed-langevin",
        default_steps=500 if examples.are_images else 600,
        first_order_end=True,
        ema_decay=config.ema_decay,
        label_dropout=config.label_dropout,
        compiler_options=network_options.compiler_options(config.network),
        sampling_net=network_options.sampling_net(config.network, net),
        training_options=network_options.training_options(config.network, examples.event_shape),
        sampling_options=network_options.sampling_options(config.network),
    )
