"""Brownian noise: standard normal, the same motion on every grid, and so a strong order of convergence."""

import jax
import jax.numpy as jnp
import numpy as np

from genjax import oracles, paths, times
from genjax.arrays import example_keys
from genjax.samplers import brownian_noise, euler_maruyama, sample

noise_of = jax.jit(brownian_noise)


def grid(steps, path=None):
    path = path or paths.linear()
    return paths.knots(path, times.uniform(path, steps))


def test_it_is_standard_normal_and_independent_between_steps():
    noise = np.asarray(noise_of(jax.random.key(0), jnp.zeros((4000, 2)), grid(5)))
    assert noise.shape == (5, 4000, 2)
    flat = noise.transpose(1, 0, 2).reshape(4000, 10)
    assert np.abs(flat.mean(axis=0)).max() < 4.5 / 4000**0.5
    assert np.abs(flat.T @ flat / 4000 - np.eye(10)).max() < 4.5 * (2 / 4000) ** 0.5


def test_on_any_grid_the_increments_are_of_one_motion(float64):
    """Sums over the parts of an interval are what the whole interval gets, on uneven grids of any direction too."""
    key, x = jax.random.key(1), jnp.zeros((6, 2))
    for path in (paths.linear(), paths.edm()):
        coarse = times.karras(paths.edm(), 4, rho=3.0) if path.t_noise > 1 else jnp.asarray([0.0, 0.1, 0.5, 0.7, 1.0])
        coarse = np.asarray(coarse)
        fine = np.insert(coarse, np.arange(1, len(coarse)), (coarse[1:] + 2 * coarse[:-1]) / 3)
        motions = [
            np.cumsum(noise_of(key, x, paths.knots(path, t)) * np.sqrt(np.abs(np.diff(t)))[:, None, None], axis=0)
            for t in (coarse, fine)
        ]
        np.testing.assert_allclose(motions[0], motions[1][1::2], atol=1e-5 * np.abs(motions[0]).max())


def test_example_i_depends_on_its_own_key(float64):
    key, x = jax.random.key(2), jnp.zeros((6, 2))
    whole = noise_of(key, x, grid(4))
    part = noise_of(example_keys(key, 2, 2), x[2:4], grid(4))
    np.testing.assert_array_equal(whole[:, 2:4], part)


def test_with_it_euler_maruyama_converges_to_one_path(float64):
    """Four times the steps, a quarter of the difference, or nearly: additive noise has strong order 1. Other noise leaves it."""
    path = paths.vp()
    mix = oracles.mixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], [0.2, 0.1])
    x = jax.random.normal(jax.random.key(0), (64, 2))

    @jax.jit
    def ends(key):
        """Of 16, 64 and 256 steps; a grid repeats its last knot up to the length of the longest, and takes no noise there."""

        def end(t):
            knots = paths.knots(path, t)
            noise = jnp.nan_to_num(brownian_noise(key, x, knots))
            return sample(euler_maruyama(path), oracles.denoiser(mix), noise, x, knots)

        return jax.vmap(end)(jnp.stack([1 - 0.9 * jnp.minimum(jnp.arange(257) / n, 1.0) for n in (16, 64, 256)]))

    of_16, of_64, exact = np.asarray(ends(jax.random.key(1)))
    errors = [np.sqrt(np.mean((end - exact) ** 2)) for end in (of_16, of_64)]
    slope = -np.polyfit(np.log([16, 64]), np.log(errors), 1)[0]
    assert slope > 0.75
    assert np.sqrt(np.mean((ends(jax.random.key(2))[1] - exact) ** 2)) > 5 * errors[-1]
