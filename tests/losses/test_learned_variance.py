"""The variance of a reverse step: its loss is least where the step is exact, its sampler draws with it, the mean is left alone."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import oracles, paths, predictions
from genjax.losses.learned_variance import learned_variance_error
from genjax.samplers import ddpm, sample
from genjax.typing import Knot

STD = 0.6
PATH = paths.vp()
TIMES = (0.6, 0.3)


def exact_variance():
    """Of x_then given x_now, where the data are N(0, STD^2): the posterior's, and that of its mean as the data vary."""
    now, then = (Knot(*(np.float64(v) for v in paths.knots(PATH, jnp.asarray(t)))) for t in TIMES)
    of_now, of_then = ((knot.alpha * STD) ** 2 + knot.sigma**2 for knot in (now, then))
    covariance = now.alpha * then.alpha * STD**2 + then.sigma**2 * now.alpha / then.alpha
    return of_then - covariance**2 / of_now, now, then


def exact_fraction():
    variance, now, then = exact_variance()
    r = now.alpha * then.sigma / (then.alpha * now.sigma)
    small = then.sigma**2 * (1 - r**2)
    return float(np.log(variance / small) / (2 * np.log(now.sigma / then.sigma)))


def model(fraction):
    """The exact prediction of v for N(0, STD^2) in the plane, and a fraction, as a network returns them."""
    mix = oracles.mixture([1.0], [[0.0, 0.0]], [STD**2])
    exact = oracles.model(mix, PATH, predictions.v)
    return lambda x, t: jnp.concatenate([exact(x, t), jnp.broadcast_to(2 * fraction - 1, x.shape)], axis=-1)


def test_the_best_variance_is_that_of_the_exact_reverse_step(float64):
    assert 0.02 < exact_fraction() < 0.98
    num = 200_000
    data, noise = STD * jax.random.normal(jax.random.key(0), (num, 2)), jax.random.normal(jax.random.key(1), (num, 2))
    now, then = (jnp.full(num, t) for t in TIMES)

    @jax.jit
    def mean_error(fraction):
        return learned_variance_error(model(fraction), data, noise, now, then, path=PATH, predict=predictions.v).mean()

    newton = lambda _, f: f - jax.grad(mean_error)(f) / jax.hessian(mean_error)(f)  # noqa: E731
    found = jax.jit(lambda start: jax.lax.fori_loop(0, 20, newton, start))(0.5)
    np.testing.assert_allclose(found, exact_fraction(), atol=0.01)


def test_the_sampler_draws_with_it():
    """The exact fraction gives the exact variance at the end of the step; 0 and 1 give the two fixed ones, bit for bit nearly."""
    variance, now, then = exact_variance()
    num = 40_000
    knots = Knot(*(jnp.asarray(pair, jnp.float32) for pair in zip(now, then, strict=True)))
    x = jnp.zeros((num, 2))

    @partial(jax.jit, static_argnums=0)
    def draw(name, fraction):
        denoise = predictions.denoiser_with_variance(model(fraction), PATH, predictions.v)
        return sample(ddpm(name), denoise, jax.random.key(0), x, knots)

    found = np.asarray(draw("learned", exact_fraction()))
    assert abs(found.var() / variance - 1) < 4 * (2 / (2 * num)) ** 0.5
    for fraction, name in ((0.0, "small"), (1.0, "large")):
        np.testing.assert_allclose(draw("learned", fraction), draw(name, fraction), atol=1e-5)


def test_a_step_to_the_data_adds_no_noise():
    knots = Knot(*(jnp.asarray(pair) for pair in ([0.5, 0.0], [0.8, 1.0], [0.6, 0.0])))
    denoise = jax.jit(predictions.denoiser_with_variance(model(0.5), PATH, predictions.v))
    x = jax.random.normal(jax.random.key(0), (4, 2))
    found = sample(ddpm("learned"), denoise, jax.random.key(1), x, knots)
    np.testing.assert_allclose(found, denoise(x, Knot(*(v[0] for v in knots))).data, atol=1e-6)


def test_the_mean_gets_no_gradient_and_wrong_shapes_are_refused():
    data, noise = jnp.ones((3, 2)), jnp.zeros((3, 2))
    now, then = jnp.full(3, 0.6), jnp.full(3, 0.3)

    @jax.jit
    def error(shift):
        shifted = lambda x, t: model(0.5)(x, t) + jnp.concatenate([shift * jnp.ones_like(x), jnp.zeros_like(x)], -1)  # noqa: E731
        return learned_variance_error(shifted, data, noise, now, then, path=PATH, predict=predictions.v).sum()

    assert error(1.0) > error(0.0)
    assert jax.grad(error)(1.0) == 0
    with pytest.raises(ValueError, match="twice the channels"):
        learned_variance_error(lambda x, t: x, data, noise, now, then, path=PATH, predict=predictions.v)
