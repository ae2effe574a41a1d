"""The bound of a diffusion model: its terms are the divergences they stand for, its exact model makes it tight."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import divergences, oracles, paths, times
from genjax.losses import variational_diffusion as bounds
from genjax.typing import Knot, Prediction

STD = 0.6
MIX = dict(weights=[0.3, 0.7], means=[[-1.0, 0.5], [1.0, 0.0]], covariances=[0.2, 0.1])
PATHS = {"vp": paths.vp(), "edm": paths.edm(), "linear": paths.linear()}


@partial(jax.jit, static_argnums=0)
def ends(path, cleanest=1e-3, noisiest=1e3):
    return tuple(paths.time_of_log_snr(path, -2 * jnp.log(ratio)) for ratio in (noisiest, cleanest))


@partial(jax.jit, static_argnums=(0, 1))
def grid(path, steps):
    start, stop = ends(path)
    log_snr = jnp.linspace(paths.log_snr(path, start), paths.log_snr(path, stop), steps + 1)
    return paths.knots(path, paths.time_of_log_snr(path, log_snr))


def snr(knots):
    return (np.asarray(knots.alpha) / np.asarray(knots.sigma)) ** 2


def test_a_step_is_the_divergence_of_its_two_posteriors(float64):
    """KL(q(x_then | x, data) || q(x_then | x, estimate)), and the prior's and the reconstruction's beside it."""
    path, key = paths.vp(), jax.random.key(0)
    knots = paths.knots(path, jnp.asarray([0.7, 0.4]))
    now, then = (Knot(*(values[index] for values in knots)) for index in (0, 1))
    data = jax.random.normal(jax.random.key(1), (5, 3))
    seen = []

    def denoise(x, knot):
        jax.debug.callback(lambda x: seen.append(x), x)
        return Prediction(jnp.tanh(x), x)

    found = jax.jit(partial(bounds.discrete_bound, denoise))(key, data, knots)
    jax.effects_barrier()

    @jax.jit
    def divergences_of(x):
        of_data, of_estimate = (paths.posterior(x, value, now, then) for value in (data, jnp.tanh(x)))
        log_variance = jnp.log(of_data.variance) * jnp.ones_like(x)
        expected = divergences.kl_diagonal(of_data.mean, log_variance, of_estimate.mean, log_variance)
        log_variance = jnp.log(now.sigma**2) * jnp.ones_like(x)
        return expected, divergences.kl_diagonal(now.alpha * data, log_variance, jnp.zeros_like(data), log_variance)

    expected, prior = divergences_of(*seen)
    np.testing.assert_allclose(found.diffusion, expected, rtol=1e-9)
    np.testing.assert_allclose(found.prior, prior, rtol=1e-9)
    z = np.random.default_rng(0).standard_normal((200_000, 3))
    ratio = then.sigma / then.alpha
    drawn = 0.5 * np.sum(z**2 + np.log(2 * np.pi * ratio**2), axis=1)
    assert abs(found.reconstruction[0] - drawn.mean()) < 4 * drawn.std() / len(z) ** 0.5


@pytest.mark.parametrize("name", PATHS)
def test_of_a_gaussian_it_is_the_closed_form(float64, name):
    """In the mean over data: each squared error is D s^2 / (1 + s^2 SNR); in continuous time D / 2 log of a ratio."""
    path, num = PATHS[name], 20_000
    mix = oracles.mixture([1.0], [[0.0, 0.0]], [STD**2])
    data = oracles.sample(mix, jax.random.key(1), num)
    knots = grid(path, 20)
    solve = jax.jit(partial(bounds.discrete_bound, oracles.denoiser(mix)))
    found = jax.tree.map(np.asarray, solve(jax.random.key(0), data, knots))
    expected = np.sum(np.diff(snr(knots)) * STD**2 / (1 + STD**2 * snr(knots)[:-1]))
    assert abs(found.diffusion.mean() - expected) < 4 * found.diffusion.std() / num**0.5
    start, stop = ends(path)
    solve = partial(bounds.continuous_bound, oracles.denoiser(mix), path=path, start=start, stop=stop, num_times=256)
    found = jax.tree.map(np.asarray, jax.jit(solve)(jax.random.key(0), data))
    low, high = snr(knots)[0], snr(knots)[-1]
    expected = np.log((1 + STD**2 * high) / (1 + STD**2 * low))
    assert abs(found.diffusion.mean() - expected) < 4 * found.diffusion.std() / num**0.5
    whole = sum(found).mean()
    entropy = np.log(2 * np.pi * np.e * STD**2)
    assert abs(whole - entropy) < 4 * sum(found).std() / num**0.5


def test_in_continuous_time_the_exact_model_makes_it_tight_at_every_point():
    """For the latents given a point are then those of the model given it: no gap but the two ends'. Another model leaves one."""
    mix, num = oracles.mixture(**MIX), 4000
    path = paths.linear()
    start, stop = ends(path)
    solve = partial(bounds.continuous_bound, path=path, start=start, stop=stop, num_times=128)
    bound_of = jax.jit(lambda mix, x: sum(solve(oracles.denoiser(mix), jax.random.key(0), x)))
    draw, log_density = jax.jit(oracles.sample, static_argnums=2), jax.jit(oracles.log_density)
    data = np.asarray(draw(mix, jax.random.key(3), num))
    of_data = np.asarray(log_density(mix, data))
    for point, exact in zip(data[:6], of_data[:6], strict=True):
        values = np.asarray(bound_of(mix, np.broadcast_to(point, (num, 2))))
        assert abs(values.mean() + exact) < 5 * values.std() / num**0.5
    other = oracles.mixture(MIX["weights"], np.asarray(MIX["means"]) + 0.3, MIX["covariances"])
    gaps = bound_of(other, data) + of_data
    assert gaps.mean() > 5 * gaps.std() / num**0.5


def test_finitely_many_steps_lose_in_proportion_to_their_length(float64):
    """Twice the steps, half the gap to continuous time, and never below it: the closed form of a Gaussian."""
    path = paths.vp()
    gaps = []
    for steps in (50, 100, 200):
        rate = snr(grid(path, steps))
        of_steps = np.sum(np.diff(rate) * STD**2 / (1 + STD**2 * rate[:-1]))
        gaps.append(of_steps - np.log((1 + STD**2 * rate[-1]) / (1 + STD**2 * rate[0])))
    assert min(gaps) > 0
    np.testing.assert_allclose([gaps[0] / gaps[1], gaps[1] / gaps[2]], 2, atol=0.3)


def test_of_integers_it_is_the_log_probability():
    """Data on three levels with these probabilities: the bound of the exact model is -log of them."""
    levels, probabilities = 3, np.asarray([0.2, 0.5, 0.3])
    centres = (2 * np.arange(levels) - levels + 1) / levels
    mix = oracles.mixture(probabilities, centres[:, None], np.zeros(levels))
    path, num = paths.vp(), 4000
    start, stop = ends(path, cleanest=0.05)
    solve = partial(bounds.continuous_bound, path=path, start=start, stop=stop, num_times=128, levels=levels)
    of_level = jax.jit(lambda x: sum(solve(oracles.denoiser(mix), jax.random.key(0), x)))
    for centre, probability in zip(centres, probabilities, strict=True):
        values = np.asarray(of_level(np.full((num, 1), centre, np.float32)))
        assert abs(values.mean() + np.log(probability)) < 5 * values.std() / num**0.5


def test_the_reconstruction_of_integers_is_that_of_normalised_likelihoods():
    """Two levels a distance d apart: the mean of log(1 + exp(-d (d + 2 ratio z) / (2 ratio^2))); log 2 where all is noise."""
    data = jnp.full((200_000, 1), 0.5)
    z = np.random.default_rng(0).standard_normal(1_000_000)

    @jax.jit
    def found_at(ratio):
        knot = Knot(jnp.zeros(()), jnp.ones(()), ratio)
        return bounds.reconstruction_error(jax.random.key(0), data, knot, levels=2)

    for ratio in (0.3, 1.0):
        found = np.asarray(found_at(ratio))
        expected = np.log1p(np.exp(-(1 + 2 * ratio * z) / (2 * ratio**2)))
        assert abs(found.mean() - expected.mean()) < 5 * found.std() / len(data) ** 0.5
    np.testing.assert_allclose(found_at(1e4), np.log(2), atol=1e-3)


def test_example_i_of_the_discrete_bound_depends_on_its_own_key():
    mix, path = oracles.mixture(**MIX), paths.vp()
    data, keys = np.random.default_rng(0).standard_normal((9, 2), np.float32), jax.random.split(jax.random.key(0), 9)
    knots = paths.knots(path, times.uniform(path, 5, end=0.01))
    solve = jax.jit(lambda keys, data: sum(bounds.discrete_bound(oracles.denoiser(mix), keys, data, knots)))
    np.testing.assert_allclose(solve(keys[:6], data[:6])[3:], solve(keys[3:], data[3:])[:3], rtol=1e-5)
