"""Denoising diffusion: learn to undo T small steps of Gaussian noise.

    chain   q(x_k | x_{k-1}) = N(sqrt(1 - beta_k) x_{k-1}, beta_k I),   t = k / T
    loss    E || noise - model(x_t, t) ||^2,   t uniform on {1, ..., T} / T
    sample  the reversed chain, or any sampler of this package on the same path

Ho et al. 2020 (arXiv 2006.11239); cosine betas: Nichol & Dhariwal 2021 (2102.09672); v: Salimans & Ho 2022
(2202.00512); min-SNR: Hang et al. 2023 (2303.09556); zero terminal SNR: Lin et al. 2024 (2305.08891).
"""

import dataclasses
import math
from typing import Literal

import optax

from genjax import paths, predictions, times
from genjax.errors import UsageError
from genjax.losses import denoising
from genjax.methods import network_options, path_models
from genjax.methods.network_options import NetworkOptions
from genjax.methods.recommended import Recommended, for_path_models
from genjax.typing import Examples, Knot, Method

_BETAS = {
    "linear": paths.linear_betas,
    "scaled-linear": paths.scaled_linear_betas,
    "cosine": paths.cosine_betas,
}
_WEIGHTINGS = {
    "uniform": denoising.uniform,
    "snr": denoising.snr,
    "truncated-snr": denoising.truncated_snr,
    "min-snr": denoising.min_snr(5.0),
    "likelihood": denoising.likelihood,
    "sigmoid": denoising.sigmoid(0.0),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Denoising diffusion probabilistic model."""

    betas: Literal["linear", "scaled-linear", "cosine"] = "linear"
    """the noise schedule"""
    num_train_steps: int = 1000
    """T, the length of the chain"""
    zero_terminal_snr: bool = False
    """rescale the schedule so that it ends in pure noise"""
    predict: Literal["noise", "data", "v"] = "noise"
    """what the network predicts, and in what the squared error is taken"""
    weighting: Literal["uniform", "snr", "truncated-snr", "min-snr", "likelihood", "sigmoid"] = "uniform"
    """factor on the squared error, by noise level"""
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
    if config.num_train_steps < 2:
        raise UsageError(f"--num-train-steps is {config.num_train_steps}; expected at least 2")
    if config.zero_terminal_snr and config.predict == "noise":
        raise UsageError("--zero-terminal-snr leaves nothing to learn from the noise: use --predict v or data")
    return dataclasses.replace(config, network=network_options.resolve(config.network, examples.event_shape))


def build(config: Config, optimizer: optax.GradientTransformation, examples: Examples) -> Method:
    """The method for such examples, with their labels if class-conditional."""
    config = resolve(config, examples)
    num_classes = examples.num_classes if config.class_conditional else 0
    betas = _BETAS[config.betas](config.num_train_steps)
    path = paths.ddpm(paths.zero_terminal_snr(betas) if config.zero_terminal_snr else betas)
    predict = predictions.KINDS[config.predict]

    def trailing_knots(steps: int) -> Knot:
        if steps > config.num_train_steps:
            raise UsageError(f"--steps is {steps}; this chain has {config.num_train_steps}")
        indices = times.trailing_indices(config.num_train_steps, steps)
        return paths.knots(path, times.discrete(indices, config.num_train_steps))

    net = network_options.make_net(config.network, examples.event_shape, num_classes)
    return path_models.build(
        net,
        optimizer,
        examples=examples,
        num_classes=num_classes,
        path=path,
        predict=predict,
        error=predict,
        weighting=_WEIGHTINGS[config.weighting],
        density=times.discrete_density(config.num_train_steps),
        knots=trailing_knots,
        default_sampler="ddim" if examples.are_images else "ddpm",
        default_steps=min(100, config.num_train_steps) if examples.are_images else config.num_train_steps,
        first_order_end=True,
        ema_decay=config.ema_decay,
        label_dropout=config.label_dropout,
        least_ratio=math.sqrt(betas[0] / (1 - betas[0])),
        compiler_options=network_options.compiler_options(config.network),
        sampling_net=network_options.sampling_net(config.network, net),
        training_options=network_options.training_options(config.network, examples.event_shape),
        sampling_options=network_options.sampling_options(config.network),
    )
