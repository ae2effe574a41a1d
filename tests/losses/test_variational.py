"""Variational bounds on probabilistic PCA, where log p(x), the posterior and every expectation are exact."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from genjax.losses import likelihood, variational
from genjax.losses.variational import Posterior

LATENT, DIMENSION, BATCH, STD = 3, 5, 4, 0.7
GENERATOR = np.random.default_rng(0)
# Orthogonal columns make the posterior's covariance diagonal, so that an encoder can be exact.
LOADINGS = np.linalg.qr(GENERATOR.normal(size=(DIMENSION, LATENT)))[0] * np.array([2.0, 1.0, 0.5])
OFFSET = GENERATOR.normal(size=DIMENSION)
DATA = GENERATOR.normal(size=(BATCH, DIMENSION)) * 1.5
PRECISION = 1 + np.sum(LOADINGS**2, axis=0) / STD**2
POSTERIOR_MEAN = (DATA - OFFSET) @ LOADINGS / STD**2 / PRECISION
LOG_P = stats.multivariate_normal(OFFSET, LOADINGS @ LOADINGS.T + STD**2 * np.eye(DIMENSION)).logpdf(DATA)
# Exact for the expectation of any quadratic under N(0, I): the points +- sqrt(L) e_i.
CUBATURE = np.sqrt(LATENT) * np.concatenate([np.eye(LATENT), -np.eye(LATENT)])
OTHER = {"mean_shift": np.array([0.3, -0.2, 0.5]), "log_variance": np.log([0.4, 0.9, 1.3])}


def decode(z):
    return z @ jnp.asarray(LOADINGS.T) + jnp.asarray(OFFSET)[None]


def log_likelihood(mean, data):
    return likelihood.gaussian(mean, data, log_variance=2 * np.log(STD))


def exact_encoder(data):
    mean = (data - jnp.asarray(OFFSET)[None]) @ jnp.asarray(LOADINGS / STD**2 / PRECISION)
    return Posterior(mean, jnp.broadcast_to(-jnp.log(jnp.asarray(PRECISION))[None], mean.shape))


def other_encoder(data, shift=OTHER["mean_shift"], log_variance=OTHER["log_variance"]):
    mean = exact_encoder(data).mean + jnp.asarray(shift)[None]
    return Posterior(mean, jnp.broadcast_to(jnp.asarray(log_variance)[None], mean.shape))


def gap_to_posterior():
    """KL(q || posterior) of `other_encoder`."""
    variance = np.exp(OTHER["log_variance"])
    return 0.5 * np.sum(
        PRECISION * (variance + OTHER["mean_shift"] ** 2) - 1 - np.log(PRECISION) - OTHER["log_variance"]
    )


@cache
def expected_elbo(encode):
    @jax.jit
    @jax.vmap
    def terms_at(point):
        noise = jnp.broadcast_to(point[None], (BATCH, LATENT))
        return variational.elbo_terms(encode, decode, jnp.asarray(DATA), noise, log_likelihood=log_likelihood)

    terms = terms_at(jnp.asarray(CUBATURE))
    return np.mean(terms.reconstruction, axis=0) - terms.kl[0]


@partial(jax.jit, static_argnums=0)
def log_weights(encode, data, noise):
    return variational.log_importance_weights(encode, decode, data, noise, log_likelihood=log_likelihood)


def cubature_log_weights(encode):
    return log_weights(encode, DATA, np.broadcast_to(CUBATURE[:, None], (len(CUBATURE), BATCH, LATENT)))


def test_elbo_plus_gap_is_log_p(float64):
    np.testing.assert_allclose(expected_elbo(other_encoder) + gap_to_posterior(), LOG_P, rtol=1e-12)
    np.testing.assert_allclose(expected_elbo(exact_encoder), LOG_P, rtol=1e-12)


def test_both_derivations_of_the_elbo_agree(float64):
    """Jensen's `E log p(x, z) / q(z)` and `E log p(x | z) - KL`."""
    np.testing.assert_allclose(
        cubature_log_weights(other_encoder).mean(axis=0), expected_elbo(other_encoder), rtol=1e-12
    )


def test_at_the_posterior_every_weight_is_p_of_x(float64):
    np.testing.assert_allclose(cubature_log_weights(exact_encoder), np.tile(LOG_P, (2 * LATENT, 1)), rtol=1e-12)


def test_drawn_elbo_has_the_expectation_and_reproduces(float64):
    data = jnp.tile(jnp.asarray(DATA), (5000, 1))
    key = jax.random.key(0)
    draw = jax.jit(partial(variational.elbo, other_encoder, decode, log_likelihood=log_likelihood))
    terms, again = draw(key, data), draw(key, data)
    np.testing.assert_array_equal(terms.reconstruction, again.reconstruction)
    draws = np.asarray(-variational.negative_elbo(terms)).reshape(5000, BATCH)
    error = draws.std(axis=0) / np.sqrt(5000)
    assert np.all(np.abs(draws.mean(axis=0) - expected_elbo(other_encoder)) < 4 * error)


def test_the_importance_bound_rises_with_its_samples_towards_log_p(float64):
    data = jnp.tile(jnp.asarray(DATA), (4000, 1))

    def bound(samples):
        key = jax.random.key(samples)
        draw = partial(variational.iwae, other_encoder, decode, log_likelihood=log_likelihood, samples=samples)
        values = np.asarray(jax.jit(draw)(key, data)).reshape(4000, BATCH)
        return values.mean(), values.mean(axis=1).std() / np.sqrt(4000)

    means, errors = zip(*(bound(samples) for samples in (1, 2, 5, 20, 100)), strict=True)
    assert abs(means[0] - expected_elbo(other_encoder).mean()) < 4 * errors[0]
    assert np.all(np.diff(means) > 3 * np.hypot(errors[1:], errors[:-1]))
    assert np.all(np.asarray(means) < LOG_P.mean() + 3 * np.asarray(errors))
    assert LOG_P.mean() - means[-1] < 0.1 * (LOG_P.mean() - means[0])


def test_doubly_reparameterized_gradients(float64):
    """Same value; same gradient in the decoder draw by draw; in the encoder the same mean and less variance."""
    data, repeats, samples = jnp.asarray(DATA), 3000, 8

    def bound(estimate, params, key):
        def encode(data):
            return other_encoder(data, params["shift"], params["log_variance"])

        def scaled(z):
            return params["gain"] * decode(z)

        return estimate(encode, scaled, key, data, log_likelihood=log_likelihood, samples=samples).mean()

    params = {
        "shift": jnp.asarray(OTHER["mean_shift"]),
        "log_variance": jnp.asarray(OTHER["log_variance"]),
        "gain": jnp.asarray(1.1),
    }
    keys = jax.random.split(jax.random.key(0), repeats)

    def gradients(estimate):
        one = jax.value_and_grad(lambda params, key: bound(estimate, params, key))
        return jax.jit(jax.vmap(one, in_axes=(None, 0)))(params, keys)

    value, plain = gradients(variational.iwae)
    dreg_value, dreg = gradients(variational.doubly_reparameterized_iwae)
    np.testing.assert_allclose(dreg_value, value, rtol=1e-10)
    np.testing.assert_allclose(dreg["gain"], plain["gain"], rtol=1e-8, atol=1e-10)
    for name in ("shift", "log_variance"):
        difference = np.asarray(dreg[name] - plain[name])
        assert np.all(np.abs(difference.mean(axis=0)) < 4 * difference.std(axis=0) / np.sqrt(repeats))
        assert np.all(np.var(dreg[name], axis=0) < 0.8 * np.var(plain[name], axis=0))


def test_beta_and_free_bits_and_warmup(float64):
    arguments = (other_encoder, decode, jnp.asarray(DATA), jnp.zeros((BATCH, LATENT)))
    terms = variational.elbo_terms(*arguments, log_likelihood=log_likelihood)
    np.testing.assert_allclose(
        variational.negative_elbo(terms, beta=3.0), 3 * terms.kl - terms.reconstruction, rtol=1e-14
    )
    posterior = other_encoder(jnp.asarray(DATA))
    by_dimension = 0.5 * (posterior.mean**2 + jnp.exp(posterior.log_variance) - 1 - posterior.log_variance)
    free = variational.elbo_terms(*arguments, log_likelihood=log_likelihood, free_bits=0.5)
    np.testing.assert_allclose(free.kl, np.maximum(by_dimension, 0.5).sum(axis=1), rtol=1e-12)
    assert np.all(free.kl > terms.kl)
    assert np.asarray(variational.kl_warmup(jnp.asarray([0.0, 5.0, 10.0, 99.0]), 10)).tolist() == [0.0, 0.5, 1.0, 1.0]


def test_a_batch_is_its_examples(float64):
    noise = np.random.default_rng(1).standard_normal((6, BATCH, LATENT))
    whole = log_weights(other_encoder, DATA, noise)
    for row in range(BATCH):
        alone = log_weights(other_encoder, DATA[row : row + 1], noise[:, row : row + 1])
        np.testing.assert_allclose(alone[:, 0], whole[:, row], rtol=1e-12)


@pytest.mark.parametrize("draws", [(), (7,)])
def test_reparameterized_draws_have_the_posteriors_moments(draws, float64):
    posterior = Posterior(jnp.asarray([[1.0, -2.0]]), jnp.log(jnp.asarray([[0.25, 9.0]])))
    noise = jnp.ones((*draws, 1, 2))
    expected = np.broadcast_to([[1.5, 1.0]], (*draws, 1, 2))
    np.testing.assert_allclose(variational.reparameterize(posterior, noise), expected, rtol=1e-14)
