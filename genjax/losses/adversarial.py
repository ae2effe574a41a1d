"""Adversarial games and the penalties of their critics, from logits, one value per example.

A critic D tells real from fake, a generator G makes fakes. Each game is a pair of functions of their logits,
`critic(real, fake) -> [B]` and `generator(real, fake) -> [B]`, both to be minimised by their own player:

    game             critic                                       generator
    minimax          softplus(-real) + softplus(fake)             -softplus(fake)
    non_saturating   the same                                     softplus(-fake)
    least_squares    ((real - 1)^2 + fake^2) / 2                  (fake - 1)^2 / 2
    hinge            max(0, 1 - real) + max(0, 1 + fake)          -fake
    wasserstein      fake - real                                  -fake
    relativistic     softplus(fake - real)                        softplus(real - fake)

`softplus(-l) = -log sigmoid(l)`, so the first is `-log D(real) - log(1 - D(fake))` without a logarithm of a
probability; in expectation, at the optimal critic, it is `log 4 - 2 JS`.

Goodfellow et al. 2014 (arXiv 1406.2661), eqs 1 and section 3; Mao et al. 2017 (1611.04076), eq. 9 with a = 0, b = c = 1;
Lim & Ye 2017 (1705.02894) and Miyato et al. 2018 (1802.05957), eqs 16-17; Arjovsky et al. 2017 (1701.07875), eq. 2;
Jolicoeur-Martineau 2018 (1807.00734), in the paired form of Huang et al. 2024 (R3GAN, 2501.05441), eq. 1.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from genjax.arrays import expand, softplus, sum_events
from genjax.typing import Array, Key, Params

Critic = Callable[[Array], Array]
"""`D(x [B, ...]) -> logits [B]`; example i depends on x[i] alone, so no batch normalisation."""


class Game(NamedTuple):
    """The losses of the two players, functions of `(real logits [B], fake logits [B])`, each `[B]`."""

    critic: Callable[[Array, Array], Array]
    generator: Callable[[Array, Array], Array]


def _cross_entropy(real: Array, fake: Array) -> Array:
    return softplus(-real) + softplus(fake)


minimax = Game(_cross_entropy, lambda real, fake: -softplus(fake))
"""Goodfellow's game of value `-log 4 + 2 JS`; the generator's gradient vanishes where the critic is sure."""

non_saturating = Game(_cross_entropy, lambda real, fake: softplus(-fake))
"""The same critic, and a generator that climbs `log D(fake)`: the same fixed point, and a gradient where D is sure."""

least_squares = Game(
    lambda real, fake: 0.5 * (jnp.square(real - 1) + jnp.square(fake)),
    lambda real, fake: 0.5 * jnp.square(fake - 1),
)
"""Regression of the logits on 1 and 0."""

hinge = Game(lambda real, fake: jax.nn.relu(1 - real) + jax.nn.relu(1 + fake), lambda real, fake: -fake)
"""A critic that rests where it is right by a margin of 1."""

wasserstein = Game(lambda real, fake: fake - real, lambda real, fake: -fake)
"""The dual of W1; the critic must be kept 1-Lipschitz by a penalty or by clipping."""

relativistic = Game(
    lambda real, fake: softplus(fake - real),
    lambda real, fake: softplus(real - fake),
)
"""Pairs: is this real one more real than that fake one? With `r1` and `r2` it has no mode-dropping minima."""

GAMES: dict[str, Game] = {
    "minimax": minimax,
    "non-saturating": non_saturating,
    "least-squares": least_squares,
    "hinge": hinge,
    "wasserstein": wasserstein,
    "relativistic": relativistic,
}


def squared_slope(critic: Critic, points: Array) -> Array:
    """`|dD/dx|^2` at each of `points [B, ...]`: `[B]`, summed over event axes."""
    return sum_events(jnp.square(_slopes(critic, points)))


def _slopes(critic: Critic, points: Array) -> Array:
    return jax.grad(lambda x: jnp.sum(critic(x)))(points)


def slope_penalty(critic: Critic, points: Array, *, target: float = 1.0, one_sided: bool = False) -> Array:
    """`(|dD/dx| - target)^2` at given points: `[B]`.

    Args:
        critic: `D(x [B, ...]) -> [B]`.
        points: `[B, ...]`.
        target: the slope that costs nothing.
        one_sided: only steeper slopes cost: `max(|dD/dx| - target, 0)^2`.
    """
    square = squared_slope(critic, points)
    positive = square > 0  # the norm has no derivative at 0: a flat critic gets none there instead of NaN
    excess = jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0) - target
    return jnp.square(jax.nn.relu(excess) if one_sided else excess)


def gradient_penalty(
    critic: Critic, key: Key, real: Array, fake: Array, *, target: float = 1.0, one_sided: bool = False
) -> Array:
    """WGAN-GP's `(|dD/dx| - 1)^2` at `u real + (1 - u) fake`, u uniform and one an example: `[B]`, without its factor.

    Args:
        critic: `D(x [B, ...]) -> [B]`.
        key: a key.
        real: `[B, ...]`.
        fake: `[B, ...]`, paired with `real`.
        target: the slope that costs nothing.
        one_sided: only steeper slopes cost.

    Source: Gulrajani et al. 2017 (arXiv 1704.00028), eq. 3; its factor lambda is 10.
    """
    u = expand(jax.random.uniform(key, real.shape[:1], real.dtype), real)
    return slope_penalty(critic, u * real + (1 - u) * fake, target=target, one_sided=one_sided)


def r1(critic: Critic, real: Array) -> Array:
    """`|dD/dx|^2` at the data, `[B]`, without the factor gamma / 2 (Mescheder et al. 2018, arXiv 1801.04406, eq. 9)."""
    return squared_slope(critic, real)


def r2(critic: Critic, fake: Array) -> Array:
    """`|dD/dx|^2` at the fakes, `[B]`, without the factor gamma / 2 (Mescheder et al. 2018, eq. 10)."""
    return squared_slope(critic, fake)


def clip_weights(params: Params, limit: float) -> Params:
    """Every parameter clipped to `[-limit, limit]` (Arjovsky et al. 2017, arXiv 1701.07875, algorithm 1)."""
    return jax.tree.map(lambda leaf: jnp.clip(leaf, -limit, limit), params)
