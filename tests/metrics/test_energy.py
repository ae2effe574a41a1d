"""The energy of ways: exact for a translation and for a flow between Gaussians, least for the straight way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import oracles, paths, predictions, samplers, times
from genjax.metrics.energy import path_energy


def test_a_straight_translation_has_the_energy_of_its_shift():
    key, t = jax.random.key(0), jnp.linspace(0.0, 2.0, 9)
    start = jax.random.normal(key, (5, 3, 2))
    shift = jnp.ones((1, 3, 2)) * 0.5
    states = start[None] + t[:, None, None, None] / 2 * shift[None]
    np.testing.assert_allclose(path_energy(states, t), jnp.sum(shift**2) / 2, rtol=1e-5)
    np.testing.assert_allclose(path_energy(states[::-1], t[::-1]), path_energy(states, t), rtol=1e-6)


def test_every_other_way_between_the_same_ends_has_more():
    states = jax.random.normal(jax.random.key(1), (6, 100, 2))
    t = jnp.sort(jax.random.uniform(jax.random.key(2), (6,)))
    straight = jnp.sum((states[-1] - states[0]) ** 2, axis=-1) / (t[-1] - t[0])
    assert jnp.all(path_energy(states, t) > straight)


def test_the_flow_between_two_gaussians_has_their_distance_as_energy_where_it_is_the_optimal_map():
    """From N(0, 1) to N(mean, s^2) the velocity of independent pairs transports optimally; W2^2 = mean^2 + (1 - s)^2.

    Its speed is not constant, so the energy lies above W2^2; that of the time-changed optimal way is known:
    x_t = scale(t) z + t mean with scale^2 = (1 - t)^2 + t^2 s^2.
    """
    path, s, mean = paths.linear(), 0.5, 2.0
    target = oracles.mixture(jnp.ones(1), jnp.full((1, 1), mean), jnp.full((1,), s**2))
    grid = paths.knots(path, times.uniform(path, 1000))
    denoise = predictions.denoiser(lambda x, t: oracles.velocity(target, x, t, path=path), path, predictions.velocity)
    start = jnp.asarray([[-1.0], [1.0]])  # of mean 0 and variance 1, as N(0, 1)
    _, states = samplers.sample(samplers.euler(path), denoise, jax.random.key(0), start, grid, trace=True)
    t = np.linspace(0, 1, 100_001)
    scale = np.sqrt((1 - t) ** 2 + t**2 * s**2)
    exact = mean**2 + np.trapezoid(np.gradient(scale, t) ** 2, t)
    energy = float(jnp.mean(path_energy(states, grid.t)))
    assert energy == pytest.approx(exact, rel=2e-3)
    assert energy > mean**2 + (1 - s) ** 2


def test_it_refuses_times_that_are_not_those_of_the_states():
    with pytest.raises(ValueError, match="a time for each"):
        path_energy(jnp.zeros((3, 1, 2)), jnp.arange(2.0))
    with pytest.raises(ValueError, match="at least two"):
        path_energy(jnp.zeros((1, 1, 2)), jnp.arange(1.0))
