"""Euler-Maruyama on the reverse-time SDE of a path, and noise put back before the steps of a deterministic sampler.

With the SDE `dx = f x dt + g dw` of `paths.drift_and_diffusion`, its reversal run from noise to data is the
probability-flow velocity v plus Langevin noise at rate g^2 (Song et al. 2021, arXiv 2011.13456, eqs 6 and 13):

    x_then = x + h v + |h| g^2 / 2 * score + g sqrt(|h|) z,   g^2 / 2 * score = -|sigma' - sigma alpha'/alpha| * noise
"""

import math

import jax.numpy as jnp

from genjax import paths
from genjax.arrays import normal
from genjax.samplers.loop import Memory, Sampler, one_step
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


def churned(
    sampler: Sampler,
    path: Path,
    *,
    gamma: float = math.sqrt(2) - 1,
    lowest: float = 0.0,
    highest: float = math.inf,
    noise_scale: float = 1.0,
) -> Sampler:
    """`sampler`, each step of which starts from a noisier time: fresh noise corrects the errors of earlier steps.

    With r = sigma / alpha, a step from r first adds noise up to `r (1 + gamma)`, exactly so on `paths.edm()` and else to first
    order in gamma, and not beyond the noise end of the path; then `sampler` goes from there to where the step ends.
    With an exact denoiser and exact steps the marginals stay what they are.

    Args:
        sampler: deterministic, e.g. `heun(path)`, with which this is EDM's stochastic sampler.
        path: the path of the grid.
        gamma: at least 0, which is `sampler` itself; EDM has `min(S_churn / steps, sqrt(2) - 1)`.
        lowest: the least r from which noise is added (S_tmin).
        highest: the greatest (S_tmax).
        noise_scale: the deviation of the noise added over what keeps the marginals (S_noise).

    Source: Karras et al. 2022 (arXiv 2206.00364), algorithm 2.
    """

    def step(denoise: Denoiser, key: Key, x: Array, memory: Memory, now: Knot, then: Knot) -> tuple[Array, Memory]:
        d_alpha, d_sigma = paths.derivatives(path, now.t)
        to_next_ratio = now.sigma * now.alpha / (d_sigma * now.alpha - now.sigma * d_alpha)  # r / r'
        churns = (now.sigma >= lowest * now.alpha) & (now.sigma <= highest * now.alpha) & (now.alpha > 0)
        start, end = sorted((path.t_data, path.t_noise))
        t = jnp.clip(now.t + gamma * to_next_ratio, start, end)
        noisier = Knot(*(jnp.where(churns, a, b) for a, b in zip(paths.knots(path, t), now, strict=True)))
        safe = now._replace(alpha=jnp.where(churns, now.alpha, 1.0))
        mean, variance = paths.transition(x, safe, noisier)
        fresh = noise_scale * jnp.sqrt(jnp.maximum(variance, 0)) * normal(key, x.shape, x.dtype)
        return sampler.step(denoise, key, jnp.where(churns, mean + fresh, x), memory, noisier, then)

    return Sampler(sampler.init, step)
