"""Ancestral and DDIM steps: they read only (alpha, sigma) of the two knots, so they work on any path.

With the estimates (data, noise) at `now` and `r = (alpha_now sigma_then) / (alpha_then sigma_now)`, a step draws

    x_then = alpha_then data + sqrt(sigma_then^2 - s^2) noise + s z,   z ~ N(0, I)
    DDIM(eta):       s = eta sigma_then sqrt(1 - r^2)

(Song et al. 2021, arXiv 2010.02502, eqs 12 and 16). eta = 1 is the DDPM step with the posterior variance, whose mean
is `alpha_then data + r sigma_then noise` (Ho et al. 2020, arXiv 2006.11239, eqs 6-7).
"""

from collections.abc import Callable
from typing import Any, Literal

import jax.numpy as jnp

from genjax.arrays import normal
from genjax.samplers.loop import Sampler, one_step
from genjax.typing import Array, Denoiser, Key, Knot


def _fresh_share(now: Knot, then: Knot) -> tuple[Array, Array]:
    """`r` and `1 - r^2`."""
    r = (now.alpha * then.sigma) / (then.alpha * now.sigma)
    return r, (1 - r) * (1 + r)


def ddim(eta: float = 0.0) -> Sampler:
    """DDIM; eta scales the standard deviation of the fresh noise. eta = 0 is deterministic. One call, order 1.

    Args:
        eta: at least 0; 1 gives DDPM's posterior variance.

    Raises:
        ValueError: eta is negative.
    """
    if eta < 0:
        raise ValueError(f"eta is {eta}; expected at least 0")

    def step(denoise: Denoiser, key: Key, x: Array, now: Knot, then: Knot) -> Array:
        data, noise = denoise(x, now)
        if eta == 0:
            return then.alpha * data + then.sigma * noise
        _, fresh = _fresh_share(now, then)
        std = eta * then.sigma * jnp.sqrt(fresh)
        kept = jnp.sqrt(jnp.maximum(then.sigma**2 - std**2, 0))
        return then.alpha * data + kept * noise + std * normal(key, x.shape, x.dtype)

    return one_step(step)


def ddpm(variance: Literal["small", "large", "learned"] = "small") -> Sampler:
    """The ancestral step `N(alpha_then data + r sigma_then noise, variance)`. One call.

    `small`: the posterior variance `sigma_then^2 (1 - r^2)` (beta-tilde); `large`: the transition's
    `sigma_now^2 (1 - r^2)` (beta); `learned`: `large^f small^(1 - f)`, with f of each number from a denoiser that also
    predicts it (`predictions.denoiser_with_variance`). A step that lands on sigma = 0 adds no noise (Ho et al. 2020, algorithm 2).

    Raises:
        ValueError: variance is none of these.

    Source: Ho et al. 2020 (arXiv 2006.11239), section 3.2; Nichol & Dhariwal 2021 (arXiv 2102.09672), eq. 15.
    """
    if variance not in ("small", "large", "learned"):
        raise ValueError(f"variance is {variance!r}; expected 'small', 'large' or 'learned'")

    def step(denoise: Callable[..., Any], key: Key, x: Array, now: Knot, then: Knot) -> Array:
        estimate = denoise(x, now)
        r, fresh = _fresh_share(now, then)
        if variance == "learned":
            level = then.sigma * (now.sigma / jnp.where(then.sigma == 0, 1.0, then.sigma)) ** estimate.fraction
        else:
            level = now.sigma if variance == "large" else then.sigma
        std = jnp.where(then.sigma == 0, 0.0, level) * jnp.sqrt(fresh)
        return then.alpha * estimate.data + r * then.sigma * estimate.noise + std * normal(key, x.shape, x.dtype)

    return one_step(step)
