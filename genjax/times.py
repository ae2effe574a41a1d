"""Time grids for sampling and time densities for training, each on the path's own clock.

A grid is an array `t [steps + 1]` that runs from noise to data; `genjax.paths.knots(path, t)` turns it into the
knots that samplers take. A density draws `t [num]` for a batch.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genjax import paths
from genjax.typing import Array, Key, Knot, Path

TimeDensity = Callable[[Key, int], Array]
"""`density(key, num) -> t [num]` on a path's clock."""


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"steps is {steps}; a grid needs at least 1")


def _from_unit(u: Any, path: Path, start: float | None, end: float | None) -> Array:
    """`u` in [0, 1] placed on the clock between `start` (u = 0, default noise) and `end` (u = 1, default data)."""
    start = path.t_noise if start is None else start
    end = path.t_data if end is None else end
    return start * (1 - u) + end * u


def uniform(path: Path, steps: int, *, start: float | None = None, end: float | None = None) -> Array:
    """`steps + 1` times evenly spaced from `start` (default: the noise end) to `end` (default: the data end)."""
    _check_steps(steps)
    return jnp.asarray(_from_unit(np.linspace(0.0, 1.0, steps + 1), path, start, end), _float())


def quadratic(path: Path, steps: int, *, start: float | None = None, end: float | None = None) -> Array:
    """Times whose distance to the data end falls as `(1 - i / steps)^2`: dense near the data.

    Song et al. 2021 (DDIM, arXiv 2010.02502), section 5.
    """
    _check_steps(steps)
    u = 1 - np.linspace(1.0, 0.0, steps + 1) ** 2
    return jnp.asarray(_from_unit(u, path, start, end), _float())


def karras(
    path: Path,
    steps: int,
    *,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    append_data: bool = True,
) -> Array:
    """The grid of EDM in the ratio sigma / alpha, on any path.

    `(sigma_max^(1/rho) + i / (n - 1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho` for i < n (Karras et al. 2022,
    arXiv 2206.00364, eq. 5), then, with `append_data`, the data end (n = steps, else n = steps + 1).
    """
    _check_steps(steps)
    u = _fractions(steps, append_data)
    ratios = (sigma_max ** (1 / rho) + u * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
    return _at_log_snr(path, -2 * np.log(ratios), append_data)


def log_snr(
    path: Path, steps: int, *, low: float = -10.0, high: float = 10.0, rho: float = 1.0, append_data: bool = True
) -> Array:
    """Times at which `2 log(alpha / sigma)` rises from `low` to `high` (nats), evenly for `rho = 1`, then the data end.

    `high - (1 - i / (n - 1))^rho (high - low)` for i < n, dense near the data for rho > 1, which k-diffusion calls
    polyexponential. Values that the path does not reach give its ends.
    Lu et al. 2022 (DPM-Solver, arXiv 2206.00927), section 3.3, for the even grid.
    """
    _check_steps(steps)
    share = (1 - _fractions(steps, append_data)) ** rho
    return _at_log_snr(path, share * low + (1 - share) * high, append_data)


def beta_quantiles(
    path: Path,
    steps: int,
    *,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    a: float = 0.6,
    b: float = 0.6,
    append_data: bool = True,
) -> Array:
    """The grid of even quantiles of a Beta distribution in the ratio sigma / alpha, on any path: dense at both ends.

    `sigma_min + Q(1 - i / (n - 1)) (sigma_max - sigma_min)` for i < n, Q the quantiles of Beta(a, b), then, with
    `append_data`, the data end. Lee et al. 2024 (arXiv 2407.12173) spread the steps of a schedule so, diffusers its ratios.
    """
    from scipy.special import betaincinv

    _check_steps(steps)
    quantiles = betaincinv(a, b, 1 - _fractions(steps, append_data))
    ratios = sigma_min + quantiles * (sigma_max - sigma_min)
    return _at_log_snr(path, -2 * np.log(ratios), append_data)


def _fractions(steps: int, append_data: bool) -> np.ndarray:
    """`i / (n - 1)` for i < n, the knots before the data end, or all of them: n = steps, else steps + 1."""
    return np.linspace(0.0, 1.0, steps if append_data else steps + 1)


def _at_log_snr(path: Path, values: np.ndarray, append_data: bool) -> Array:
    t = paths.time_of_log_snr(path, jnp.asarray(values, _float()))
    return jnp.append(t, path.t_data) if append_data else t


def optimise(error_of: Callable[[Knot], Array], path: Path, t: Array, *, iterations: int = 200) -> Array:
    """The grid `t [steps + 1]` moved to where `error_of(knots)` is least; never one of a greater error.

    L-BFGS on the logarithms of the steps of the log SNR, by the gradient of its logarithm in the knots. The first and the last knot
    stay. A last step to sigma = 0 or a first one from alpha = 0 has no length, so there the knot beside the end is free.

    Args:
        error_of: of sampling on these knots, a positive scalar, e.g. the mean square distance of a sampler's ends to those of a
            fine solve from the same starts; it is differentiated, so the sampler must draw no noise or the same.
        path: the path of the grid.
        t: the grid to begin with, distinct times from noise to data.
        iterations: at most, each a line search along one direction.

    Raises:
        ValueError: the grid has no knot that is free.

    Source: differentiating a few-step sampler in its times is Watson et al. 2022 (arXiv 2202.05830), section 3.
    """
    t = jnp.asarray(t, _float())
    log_snr_of_grid = np.asarray(paths.log_snr(path, t), np.float64)
    inner = np.flatnonzero(np.isfinite(log_snr_of_grid))
    values = log_snr_of_grid[inner]
    keeps_first, keeps_last = 0 in inner, len(t) - 1 in inner
    if len(inner) - keeps_first - keeps_last < 1 or np.any(np.diff(values) <= 0):
        raise ValueError(f"no knot to move on a grid of log SNR {log_snr_of_grid}, or they do not rise")
    ends = (np.arange(len(t)) == 0) | (np.arange(len(t)) == len(t) - 1)

    def grid(theta: Array) -> Array:
        first = jnp.asarray(values[0], t.dtype) if keeps_first else theta[0]
        climbed = jnp.concatenate([jnp.zeros_like(theta[:1]), jnp.cumsum(jnp.exp(theta[1:]))])
        if keeps_last:
            climbed = climbed * ((values[-1] - first) / climbed[-1])
        every = jnp.zeros_like(t).at[inner].set(first + climbed)
        return jnp.where(ends, t, paths.time_of_log_snr(path, every))

    def objective(theta: Array) -> Array:
        return jnp.log(error_of(paths.knots(path, grid(theta))))

    theta = jnp.asarray(np.append(values[0], np.log(np.diff(values))), t.dtype)
    return grid(_least(objective, theta, iterations))


def _least(objective: Callable[[Array], Array], theta: Array, iterations: int) -> Array:
    """The best point that L-BFGS from `theta` has seen; it begins again from there where a line search has failed."""
    from scipy.optimize import minimize

    value_and_gradient = jax.jit(jax.value_and_grad(objective))
    start = np.asarray(theta, np.float64)
    first = float(value_and_gradient(theta)[0])
    best = first, start

    def at(point: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal best
        value, gradient = value_and_gradient(jnp.asarray(point, theta.dtype))
        if np.isfinite(value) and np.all(np.isfinite(gradient)):
            best = min(best, (float(value), point.copy()), key=lambda seen: seen[0])
            return float(value), np.asarray(gradient, np.float64)
        away = point - start
        return first + 1 + float(away @ away), 2 * away  # a slope that leads back

    while iterations > 0:
        before = best[0]
        found = minimize(at, best[1], jac=True, method="L-BFGS-B", options={"maxiter": iterations})
        iterations -= found.nit
        if found.success or not best[0] < before:
            break
    return jnp.asarray(best[1], theta.dtype)


def linspace_indices(num_train_steps: int, steps: int) -> np.ndarray:
    """`steps` indices, rounded half to even, evenly from T - 1 to 0: int64, descending."""
    _check_subset(num_train_steps, steps)
    return np.linspace(0, num_train_steps - 1, steps).round().astype(np.int64)[::-1]


def leading_indices(num_train_steps: int, steps: int, offset: int = 0) -> np.ndarray:
    """`offset + (T // steps) * (steps - 1, ..., 1, 0)`: int64, descending; never visits T - 1 unless steps = T.

    Raises:
        ValueError: the offset moves the first index past T - 1.
    """
    _check_subset(num_train_steps, steps)
    indices = np.arange(steps)[::-1] * (num_train_steps // steps) + offset
    if indices[0] >= num_train_steps or offset < 0:
        raise ValueError(f"offset is {offset}; {steps} of {num_train_steps} steps leave no room for it")
    return indices


def trailing_indices(num_train_steps: int, steps: int) -> np.ndarray:
    """`round(T - i T / steps) - 1` for i < steps: int64, descending from T - 1 (Lin et al. 2024, arXiv 2305.08891)."""
    _check_subset(num_train_steps, steps)
    return np.round(num_train_steps - np.arange(steps) * (num_train_steps / steps)).astype(np.int64) - 1


def _check_subset(num_train_steps: int, steps: int) -> None:
    _check_steps(steps)
    if steps > num_train_steps:
        raise ValueError(f"steps is {steps}; a schedule of {num_train_steps} steps has at most that many")


def discrete(indices: np.ndarray, num_train_steps: int) -> Array:
    """The grid `(index + 1) / T` of 0-based, descending `indices` of a T-step schedule, then 0 (clean data)."""
    return jnp.asarray(np.append((np.asarray(indices) + 1) / num_train_steps, 0.0), _float())


def restart(path: Path, t: Array, *, low: float, high: float, steps: int, repeats: int) -> Array:
    """The grid `t [n]` with an interval passed `repeats` times more, for `samplers.restarting`.

    From the first time at which `sigma / alpha <= low`, it goes back to `high` and down again in `steps` even steps of
    `sigma / alpha` to the power 1/7, which end where they began. Xu et al. 2023 (arXiv 2306.14878), section 3.

    Raises:
        ValueError: not `0 < low < high`, no such time, or counts below 1.
    """
    _check_steps(steps)
    if not 0 < low < high or repeats < 1:
        raise ValueError(f"low is {low}, high {high}, repeats {repeats}; expected 0 < low < high and at least 1")
    times = np.asarray(t)
    alpha, sigma = (np.asarray(values) for values in paths.knots(path, jnp.asarray(t))[1:])
    clean = np.flatnonzero((sigma <= low * alpha) & (sigma > 0))
    if not len(clean):
        raise ValueError(f"no time of the grid has 0 < sigma / alpha <= {low}")
    turn = clean[0]
    ratio = (
        high ** (1 / 7) * (1 - (u := np.linspace(0.0, 1.0, steps + 1))) + u * (sigma[turn] / alpha[turn]) ** (1 / 7)
    ) ** 7
    again = np.append(_at_log_snr(path, -2 * np.log(ratio[:-1]), append_data=False), times[turn])
    return jnp.asarray(np.concatenate([times[: turn + 1], np.tile(again, repeats), times[turn + 1 :]]), _float())


def shift(path: Path, t: Array, factor: float) -> Array:
    """`t` (any shape) moved to where sigma / alpha is `factor` times as large; the path's ends stay.

    On `linear()` with noise level u = 1 - t this is `u -> factor u / (1 + (factor - 1) u)` (Esser et al. 2024,
    arXiv 2403.03206, eq. 23; factor = sqrt(m / n) from n to m pixels).
    """
    t = jnp.asarray(t)
    moved = paths.time_of_log_snr(path, paths.log_snr(path, t) - 2 * jnp.log(jnp.asarray(factor, t.dtype)))
    return jnp.where((t == path.t_noise) | (t == path.t_data), t, moved)


def _between_ends(u: Array, path: Path, start: float | None = None, end: float | None = None) -> Array:
    """`_from_unit` of `u` kept half a rounding away from 0 and 1: at the very ends of a path weightings may be 0 / 0."""
    margin = jnp.finfo(u.dtype).epsneg
    return _from_unit(jnp.clip(u, margin, 1 - margin), path, start, end)


def uniform_density(path: Path, *, start: float | None = None, end: float | None = None) -> TimeDensity:
    """t uniform between `start` (default: the noise end) and `end` (default: the data end), independent.

    No density of this module draws an end itself.
    """
    return lambda key, num: _between_ends(jax.random.uniform(key, (num,)), path, start, end)


def low_discrepancy_density(path: Path, *, start: float | None = None, end: float | None = None) -> TimeDensity:
    """t uniform, one draw shared by the batch: `u_i = (u + i / num) mod 1`.

    Each t is uniform; together they cover the clock evenly, which lowers the variance of the loss
    (Kingma et al. 2021, arXiv 2107.00630, appendix I.1).
    """

    def density(key: Key, num: int) -> Array:
        u = jnp.mod(jax.random.uniform(key) + jnp.arange(num) / num, 1.0)
        return _between_ends(u, path, start, end)

    return density


def antithetic_density(path: Path, *, start: float | None = None, end: float | None = None) -> TimeDensity:
    """t uniform in pairs `(u, 1 - u)`: the second half of the batch mirrors the first."""

    def density(key: Key, num: int) -> Array:
        u = jax.random.uniform(key, ((num + 1) // 2,))
        return _between_ends(jnp.concatenate([u, 1 - u])[:num], path, start, end)

    return density


def discrete_density(num_train_steps: int) -> TimeDensity:
    """t uniform on `{1, ..., T} / T`: the times of `paths.ddpm`'s noisy knots."""
    return lambda key, num: (
        jax.random.randint(key, (num,), 1, num_train_steps + 1).astype(jnp.float32) / num_train_steps
    )


def logit_normal_density(path: Path, *, mean: float = 0.0, std: float = 1.0) -> TimeDensity:
    """u = sigmoid(mean + std z), z ~ N(0, 1), placed from the noise end (u = 0) to the data end (u = 1).

    Esser et al. 2024 (arXiv 2403.03206), eq. 19; a negative mean favours noisy times.
    """
    return lambda key, num: _between_ends(jax.nn.sigmoid(mean + std * jax.random.normal(key, (num,))), path)


def lognormal_density(mean: float = -1.2, std: float = 1.2) -> TimeDensity:
    """`log t ~ N(mean, std^2)`, for `paths.edm`, whose t is the noise level (Karras et al. 2022, table 1)."""
    return lambda key, num: jnp.exp(mean + std * jax.random.normal(key, (num,)))


def cosmap_density(path: Path) -> TimeDensity:
    """u = 1 - 1 / (tan(pi w / 2) + 1), w uniform, from the noise end to the data end.

    On `linear()` its log-SNR density is that of `cosine()` under uniform t (Esser et al. 2024, eq. 21).
    """

    def density(key: Key, num: int) -> Array:
        w = jax.random.uniform(key, (num,))
        sine, cosine = jnp.sin(jnp.pi / 2 * w), jnp.sin(jnp.pi / 2 * (1 - w))
        return _between_ends(sine / (sine + cosine), path)

    return density


def _float() -> jnp.dtype:
    return jnp.result_type(float)
