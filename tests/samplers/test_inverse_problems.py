"""Inpainting and linear measurements on mixtures, whose posteriors are exact mixtures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import oracles, paths, times
from genjax.samplers import (
    ddpm,
    dpm_solver_pp,
    given_measurement,
    heun,
    inpainting,
    restarting,
    sample,
)
from genjax.samplers.inverse_problems import conjugate_gradients
from genjax.typing import Knot, Prediction

OPERATOR = np.array([[1.0, 0.5, 0.0], [0.0, -1.0, 2.0]])
MEASUREMENT = np.array([0.7, -0.4])
NOISE_STD = 0.3
PATH = paths.edm()
draw = jax.jit(oracles.sample, static_argnums=2)


def forward(data):
    return data @ OPERATOR.T.astype(data.dtype)


def gaussian():
    factor = np.random.default_rng(0).normal(size=(3, 3)) / 2
    return oracles.mixture([1.0], np.array([[0.5, -0.2, 0.1]]), (factor @ factor.T + 0.1 * np.eye(3))[None])


def three():
    generator = np.random.default_rng(1)
    factors = generator.normal(size=(3, 3, 3)) / 3
    covariances = factors @ factors.transpose(0, 2, 1) + 0.05 * np.eye(3)
    return oracles.mixture([0.5, 0.3, 0.2], generator.normal(size=(3, 3)), covariances)


def test_the_posterior_of_the_oracle_is_bayes_rule(float64):
    """log p(data) + log p(measurement | data) - log posterior(data) is the same for all data."""
    posterior = oracles.given_measurement(three(), OPERATOR, MEASUREMENT, NOISE_STD)
    data = np.random.default_rng(2).normal(size=(50, 3))
    log_likelihood = -0.5 * np.sum((MEASUREMENT - data @ OPERATOR.T) ** 2, axis=1) / NOISE_STD**2
    log_density = jax.jit(oracles.log_density)
    evidence = log_density(three(), data) + log_likelihood - log_density(posterior, data)
    assert np.ptp(evidence) < 1e-9


@pytest.mark.parametrize("path", [paths.edm(), paths.cosine()], ids=["edm", "cosine"])
def test_on_a_gaussian_it_is_the_denoiser_of_the_posterior(float64, path):
    posterior = oracles.given_measurement(gaussian(), OPERATOR, MEASUREMENT, NOISE_STD)
    x = jnp.asarray(np.random.default_rng(3).normal(size=(8, 3)))
    measurement = jnp.broadcast_to(jnp.asarray(MEASUREMENT), (8, 2))
    denoise = given_measurement(oracles.denoiser(gaussian()), measurement, forward, noise_std=NOISE_STD, iterations=2)

    @jax.jit
    @jax.vmap
    def both(t):
        knot = paths.knots(path, t)
        return denoise(x, knot), oracles.denoiser(posterior)(x, knot)

    found, expected = both(jnp.asarray([0.1, 0.5, 0.9]))
    np.testing.assert_allclose(found.data, expected.data, atol=1e-8)
    np.testing.assert_allclose(found.noise, expected.noise, atol=1e-8)


def test_from_alpha_0_nothing_is_singular():
    denoise = given_measurement(oracles.denoiser(three()), jnp.zeros((4, 2)), forward, noise_std=NOISE_STD)
    pair = jax.jit(denoise)(jnp.ones((4, 3)), paths.knots(paths.cosine(), jnp.asarray(1.0)))
    assert all(np.all(np.isfinite(value)) for value in pair)


def test_samples_of_a_mixture_come_from_its_posterior():
    """Nearly: a Gaussian stands for what a noisy example says of the data, so weights of the components are somewhat off."""
    num, means = 4000, np.array([[0.6, 0.4], [-0.6, -0.2]])
    mix = oracles.mixture([0.5, 0.5], means, np.array([[[0.3, 0.1], [0.1, 0.2]], [[0.2, 0.0], [0.0, 0.3]]]))
    operator = np.array([[1.0, -0.5]])
    posterior = oracles.given_measurement(mix, operator, np.array([0.6]), NOISE_STD)
    measurement = jnp.full((num, 1), 0.6)
    denoise = given_measurement(
        oracles.denoiser(mix),
        measurement,
        lambda data: data @ operator.T.astype(data.dtype),
        noise_std=NOISE_STD,
        iterations=1,
    )
    knots = paths.knots(PATH, times.karras(PATH, 60))
    start = 80 * jax.random.normal(jax.random.key(0), (num, 2))
    run = jax.jit(lambda x: sample(heun(PATH, first_order_end=True), denoise, jax.random.key(1), x, knots))
    found, exact, prior = (
        np.asarray(x)
        for x in (
            run(start),
            draw(posterior, jax.random.key(2), 100_000),
            draw(mix, jax.random.key(3), 100_000),
        )
    )
    spread = exact.std(axis=0)
    errors = [np.abs(x.mean(axis=0) - exact.mean(axis=0)) / spread for x in (found, prior)]
    print("errors of the mean in deviations, with and without", errors, "deviations", found.std(axis=0) / spread)
    assert errors[0].max() < 0.12
    assert errors[1].max() > 0.5
    assert np.all(np.abs(found.std(axis=0) / spread - 1) < 0.12)


MASK = jnp.asarray([True, False, False])
KNOWN = jnp.asarray([0.9, 0.0, 0.0])


def inpainted(sampler, t, num=4000):
    knots = Knot(*map(np.asarray, paths.knots(paths.vp(), t)))
    start = knots.sigma[0] * jax.random.normal(jax.random.key(0), (num, 3))
    run = jax.jit(
        lambda x: sample(inpainting(sampler, KNOWN, MASK), oracles.denoiser(gaussian()), jax.random.key(1), x, knots)
    )
    return np.asarray(run(start))


def test_repaint_draws_the_rest_given_what_is_known():
    """On a Gaussian the rest has an exact mean and covariance; without going back it has not."""
    path = paths.vp()
    t = times.log_snr(path, 40, low=-9.0, high=9.0)
    back = t
    for low, high in ((1.0, 8.0), (0.3, 3.0), (0.1, 1.0), (0.03, 0.3)):
        back = times.restart(path, back, low=low, high=high, steps=8, repeats=20)
    posterior = oracles.given_measurement(gaussian(), np.array([[1.0, 0.0, 0.0]]), KNOWN[:1], 1e-4)
    exact = np.asarray(draw(posterior, jax.random.key(2), 100_000))[:, 1:]
    once, repeated = inpainted(ddpm(), t), inpainted(restarting(ddpm()), back)
    errors = [np.abs(found[:, 1:].mean(axis=0) - exact.mean(axis=0)).max() for found in (once, repeated)]
    print("errors of the mean, once and with restarts", errors)
    np.testing.assert_allclose(repeated[:, 0], KNOWN[0], atol=1e-6)
    assert errors[1] < 0.08
    assert errors[1] < 0.6 * errors[0]
    assert np.abs(np.cov(repeated[:, 1:].T) - np.cov(exact.T)).max() < 0.25 * np.cov(exact.T).max()


def test_inpainting_keeps_the_memory_of_a_multistep_solver():
    found = inpainted(dpm_solver_pp(2), times.log_snr(paths.vp(), 10, low=-9.0, high=9.0), num=64)
    np.testing.assert_allclose(found[:, 0], KNOWN[0], atol=1e-6)
    assert np.all(np.isfinite(found))


def test_conjugate_gradients_solve_each_example(float64):
    generator = np.random.default_rng(4)
    factors = generator.normal(size=(5, 3, 3))
    matrices, right = factors @ factors.transpose(0, 2, 1) + np.eye(3), generator.normal(size=(5, 3))
    solve = lambda right: conjugate_gradients(lambda v: jnp.einsum("bij,bj->bi", matrices, v), right, iterations=3)  # noqa: E731
    found = jax.jit(solve)(right)
    np.testing.assert_allclose(found, np.linalg.solve(matrices, right[..., None])[..., 0], atol=1e-9)
    zero = conjugate_gradients(lambda v: 2 * v, jnp.zeros((2, 3)), iterations=3)
    np.testing.assert_array_equal(zero, 0)


def test_what_is_refused():
    denoise = lambda x, knot: Prediction(x, x)  # noqa: E731
    for options in ({"noise_std": 0.0}, {"noise_std": 1.0, "iterations": 0}):
        with pytest.raises(ValueError, match="expected above 0 and at least 1"):
            given_measurement(denoise, jnp.zeros((1, 2)), forward, **options)
    knots = paths.knots(PATH, jnp.asarray([2.0, 1.0]))
    with pytest.raises(ValueError, match="give it a key instead of noise"):
        sample(inpainting(ddpm(), KNOWN, MASK), denoise, jnp.zeros((1, 2, 3)), jnp.zeros((2, 3)), knots)
