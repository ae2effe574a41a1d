"""Euler-Maruyama on the reverse-time SDE of a path.

With the SDE `dx = f x dt + g dw` of `paths.drift_and_diffusion`, its reversal run from noise to data is the
probability-flow velocity v plus Langevin noise at rate g^2 (Song et al. 2021, arXiv 2011.13456, eqs 6 and 13):

    x_then = x + h v + |h| g^2 / 2 * score + g sqrt(|h|) z,   g^2 / 2 * score = -|sigma' - sigma alpha'/alpha| * noise
"""

import jax.numpy as jnp

from genjax import paths
from genjax.arrays import normal
from genjax.samplers.loop import Sampler, one_step
from genjax.typing import Array, Denoiser, Key, Knot, Path


def euler_maruyama(path: Path) -> Sampler:
    """Euler-Maruyama on the reverse SDE. One call a step, weak order 1.

    A step that lands on sigma = 0 adds no noise (it returns the mean). A step that leaves from alpha = 0, where g is
    infinite, takes the exact transition given the estimate of the data: `alpha_then data + sigma_then z`.
    """

    def step(denoise: Denoiser, key: Key, x: Array, now: Knot, then: Knot) -> Array:
        h = then.t - now.t
        data, noise = denoise(x, now)
        d_alpha, d_sigma = paths.derivatives(path, now.t)
        starts_blind = now.alpha == 0
        alpha = jnp.where(starts_blind, 1.0, now.alpha)
        half_rate = jnp.abs(d_sigma - now.sigma * d_alpha / alpha)  # g^2 / (2 sigma)
        std = jnp.sqrt(2 * half_rate * now.sigma * jnp.abs(h))
        mean = x + h * (d_alpha * data + d_sigma * noise) - jnp.abs(h) * half_rate * noise
        mean = jnp.where(starts_blind, then.alpha * data, mean)
        std = jnp.where(starts_blind, then.sigma, jnp.where(then.sigma == 0, 0.0, std))
        return mean + std * normal(key, x.shape, x.dtype)

    return one_step(step)
