"""Wasserstein GAN: the critic estimates a multiple of W1, its parameters clipped to bound its slope.

    critic      E D(G(z)) - E D(data), then every parameter clipped to [-c, c]
    generator   -E D(G(z)), every `critic_steps`-th step

Clipping gives a critic of few slopes: `wgan-gp` bounds the slope itself. Arjovsky et al. 2017 (arXiv 1701.07875),
algorithm 1.
"""

import dataclasses
from typing import Annotated

import jax.numpy as jnp
import optax

from genjax.losses import adversarial
from genjax.methods import adversarial_models
from genjax.methods.adversarial_models import Players
from genjax.methods.recommended import Recommended
from genjax.typing import Array, Examples, Method, Metrics


@dataclasses.dataclass(frozen=True)
class Config:
    """Wasserstein GAN with clipping."""

    clip: Annotated[float | None, adversarial_models.NumberByData] = None
    """c, the greatest size of a parameter of the critic"""
    critic_steps: int = 5
    """critic updates for one of the generator"""
    class_conditional: bool = False
    """learn p(data | label)"""
    ema_decay: float = 0.999
    """decay of the moving average of the parameters that sampling uses"""
    players: Players = dataclasses.field(default_factory=Players)


def recommended(examples: Examples) -> Recommended:
    """Training that gives a good result on such examples."""
    if examples.are_images:
        return adversarial_models.recommended(examples, critic_steps=Config.critic_steps)
    return Recommended(30_000, 256, 1e-3, steps_per_dispatch=200, b1=0.0, b2=0.99)


def resolve(config: Config, examples: Examples) -> Config:
    """`config` with every default chosen.

    Raises:
        UsageError: options that do not fit the data or each other.
    """
    clip = config.clip
    if clip is None:
        clip = 0.01 if examples.are_images else 0.1
    adversarial_models.check_positive(clip=clip)
    config = dataclasses.replace(config, clip=clip)
    return adversarial_models.resolve(config, examples, points=adversarial_models.SMOOTH_POINTS)


def build(config: Config, optimizer: optax.GradientTransformation, examples: Examples) -> Method:
    """The method for such examples, with their labels if class-conditional."""
    config = resolve(config, examples)
    clip = config.clip or 0.0
    return adversarial_models.build(
        config.players,
        optimizer,
        examples,
        num_classes=examples.num_classes if config.class_conditional else 0,
        game=adversarial.wasserstein,
        constrain=lambda params: adversarial.clip_weights(params, clip),
        critic_steps=config.critic_steps,
        ema_decay=config.ema_decay,
        held_out=critic_gap,
    )


def critic_gap(real: Array, fake: Array) -> Metrics:
    """`E D(real) - E D(fake)`: W1 times the greatest slope of the critic, if it is an optimal one."""
    return {"critic_gap": jnp.mean(real) - jnp.mean(fake)}
