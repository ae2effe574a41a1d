"""Generative adversarial network: a generator against a critic that tells its fakes from data.

    critic      E game.critic(D(data), D(G(z))) + 1/2 (r1 E |dD/dx|^2 at data + r2 E |dD/dx|^2 at fakes)
    generator   E game.generator(D(data), D(G(z)))

Goodfellow et al. 2014 (arXiv 1406.2661). With r1 and r2 the relativistic game has no minimum without a mode and converges
locally (Huang et al. 2024, R3GAN, arXiv 2501.05441); falling weights let the critic see ever finer structure.
"""

import dataclasses
from typing import Annotated, Literal

import jax.numpy as jnp
import optax

from genjax.errors import UsageError
from genjax.losses import adversarial
from genjax.losses.adversarial import Critic
from genjax.methods import adversarial_models
from genjax.methods.adversarial_models import Players
from genjax.methods.network_options import BySteps
from genjax.methods.recommended import Recommended
from genjax.typing import Array, Examples, Key, Method, Metrics, Params

_LOG_RATIO_GAMES = ("minimax", "non-saturating", "relativistic")
"""Games whose best critic is `log p/q`, up to a constant: sampling may weigh fakes by it (`--candidates`)."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Generative adversarial network."""

    game: Literal["minimax", "non-saturating", "least-squares", "hinge", "relativistic"] = "relativistic"
    """the losses of the two players"""
    r1: Annotated[float | None, adversarial_models.NumberByData] = None
    """weight of the critic's squared slope at data"""
    r2: Annotated[float | None, adversarial_models.NumberByData] = None
    """weight of the critic's squared slope at fakes"""
    penalty_decay: Annotated[float | None, adversarial_models.NumberByData] = None
    """factor by which both weights fall, geometrically ..."""
    penalty_decay_steps: Annotated[int | None, BySteps] = None
    """... in so many steps"""
    spectral: bool = False
    """divide the critic's kernels by their largest singular values"""
    generator_rate: Annotated[float | None, adversarial_models.NumberByData] = None
    """learning rate of the generator over that of the critic"""
    critic_steps: int = 1
    """critic updates for one of the generator"""
    class_conditional: bool = False
    """learn p(data | label)"""
    ema_decay: float = 0.999
    """decay of the moving average of the parameters that sampling uses"""
    players: Players = dataclasses.field(default_factory=Players)


def recommended(examples: Examples) -> Recommended:
    """Training that gives a good result on such examples; one spike of the critic would upset the shares of the modes."""
    return adversarial_models.recommended(examples)._replace(clip_update=1.0)


def for_steps(config: Config, steps: int) -> Config:
    """`config` whose penalties fall until the end of a training of `steps` steps, if nothing else is given."""
    return config if config.penalty_decay_steps is not None else dataclasses.replace(config, penalty_decay_steps=steps)


def resolve(config: Config, examples: Examples) -> Config:
    """`config` with every default chosen.

    Raises:
        UsageError: options that do not fit the data or each other.
    """
    for name in ("r1", "r2", "penalty_decay_steps"):
        value = getattr(config, name)
        if value is not None and not value >= 0:
            raise UsageError(f"--{name.replace('_', '-')} is {value}; expected at least 0")
    if config.penalty_decay is not None and not 0 < config.penalty_decay <= 1:
        raise UsageError(f"--penalty-decay is {config.penalty_decay}; expected above 0 and at most 1")
    if config.spectral and config.players.octaves:
        raise UsageError("--spectral bounds the critic's slope, which --octaves raises: use one of them")
    if config.generator_rate is not None:
        adversarial_models.check_positive(generator_rate=config.generator_rate)
    decay, generator_rate = (0.1, 1.0) if examples.are_images else (0.001, 0.09)
    octaves = 0 if config.spectral else config.players.octaves
    config = dataclasses.replace(
        config,
        r1=1.0 if config.r1 is None else config.r1,
        r2=1.0 if config.r2 is None else config.r2,
        penalty_decay=decay if config.penalty_decay is None else config.penalty_decay,
        penalty_decay_steps=for_steps(config, recommended(examples).steps).penalty_decay_steps,
        generator_rate=generator_rate if config.generator_rate is None else config.generator_rate,
        players=dataclasses.replace(config.players, octaves=octaves),
    )
    return adversarial_models.resolve(config, examples)


def build(config: Config, optimizer: optax.GradientTransformation, examples: Examples) -> Method:
    """The method for such examples, with their labels if class-conditional."""
    config = resolve(config, examples)
    r1, r2, decay, decay_steps = (
        config.r1 or 0.0,
        config.r2 or 0.0,
        config.penalty_decay or 1.0,
        config.penalty_decay_steps or 1,
    )
    game = adversarial.GAMES[config.game]

    def penalty(critic: Critic, key: Key, real: Array, fake: Array, step: Array) -> Array:
        falling = decay ** jnp.minimum(step / decay_steps, 1.0)
        at_data = r1 * adversarial.r1(critic, real) if r1 else jnp.zeros(len(real))
        at_fakes = r2 * adversarial.r2(critic, fake) if r2 else jnp.zeros(len(fake))
        return 0.5 * falling * (at_data + at_fakes)

    def held_out(real: Array, fake: Array) -> Metrics:
        return {"critic_loss": jnp.mean(game.critic(real, fake))}

    return adversarial_models.build(
        config.players,
        optimizer,
        examples,
        num_classes=examples.num_classes if config.class_conditional else 0,
        game=game,
        penalty=penalty if r1 or r2 else None,
        critic_params=_spectral_normalise if config.spectral else lambda params: params,
        critic_steps=config.critic_steps,
        generator_rate=config.generator_rate or 1.0,
        ema_decay=config.ema_decay,
        candidates=None if config.game not in _LOG_RATIO_GAMES else 1 if examples.are_images else 4,
        held_out=held_out,
    )


def _spectral_normalise(params: Params) -> Params:
    from genjax.networks.critic import spectral_normalise

    return spectral_normalise(params)
