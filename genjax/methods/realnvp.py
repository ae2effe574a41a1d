"""RealNVP: a normalizing flow of affine couplings, trained by exact likelihood.

Each layer scales and shifts one half of the coordinates by amounts that the other half chooses (`methods.flows`,
`bijectors.affine_coupling`). On images the layers are those of Glow.
Dinh, Sohl-Dickstein & Bengio 2017 (arXiv 1605.08803), Kingma & Dhariwal 2018 (arXiv 1807.03039).
"""

import dataclasses

import optax

from genjax import bijectors
from genjax.errors import UsageError
from genjax.methods import flows
from genjax.methods.flows import recommended
from genjax.typing import Examples, Method

__all__ = ["Config", "build", "recommended", "resolve"]


@dataclasses.dataclass(frozen=True)
class Config(flows.Config):
    """Normalizing flow of affine couplings."""


def resolve(config: Config, examples: Examples) -> Config:
    """`config` with every default chosen.

    Raises:
        UsageError: options that do not fit the data.
    """
    flows.check(config, examples)
    if examples.event_shape == (1,):
        raise UsageError("realnvp cannot split examples of one coordinate: use spline-flow or made")
    depth, width = (6, 64) if examples.are_images else (16, 128)
    return dataclasses.replace(config, depth=config.depth or depth, width=config.width or width)


def build(config: Config, optimizer: optax.GradientTransformation, examples: Examples) -> Method:
    """The method for such examples, given their labels if class-conditional."""
    config = resolve(config, examples)
    return flows.build(
        lambda conditioner, passing: bijectors.affine_coupling(conditioner, passing=passing),
        optimizer,
        examples,
        outputs=2,
        depth=config.depth or 0,
        width=config.width or 0,
        num_classes=examples.num_classes if config.class_conditional else 0,
        ema_decay=config.ema_decay,
    )
