"""Wasserstein GAN with a gradient penalty: the critic's slope is held at 1 between data and fakes.

    critic      E D(G(z)) - E D(data) + lambda E (|dD/dx| - 1)^2 at x = u data + (1 - u) G(z), u uniform
    generator   -E D(G(z)), every `critic_steps`-th step

The held-out `wasserstein` is `E D(data) - E D(G(z))` of data that no training has seen: W1 for an optimal critic,
up to the penalty's bias. Gulrajani et al. 2017 (arXiv 1704.00028), algorithm 1.
"""

import dataclasses
from typing import Annotated

import jax.numpy as jnp
import optax

from genjax.losses import adversarial
from genjax.losses.adversarial import Critic
from genjax.methods import adversarial_models
from genjax.methods.adversarial_models import Players
from genjax.methods.recommended import Recommended
from genjax.typing import Array, Examples, Key, Method, Metrics


@dataclasses.dataclass(frozen=True)
class Config:
    """Wasserstein GAN with a gradient penalty."""

    gradient_penalty: Annotated[float | None, adversarial_models.NumberByData] = None
    """lambda, the weight of the penalty"""
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
    return Recommended(30_000, 256, 1e-3, steps_per_dispatch=200, b1=0.5, b2=0.9)


def resolve(config: Config, examples: Examples) -> Config:
    """`config` with every default chosen.

    Raises:
        UsageError: options that do not fit the data or each other.
    """
    weight = config.gradient_penalty
    if weight is None:
        weight = 10.0 if examples.are_images else 0.1
    adversarial_models.check_positive(gradient_penalty=weight)
    config = dataclasses.replace(config, gradient_penalty=weight)
    return adversarial_models.resolve(config, examples, points=adversarial_models.SMOOTH_POINTS)


def build(config: Config, optimizer: optax.GradientTransformation, examples: Examples) -> Method:
    """The method for such examples, with their labels if class-conditional."""
    config = resolve(config, examples)
    weight = config.gradient_penalty or 0.0

    def penalty(critic: Critic, key: Key, real: Array, fake: Array, step: Array) -> Array:
        return weight * adversarial.gradient_penalty(critic, key, real, fake)

    return adversarial_models.build(
        config.players,
        optimizer,
        examples,
        num_classes=examples.num_classes if config.class_conditional else 0,
        game=adversarial.wasserstein,
        penalty=penalty,
        critic_steps=config.critic_steps,
        ema_decay=config.ema_decay,
        held_out=wasserstein_estimate,
    )


def wasserstein_estimate(real: Array, fake: Array) -> Metrics:
    """`E D(real) - E D(fake)`, in model units."""
    return {"wasserstein": jnp.mean(real) - jnp.mean(fake)}
