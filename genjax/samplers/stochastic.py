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

    Two steps draw `alpha_then data + sigma_then z` from the estimate of the data instead: one that leaves from
    alpha = 0, where g is infinite; and one that lands on sigma = 0, where that is the estimate itself
    (Jolicoeur-Martineau et al. 2021, arXiv 2009.05475), while the scheme would overshoot it by sigma_now.
    """

    def step(denoise: Denoiser, key: Key, x: Array, now: Knot, then: Knot) -> Array:
        h = then.t - now.t
        data, noise = denoise(x, now)
        d_alpha, d_sigma = paths.derivatives(path, now.t)
        alpha = jnp.where(now.alpha == 0, 1.0, now.alpha)
        half_rate = jnp.abs(d_sigma - now.sigma * d_alpha / alpha)  # g^2 / (2 sigma)
        std = jnp.sqrt(2 * half_rate * now.sigma * jnp.abs(h))
        mean = x + h * (d_alpha * data + d_sigma * noise) - jnp.abs(h) * half_rate * noise
        from_estimate = (now.alpha == 0) | (then.sigma == 0)
        mean = jnp.where(from_estimate, then.alpha * data, mean)
        std = jnp.where(from_estimate, then.sigma, std)
        return mean + std * normal(key, x.shape, x.dtype)

    return one_step(step)
