"""Gaussian probability paths: `x_t = alpha(t) * data + sigma(t) * noise`, noise ~ N(0, I).

One record serves diffusion, flow matching and consistency models. With a dot for d/dt on the path's
own clock:

    velocity            dx_t/dt = alpha'(t) data + sigma'(t) noise
    log SNR             lambda(t) = 2 log(alpha / sigma)
    SDE with the same marginals, run from data to noise
                        dx = f x dt + g dw,   f = alpha'/alpha,   g^2 = 2 sigma^2 |sigma'/sigma - alpha'/alpha|
    transition s -> t (t noisier), with r = (alpha_t sigma_s) / (alpha_s sigma_t)
                        q(x_t | x_s) = N((alpha_t / alpha_s) x_s, sigma_t^2 (1 - r^2) I)
    posterior           q(x_s | x_t, data) = N(mean, sigma_s^2 (1 - r^2) I)
                        mean = r (sigma_s / sigma_t) x_t + alpha_s (1 - r^2) data

Clock: each path keeps that of its literature, and no code translates clocks.

    path                    data at   noise at         source
    linear()                t = 1     t = 0            Lipman et al. 2023 (2210.02747), Liu et al. 2023 (2209.03003)
    cosine()                t = 0     t = 1            Salimans & Ho 2022 (2202.00512)
    vp(), sub_vp(), ve()    t = 0     t = 1            Song et al. 2021 (2011.13456), eqs 29-33
    edm()                   t = 0     t = sigma_max    Karras et al. 2022 (2206.00364); t is the noise level
    ddpm(betas)             t = 0     t = 1            Ho et al. 2020 (2006.11239); index k - 1 there is t = k / T
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from genjax.arrays import expand
from genjax.typing import Array, Knot, Path


def linear(sigma_min: float = 0.0) -> Path:
    """The straight path `x_t = t * data + (1 - (1 - sigma_min) t) * noise`. Clock: t = 0 noise, t = 1 data.

    Lipman et al. 2023, eq. 20. With sigma_min > 0 it ends at slightly blurred data, with 0 at the data.
    """
    rate = 1 - sigma_min
    return Path(
        alpha=lambda t: t,
        sigma=lambda t: 1 - rate * t,
        t_data=1.0,
        t_noise=0.0,
        time_of_ratio=lambda ratio: 1 / (ratio + rate),
    )


def cosine() -> Path:
    """The trigonometric path `alpha = cos(pi t / 2)`, `sigma = sin(pi t / 2)`. Clock: t = 0 data, t = 1 noise."""
    return Path(
        alpha=lambda t: jnp.sin(jnp.pi / 2 * (1 - t)),  # exactly 0 at t = 1, which cos(pi / 2) is not
        sigma=lambda t: jnp.sin(jnp.pi / 2 * t),
        t_data=0.0,
        t_noise=1.0,
        time_of_ratio=lambda ratio: 2 / jnp.pi * jnp.arctan(ratio),
    )


def _vp_log_alpha(beta_min: float, beta_max: float) -> Callable[[Array], Array]:
    return lambda t: -0.25 * t**2 * (beta_max - beta_min) - 0.5 * t * beta_min


def _vp_time(beta_min: float, beta_max: float) -> Callable[[Array], Array]:
    """The inverse of `-log alpha`: the root of a quadratic equation, without cancellation at small values."""
    rise = beta_max - beta_min
    return lambda decay: 4 * decay / (beta_min + jnp.sqrt(beta_min**2 + 4 * rise * decay))


def vp(beta_min: float = 0.1, beta_max: float = 20.0) -> Path:
    """The variance-preserving path of `dx = -beta(t)/2 x dt + sqrt(beta(t)) dw`, beta linear in t.

    `log alpha(t) = -t^2 (beta_max - beta_min) / 4 - t beta_min / 2`, `sigma^2 = 1 - alpha^2`.
    Clock: t = 0 data, t = 1 noise. sigma'(0) is infinite, so velocities are singular at t = 0.
    """
    log_alpha = _vp_log_alpha(beta_min, beta_max)
    return Path(
        alpha=lambda t: jnp.exp(log_alpha(t)),
        sigma=lambda t: jnp.sqrt(-jnp.expm1(2 * log_alpha(t))),
        t_data=0.0,
        t_noise=1.0,
        time_of_ratio=lambda ratio: _vp_time(beta_min, beta_max)(jnp.log1p(ratio**2) / 2),
    )


def sub_vp(beta_min: float = 0.1, beta_max: float = 20.0) -> Path:
    """The sub-VP path: alpha of `vp`, and the standard deviation `sigma = 1 - alpha^2` (no square root).

    Clock: t = 0 data, t = 1 noise.
    """
    log_alpha = _vp_log_alpha(beta_min, beta_max)
    return Path(
        alpha=lambda t: jnp.exp(log_alpha(t)),
        sigma=lambda t: -jnp.expm1(2 * log_alpha(t)),
        t_data=0.0,
        t_noise=1.0,
        time_of_ratio=lambda ratio: _vp_time(beta_min, beta_max)(jnp.arcsinh(ratio / 2)),
    )


def ve(sigma_min: float = 0.01, sigma_max: float = 50.0) -> Path:
    """The variance-exploding path `alpha = 1`, `sigma = sigma_min (sigma_max / sigma_min)^t`.

    Clock: t = 0 data, t = 1 noise. sigma(0) is sigma_min, not 0: the path ends at slightly blurred data.
    """
    ratio = float(np.log(sigma_max / sigma_min))
    return Path(
        alpha=jnp.ones_like,
        sigma=lambda t: sigma_min * jnp.exp(ratio * t),
        t_data=0.0,
        t_noise=1.0,
        time_of_ratio=lambda sigma: jnp.log(sigma / sigma_min) / ratio,
    )


def edm(sigma_max: float = 80.0) -> Path:
    """The path of EDM: `alpha = 1`, `sigma = t`. Clock: t is the noise level, from sigma_max down to 0 (data)."""
    return Path(
        alpha=jnp.ones_like, sigma=lambda t: t, t_data=0.0, t_noise=float(sigma_max), time_of_ratio=lambda ratio: ratio
    )


def ddpm(betas: np.ndarray) -> Path:
    """The discrete chain `q(x_k | x_{k-1}) = N(sqrt(1 - beta_k) x_{k-1}, beta_k I)`, knots at `t = k / T`.

    `alpha(k/T)^2 = prod_{j <= k} (1 - beta_j)` and `sigma^2 = 1 - alpha^2`, in float64 tables; between knots
    alpha and sigma are interpolated linearly, so that between neighbours an Euler step is a DDIM step.
    Clock: t = 0 clean data, t = 1 noise; index k - 1 of the papers' tables is t = k / T.

    Args:
        betas: `[T]`, each in (0, 1]; a last beta of 1 is zero terminal SNR.

    Raises:
        ValueError: betas is not one-dimensional, or an entry lies outside (0, 1].
    """
    betas = np.asarray(betas, np.float64)
    if betas.ndim != 1 or betas.size == 0 or not np.all((betas > 0) & (betas <= 1)):
        raise ValueError(f"betas must be a non-empty vector with entries in (0, 1]; got shape {betas.shape}")
    with np.errstate(divide="ignore"):
        log_alpha_bar = np.concatenate([[0.0], np.cumsum(np.log1p(-betas))])
    alphas, sigmas = np.exp(0.5 * log_alpha_bar), np.sqrt(-np.expm1(log_alpha_bar))
    return Path(
        alpha=_interpolate_table(alphas),
        sigma=_interpolate_table(sigmas),
        t_data=0.0,
        t_noise=1.0,
        time_of_ratio=_table_time(alphas, sigmas),
    )


def _table_time(alphas: np.ndarray, sigmas: np.ndarray) -> Callable[[Array], Array]:
    """The time at which sigma / alpha, of tables interpolated linearly, has a value: exact between neighbours."""
    steps, rise_alpha, rise_sigma = len(alphas) - 1, np.diff(alphas), np.diff(sigmas)
    with np.errstate(divide="ignore"):
        below = _count_below(sigmas / alphas)

    def time(ratio: Array) -> Array:
        upper = jnp.clip(below(ratio), 1, steps)
        alpha, sigma, d_alpha, d_sigma = (
            jnp.asarray(table, ratio.dtype)[upper - 1] for table in (alphas, sigmas, rise_alpha, rise_sigma)
        )
        return ((upper - 1).astype(ratio.dtype) + (ratio * alpha - sigma) / (d_sigma - ratio * d_alpha)) / steps

    return time


def _count_below(table: np.ndarray) -> Callable[[Array], Array]:
    """How many entries of an ascending table `[n]` lie below values of any shape, int32: of whole blocks, and then of one.

    That is two operations on sqrt(n) numbers, where bisection makes log2(n) look-ups, each a kernel that waits for the last.
    """
    size = math.isqrt(len(table)) + 1
    blocks = np.pad(table, (0, size**2 - len(table)), constant_values=np.inf).reshape(size, size)

    @jax.jit
    def count(value: Array) -> Array:
        rows, column = jnp.asarray(blocks, value.dtype), value.reshape(-1, 1)
        whole = jnp.sum(column > rows[None, :, -1], axis=1)
        return (size * whole + jnp.sum(column > rows[whole], axis=1)).reshape(value.shape)

    return count


def _interpolate_table(table: np.ndarray) -> Callable[[Array], Array]:
    """Piecewise linear in t with `table[k]` at k / T; at a knot the slope is that of the side towards t = 0."""
    steps, rises = len(table) - 1, np.diff(table)  # differences in float64: a slope is not a rounding error times T
    knot_tolerance = 1e-3  # of a step: t * T of float32 times misses the integers by less

    def value(t: Array) -> Array:
        t = jnp.asarray(t)
        dtype = t.dtype if jnp.issubdtype(t.dtype, jnp.floating) else jnp.float32
        position = t.astype(dtype) * steps
        upper = jnp.clip(jnp.ceil(position - knot_tolerance), 1, steps).astype(jnp.int32)
        low, rise = (jnp.asarray(row, dtype)[upper - 1] for row in (table, rises))
        return low + (position - (upper - 1).astype(dtype)) * rise

    return value


def linear_betas(steps: int, start: float = 1e-4, end: float = 0.02) -> np.ndarray:
    """`steps` betas spaced evenly from `start` to `end`, float64 `[steps]` (Ho et al. 2020, section 4)."""
    return np.linspace(start, end, steps, dtype=np.float64)


def scaled_linear_betas(steps: int, start: float = 0.00085, end: float = 0.012) -> np.ndarray:
    """Betas whose square roots are spaced evenly, float64 `[steps]` (Rombach et al. 2022, arXiv 2112.10752)."""
    return np.linspace(start**0.5, end**0.5, steps, dtype=np.float64) ** 2


def cosine_betas(steps: int, offset: float = 0.008, max_beta: float = 0.999) -> np.ndarray:
    """Betas of the cosine schedule, float64 `[steps]` (Nichol & Dhariwal 2021, arXiv 2102.09672, eq. 17).

    `beta_k = min(1 - F(k/T) / F((k-1)/T), max_beta)`, `F(u) = cos^2(pi/2 (u + offset) / (1 + offset))`.
    """
    u = np.arange(steps + 1, dtype=np.float64) / steps
    level = np.cos((u + offset) / (1 + offset) * np.pi / 2) ** 2
    return np.minimum(1 - level[1:] / level[:-1], max_beta)


def zero_terminal_snr(betas: np.ndarray) -> np.ndarray:
    """`betas [T]` rescaled so that alpha ends at exactly 0 and starts where it did.

    alpha_k becomes `(alpha_k - alpha_T) alpha_1 / (alpha_1 - alpha_T)`; the last beta is exactly 1
    (Lin et al. 2024, arXiv 2305.08891, algorithm 1).
    """
    alphas = np.sqrt(np.cumprod(1 - np.asarray(betas, np.float64)))
    alphas = (alphas - alphas[-1]) * alphas[0] / (alphas[0] - alphas[-1])
    alpha_bar = np.concatenate([[1.0], alphas**2])
    return 1 - alpha_bar[1:] / alpha_bar[:-1]


def knots(path: Path, t: Array) -> Knot:
    """The grid of `path` at times `t` (any shape): t with its alpha and sigma."""
    t = jnp.asarray(t)
    return Knot(t, path.alpha(t), path.sigma(t))


def interpolate(path: Path, data: Array, noise: Array, t: Array) -> Array:
    """`x_t = alpha(t) data + sigma(t) noise`, `[B, ...]`, for `t [B]` or a scalar."""
    return expand(path.alpha(t), data) * data + expand(path.sigma(t), data) * noise


def derivatives(path: Path, t: Array) -> tuple[Array, Array]:
    """`(alpha'(t), sigma'(t))` on the path's clock, of the shape of `t`, by forward differentiation."""
    t = jnp.asarray(t)
    one = jnp.ones_like(t)
    return jax.jvp(path.alpha, (t,), (one,))[1], jax.jvp(path.sigma, (t,), (one,))[1]


def velocity(path: Path, data: Array, noise: Array, t: Array) -> Array:
    """`dx_t/dt = alpha'(t) data + sigma'(t) noise`, `[B, ...]`, on the path's clock."""
    d_alpha, d_sigma = derivatives(path, t)
    return expand(d_alpha, data) * data + expand(d_sigma, data) * noise


def log_snr(path: Path, t: Array) -> Array:
    """`lambda(t) = 2 log(alpha / sigma)`, nats; +inf where sigma = 0, -inf where alpha = 0."""
    t = jnp.asarray(t)
    return 2 * (jnp.log(path.alpha(t)) - jnp.log(path.sigma(t)))


def time_of_log_snr(path: Path, value: Array) -> Array:
    """The time at which `log_snr(path, t) = value` (any shape); values off the path give its ends.

    In closed form where the path has one (`Path.time_of_ratio`), else by 64 bisections.
    """
    value = jnp.asarray(value)
    noisiest, cleanest = (log_snr(path, jnp.asarray(end, value.dtype)) for end in (path.t_noise, path.t_data))
    within = (value > noisiest) & (value < cleanest)
    if path.time_of_ratio is None:
        inside = _bisect(path, value)
    else:
        inside = path.time_of_ratio(jnp.exp(-jnp.where(within, value, _between(noisiest, cleanest)) / 2))
    return jnp.where(within, inside, jnp.where(value <= noisiest, path.t_noise, path.t_data).astype(value.dtype))


def _between(low: Array, high: Array) -> Array:
    """A finite value between two, one or both of which may be infinite."""
    return jnp.clip(0.0, low + 1, high - 1)


def _bisect(path: Path, value: Array) -> Array:
    low, high = jnp.full_like(value, path.t_noise), jnp.full_like(value, path.t_data)

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = 0.5 * (low + high)
        too_noisy = log_snr(path, middle) < value
        return jnp.where(too_noisy, middle, low), jnp.where(too_noisy, high, middle)

    low, high = jax.lax.fori_loop(0, 64, halve, (low, high))
    return 0.5 * (low + high)


def drift_and_diffusion(path: Path, t: Array) -> tuple[Array, Array]:
    """`(f, g)` of `dx = f x dt + g dw`, the SDE from data to noise that has the path's marginals.

    `f = alpha'/alpha`, `g^2 = 2 sigma^2 |sigma'/sigma - alpha'/alpha|` (Kingma et al. 2021, arXiv 2107.00630,
    eq. 7 of its appendix). dt is signed on the path's clock: negative on `linear()`, whose data lie at t = 1.
    Both are infinite where alpha = 0.
    """
    t = jnp.asarray(t)
    d_alpha, d_sigma = derivatives(path, t)
    alpha, sigma = path.alpha(t), path.sigma(t)
    drift = d_alpha / alpha
    return drift, jnp.sqrt(2 * sigma * jnp.abs(d_sigma - drift * sigma))


class Gaussian(NamedTuple):
    """An isotropic Gaussian: `mean` of any shape, scalar `variance`."""

    mean: Array
    variance: Array


def _ratio(noisier: Knot, cleaner: Knot) -> Array:
    return (noisier.alpha * cleaner.sigma) / (cleaner.alpha * noisier.sigma)


def transition(x: Array, now: Knot, then: Knot) -> Gaussian:
    """`q(x_then | x_now)` for any two knots, `then` the noisier: mean `[B, ...]` and variance.

    Mean `(alpha_then / alpha_now) x`, variance `sigma_then^2 (1 - r^2)`. Singular where alpha_now = 0.
    """
    r = _ratio(then, now)
    return Gaussian(then.alpha / now.alpha * x, then.sigma**2 * (1 - r) * (1 + r))


def posterior(x_t: Array, data: Array, now: Knot, then: Knot) -> Gaussian:
    """`q(x_then | x_now = x_t, data)`, `then` the cleaner: mean `[B, ...]` and variance.

    Ho et al. 2020, eqs 6-7, for any two knots of any path. Singular where sigma_now = 0.
    """
    r = _ratio(now, then)
    fresh = (1 - r) * (1 + r)
    mean = r * (then.sigma / now.sigma) * x_t + then.alpha * fresh * data
    return Gaussian(mean, then.sigma**2 * fresh)
