"""Neural spline flow: a normalizing flow of monotone rational-quadratic splines, trained by exact likelihood.

Each layer bends every coordinate of one half by a spline whose knots and slopes the other half chooses
(`methods.flows`, `bijectors.spline_coupling`). Durkan, Bekasov, Murray & Papamakarios 2019 (arXiv 1906.04032).
"""

import dataclasses
from typing import Annotated

import optax

from genjax import bijectors
from genjax.errors import UsageError
from genjax.methods import flows
from genjax.methods.flows import recommended
from genjax.methods.network_options import ByData
from genjax.typing import Examples, Method

__all__ = ["Config", "build", "recommended", "resolve"]


@dataclasses.dataclass(frozen=True)
class Config(flows.Config):
    """Normalizing flow of splines."""

    bins: Annotated[int | None, ByData] = None
    """pieces of a spline"""
    bound: float = 4.0
    """half of the interval that a spline bends, in units of the data's spread"""


def resolve(config: Config, examples: Examples) -> Config:
    """`config` with every default chosen.

    Raises:
        UsageError: options that do not fit the data.
    """
    flows.check(config, examples)
    if config.bins is not None and not 1 <= config.bins <= 256:
        raise UsageError(f"--bins is {config.bins}; expected 1 to 256")
    if not config.bound > 0:
        raise UsageError(f"--bound is {config.bound}; expected more than 0")
    depth, width, bins = (6, 64, 8) if examples.are_images else (8, 128, 16)
    return dataclasses.replace(
        config, depth=config.depth or depth, width=config.width or width, bins=config.bins or bins
    )


def build(config: Config, optimizer: optax.GradientTransformation, examples: Examples) -> Method:
    """The method for such examples, given their labels if class-conditional."""
    config = resolve(config, examples)
    bins = config.bins or 0
    return flows.build(
        lambda conditioner, passing: bijectors.spline_coupling(
            conditioner, passing=passing, bins=bins, bound=config.bound
        ),
        optimizer,
        examples,
        outputs=3 * bins - 1,
        depth=config.depth or 0,
        width=config.width or 0,
        num_classes=examples.num_classes if config.class_conditional else 0,
        ema_decay=config.ema_decay,
    )
