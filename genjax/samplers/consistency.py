"""Samples of a consistency model: one call takes noise to data; more calls add noise again, and take it away again.

With f the consistency function of `x_t = data + t noise`, identity at sigma_min (`genjax.losses.consistency`),

    data <- f(levels[0] noise, levels[0])
    data <- f(data + sqrt(level^2 - sigma_min^2) z, level),   z ~ N(0, I), for each further level

An exact f carries the marginal of each level to that of sigma_min, and the noise carries it back: then every estimate has the
same distribution, that of the data blurred by sigma_min. One call from `levels[0]` takes the marginal there to be
N(0, levels[0]^2 I).

Song, Dhariwal, Chen & Sutskever 2023 (arXiv 2303.01469), algorithm 1.
"""

from typing import Any

import jax
import jax.numpy as jnp

from genjax.arrays import as_example_keys, fold_each, normal
from genjax.typing import Array, Key, Model


def consistency_sample(
    model: Model, key: Key, noise: Array, *, levels: Array, sigma_min: float = 0.002, trace: bool = False
) -> Any:
    """One estimate of the data for each level, each from the one before: as many calls, one `lax.scan`.

    Jit it at your boundary; levels are data, so others as many do not recompile.

    Args:
        model: the consistency function `f(x [B, ...], t [B]) -> [B, ...]`.
        key: a key; or one key an example `[B]`, on its own alone of which example i depends; or the noise of all levels but
            the first, standard normal `[n - 1, B, ...]`. One level needs none of it.
        noise: `[B, ...]`, standard normal: sampling starts at `levels[0] * noise`.
        levels: `[n]`, noise levels: the first is sigma_max, the rest lie between that and sigma_min, in the paper falling.
        sigma_min: the level at which f is the identity.
        trace: also return every estimate.

    Returns:
        The last estimate `[B, ...]`; with `trace`, the pair of it and all estimates `[n, B, ...]`.

    Raises:
        ValueError: levels are not a vector of at least one, or handed-in noise is of another number of levels.

    Clock: t is the noise level, as on `paths.edm()`.

    Example:
        >>> f = lambda x, t: x / (1 + t)[:, None] ** 2
        >>> consistency_sample(f, jax.random.key(0), jnp.ones((1, 2)), levels=jnp.asarray([3.0])).tolist()
        [[0.1875, 0.1875]]
    """
    if levels.ndim != 1 or not levels.shape[0]:
        raise ValueError(f"levels have shape {levels.shape}; expected a vector of at least one")
    num, levels = levels.shape[0], levels.astype(noise.dtype)
    none = jnp.zeros(1, noise.dtype)  # the last estimate gets no noise
    stds = jnp.concatenate([jnp.sqrt(jnp.maximum((levels[1:] - sigma_min) * (levels[1:] + sigma_min), 0)), none])
    if jnp.issubdtype(key.dtype, jnp.floating):
        if key.shape != (num - 1, *noise.shape):
            raise ValueError(f"noise has shape {key.shape}; expected {(num - 1, *noise.shape)}")
        step_keys, key_of = jnp.concatenate([key, jnp.zeros((1, *noise.shape), key.dtype)]), lambda fresh: fresh
    else:
        keys = as_example_keys(key, noise.shape[0])
        step_keys, key_of = jnp.arange(num), lambda index: fold_each(keys, index)

    def advance(x: Array, level: Any) -> tuple[Array, Array | None]:
        step_key, t, std = level
        data = model(x, jnp.broadcast_to(t, x.shape[:1])).astype(x.dtype)
        return data + std * normal(key_of(step_key), x.shape, x.dtype), data if trace else None

    last, estimates = jax.lax.scan(advance, levels[0] * noise, (step_keys, levels, stds))
    return (last, estimates) if trace else last
