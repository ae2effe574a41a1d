"""Euler-Maruyama on the reverse-time SDE of a path, and noise put into the steps of a deterministic sampler.

With the SDE `dx = f x dt + g dw` of `paths.drift_and_diffusion`, its reversal run from noise to data is the
probability-flow velocity v plus Langevin noise at rate c g^2, c = 1; every c >= 0 has the same marginals
(Song et al. 2021, arXiv 2011.13456, eqs 6 and 13):

    x_then = x + h v + c |h| g^2 / 2 * score + g sqrt(c |h|) z,   g^2 / 2 * score = -|sigma' - sigma alpha'/alpha| * noise

The other three put noise into the steps of any sampler without memory: `churned` before a step, `ancestral` after it, `restarting`
in between, over a grid that goes back.
"""

import functools
import math

import jax
import jax.numpy as jnp

from genjax import paths
from genjax.arrays import normal
from genjax.samplers.exponential import log_ratio
from genjax.samplers.loop import Memory, Sampler, one_step
from genjax.typing import Array, Denoiser, Key, Knot, Path


def euler_maruyama(path: Path, *, noise_rate: float = 1.0) -> Sampler:
    """Euler-Maruyama on the reverse SDE. One call a step, weak order 1.

    Two steps draw `alpha_then data + sigma_then z` from the estimate of the data instead: one that leaves from
    alpha = 0, where g is infinite; and one that lands on sigma = 0, where that is the estimate itself
    (Jolicoeur-Martineau et al. 2021, arXiv 2009.05475), while the scheme would overshoot it by sigma_now.

    Args:
        path: the path of the grid.
        noise_rate: c, the switch between the ODE (0, `euler` but for those two steps, which are DDIM's) and the SDE (1).

    Raises:
        ValueError: noise_rate is negative.
    """
    if noise_rate < 0:
        raise ValueError(f"noise_rate is {noise_rate}; expected at least 0")

    def step(denoise: Denoiser, key: Key, x: Array, now: Knot, then: Knot) -> Array:
        h = then.t - now.t
        data, noise = denoise(x, now)
        d_alpha, d_sigma = paths.derivatives(path, now.t)
        from_estimate = (now.alpha == 0) | (then.sigma == 0)
        drift = x + h * (d_alpha * data + d_sigma * noise)
        if noise_rate == 0:
            return jnp.where(from_estimate, then.alpha * data + then.sigma * noise, drift)
        alpha = jnp.where(now.alpha == 0, 1.0, now.alpha)
        half_rate = noise_rate * jnp.abs(d_sigma - now.sigma * d_alpha / alpha)  # c g^2 / (2 sigma)
        std = jnp.sqrt(2 * half_rate * now.sigma * jnp.abs(h))
        mean = jnp.where(from_estimate, then.alpha * data, drift - jnp.abs(h) * half_rate * noise)
        std = jnp.where(from_estimate, then.sigma, std)
        return mean + std * normal(key, x.shape, x.dtype)

    return one_step(step)


def _without_memory(sampler: Sampler, x: Array, knots: Knot) -> tuple[()]:
    """Refuse samplers that compute of the whole grid what they do at a knot."""
    if sampler.init(x, knots) != ():
        raise ValueError("noise can be put into the steps of samplers without memory only, not of multistep ones")
    return ()


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
        ends = jnp.asarray([path.t_data, path.t_noise], now.t.dtype)
        t = jnp.clip(now.t + gamma * to_next_ratio, jnp.min(ends), jnp.max(ends))
        noisier = Knot(*(jnp.where(churns, a, b) for a, b in zip(paths.knots(path, t), now, strict=True)))
        safe = now._replace(alpha=jnp.where(churns, now.alpha, 1.0))
        mean, variance = paths.transition(x, safe, noisier)
        fresh = noise_scale * jnp.sqrt(jnp.maximum(variance, 0)) * normal(key, x.shape, x.dtype)
        return sampler.step(denoise, key, jnp.where(churns, mean + fresh, x), memory, noisier, then)

    return Sampler(functools.partial(_without_memory, sampler), step)


def ancestral(sampler: Sampler, path: Path, *, eta: float = 1.0) -> Sampler:
    """`sampler`, each step of which goes too far and then adds the noise that brings it back to its level.

    With r = sigma / alpha it goes to `r_down`, `r_down^2 = r_then^2 - r_up^2`, where
    `r_up = min(r_then, eta r_then sqrt(1 - (r_then / r_now)^2))`.
    With `ddim()` this is `ddim(eta)`, which k-diffusion calls Euler ancestral; with `dpm_solver_singlestep(path, order=2)` its DPM2
    ancestral; with `dpm_solver_pp_singlestep(path, order=2)` its DPM-Solver++ 2S ancestral.

    Args:
        sampler: deterministic and without memory.
        path: the path of the grid.
        eta: at least 0, which is `sampler` itself.

    Raises:
        ValueError: eta is negative; or, when sampling, `sampler` has a memory.
    """
    if eta < 0:
        raise ValueError(f"eta is {eta}; expected at least 0")

    def step(denoise: Denoiser, key: Key, x: Array, memory: Memory, now: Knot, then: Knot) -> tuple[Array, Memory]:
        share = (then.sigma * now.alpha) / (then.alpha * now.sigma)  # r_then / r_now
        up = jnp.minimum(1.0, eta * jnp.sqrt((1 - share) * (1 + share)))  # r_up / r_then
        moves = (then.sigma > 0) & (up > 0)
        log_snr = 2 * (log_ratio(then) - jnp.log(jnp.where(moves & (up < 1), (1 - up) * (1 + up), 1.0)) / 2)
        t = jnp.where(up < 1, paths.time_of_log_snr(path, log_snr), path.t_data)
        down = Knot(*(jnp.where(moves, a, b) for a, b in zip(paths.knots(path, t), then, strict=True)))
        x, memory = sampler.step(denoise, key, x, memory, now, down)
        mean, variance = paths.transition(x, down, then._replace(sigma=jnp.where(moves, then.sigma, 1.0)))
        noisy = mean + jnp.sqrt(jnp.maximum(variance, 0)) * normal(key, x.shape, x.dtype)
        return jnp.where(moves, noisy, x), memory

    return Sampler(functools.partial(_without_memory, sampler), step)


def restarting(sampler: Sampler) -> Sampler:
    """`sampler` over a grid that may go back: a step to a noisier knot adds noise, exactly, and calls no network.

    A grid that repeats an interval, `times.restart`, contracts the errors made before it, while each pass through it is as
    accurate as the sampler (Xu et al. 2023, arXiv 2306.14878, algorithm 1).

    Args:
        sampler: without memory.

    Raises:
        ValueError: when sampling, `sampler` has a memory.
    """

    def step(denoise: Denoiser, key: Key, x: Array, memory: Memory, now: Knot, then: Knot) -> tuple[Array, Memory]:
        def back(x: Array) -> Array:
            mean, variance = paths.transition(x, now, then)
            return mean + jnp.sqrt(jnp.maximum(variance, 0)) * normal(key, x.shape, x.dtype)

        def forth(x: Array) -> Array:
            return sampler.step(denoise, key, x, memory, now, then)[0]

        goes_back = then.sigma * now.alpha > now.sigma * then.alpha
        return jax.lax.cond(goes_back, back, forth, x), memory

    return Sampler(functools.partial(_without_memory, sampler), step)
