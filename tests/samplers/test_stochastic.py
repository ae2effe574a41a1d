"""Euler-Maruyama and the weak error of every stochastic sampler."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import oracles, paths, times
from genjax.samplers import SAMPLERS, ddim, euler_maruyama, sample
from genjax.typing import Knot, Path, Prediction

PATHS = {"linear": paths.linear(), "cosine": paths.cosine(), "vp": paths.vp(), "sub_vp": paths.sub_vp()}
MEAN, STD = 0.7, 0.5


def gaussian(x, knot):
    """The exact denoiser of data N(MEAN, STD^2)."""
    deviation = (x - knot.alpha * MEAN) / (knot.alpha**2 * STD**2 + knot.sigma**2)
    return Prediction(MEAN + knot.alpha * STD**2 * deviation, knot.sigma * deviation)


def _affine_steps(sampler, knots):
    """`x_then = slope x + offset + std z` of every step: exact for Gaussian data, whose denoiser is affine in x."""
    intervals = Knot(*(jnp.stack([values[:-1], values[1:]], axis=1) for values in knots))
    x, z = jnp.asarray([[0.0], [1.0], [0.0]]), jnp.asarray([[[0.0], [0.0], [1.0]]])
    run = jax.jit(jax.vmap(lambda knots: sample(sampler, gaussian, z, x, knots)[:, 0]))
    offset, at_one, at_noise = np.asarray(run(intervals)).T
    return at_one - offset, offset, at_noise - offset


def _errors_of_moments(sampler, path, steps):
    """Of the mean and variance at the data end, from an exact start, without any sampling error."""
    knots = paths.knots(path, times.uniform(path, steps))
    mean = float(knots.alpha[0]) * MEAN
    variance = float(knots.alpha[0] ** 2 * STD**2 + knots.sigma[0] ** 2)
    for slope, offset, std in zip(*_affine_steps(sampler, knots), strict=True):
        mean, variance = slope * mean + offset, slope**2 * variance + std**2
    return abs(mean - MEAN), abs(variance - STD**2)


STOCHASTIC = {
    **{name: lambda path, name=name: SAMPLERS[name](path) for name in ("ddpm", "ddpm-large", "euler-maruyama")},
    "ddim(0.5)": lambda path: ddim(0.5),
}


@pytest.mark.parametrize("path", ["linear", "vp"])
@pytest.mark.parametrize("name", STOCHASTIC)
def test_the_weak_error_is_of_first_order(float64, name, path):
    sampler = STOCHASTIC[name](PATHS[path])
    coarse, fine = (_errors_of_moments(sampler, PATHS[path], steps) for steps in (512, 2048))
    orders = np.log2(np.divide(coarse, np.maximum(fine, 1e-16))) / 2
    print(f"{name} on {path}: mean {coarse[0]:.1e} -> {fine[0]:.1e}, variance {coarse[1]:.1e} -> {fine[1]:.1e}", orders)
    assert np.all(np.less(coarse, 0.01))
    assert fine[0] < 1e-12 or orders[0] > 0.9
    assert orders[1] > 0.9


@pytest.mark.parametrize("name", PATHS)
def test_a_step_is_euler_maruyama_on_the_reverse_sde(float64, name):
    path = PATHS[name]
    t = path.t_noise + jnp.asarray([0.5, 0.52]) * (path.t_data - path.t_noise)
    now, h = paths.knots(path, t[0]), t[1] - t[0]
    x = jnp.linspace(-2.0, 2.0, 8)[:, None]
    drift, diffusion = paths.drift_and_diffusion(path, t[0])
    score = -(x - now.alpha * MEAN) / (now.alpha**2 * STD**2 + now.sigma**2)
    mean, end = (
        sample(euler_maruyama(path), gaussian, jnp.full((1, 8, 1), z), x, paths.knots(path, t)) for z in (0.0, 1.0)
    )
    np.testing.assert_allclose(mean, x + h * drift * x + jnp.abs(h) * diffusion**2 * score, atol=1e-12)
    np.testing.assert_allclose(end - mean, jnp.full((8, 1), diffusion * jnp.sqrt(jnp.abs(h))), atol=1e-12)


def test_the_direction_of_the_clock_does_not_matter(float64):
    backward = Path(alpha=lambda t: 1 - t, sigma=lambda t: t, t_data=0.0, t_noise=1.0)
    results = [
        sample(
            euler_maruyama(path),
            gaussian,
            jax.random.key(0),
            jnp.zeros((4, 1)),
            paths.knots(path, times.uniform(path, 5)),
        )
        for path in (paths.linear(), backward)
    ]
    np.testing.assert_allclose(*results, atol=1e-12)


@pytest.mark.parametrize("name", PATHS)
def test_the_ends_draw_from_the_estimate_of_the_data(name):
    path, x, z = PATHS[name], jnp.linspace(-2.0, 2.0, 8)[:, None], jnp.ones((1, 8, 1))
    knots = paths.knots(path, times.uniform(path, 3))
    first, last = (Knot(*(value[part] for value in knots)) for part in (slice(0, 2), slice(2, 4)))
    landed = sample(euler_maruyama(path), gaussian, z, x, last)
    np.testing.assert_allclose(landed, gaussian(x, Knot(*(value[0] for value in last))).data, atol=1e-6)
    started = sample(euler_maruyama(path), gaussian, z, x, first)
    assert np.all(np.isfinite(started))
    if first.alpha[0] == 0:
        np.testing.assert_allclose(started, jnp.full((8, 1), first.alpha[1] * MEAN + first.sigma[1]), atol=1e-6)


def test_twenty_steps_leave_no_noise_on_a_point():
    """The scheme alone would overshoot in its last step by the noise that is left there, 1/20 on linear."""
    point = oracles.mixture([1.0], [[0.3, -0.4]], [1e-8])
    for path in (paths.linear(), paths.ddpm(paths.linear_betas(1000))):
        knots = paths.knots(path, times.uniform(path, 20))
        start = knots.sigma[0] * jax.random.normal(jax.random.key(1), (64, 2))
        result = sample(euler_maruyama(path), oracles.denoiser(point), jax.random.key(0), start, knots)
        assert np.abs(result - point.means).max() < 1e-3
