"""Likelihoods: probabilities that sum to 1, SciPy's densities, extreme logits, bits per dimension."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from genjax.losses import likelihood

RANDOM = np.random.default_rng(3)


def test_bernoulli_probabilities_sum_to_one(float64):
    logits = jnp.tile(jnp.asarray(RANDOM.normal(size=(1, 4)) * 3), (16, 1))
    states = jnp.asarray((np.arange(16)[:, None] >> np.arange(4)) & 1, jnp.float64)
    np.testing.assert_allclose(jnp.exp(likelihood.bernoulli(logits, states)).sum(), 1, rtol=1e-12)


def test_bernoulli_keeps_extreme_logits_finite():
    logits = jnp.asarray([[200.0, -200.0, 200.0]])
    bits = jnp.asarray([[0.0, 1.0, 1.0]])
    value, gradient = jax.value_and_grad(lambda logits: likelihood.bernoulli(logits, bits).sum())(logits)
    assert float(value) == -400.0
    np.testing.assert_array_equal(gradient, [[-1.0, 1.0, 0.0]])


@pytest.mark.parametrize(("x64", "tolerance"), [(True, 1e-11), (False, 1e-5)])
def test_bernoulli_parity(x64, tolerance):
    """The peer's value an element is ours of examples of one element."""
    numbers = np.load(Path(__file__).parents[1] / "reference" / "vae_terms.npz")
    logits, x = numbers["logits"], numbers["x"]
    with jax.enable_x64(x64):
        by_element = -np.asarray(
            likelihood.bernoulli(jnp.asarray(logits.reshape(-1, 1)), jnp.asarray(x.reshape(-1, 1)))
        )
        summed = -np.asarray(likelihood.bernoulli(jnp.asarray(logits), jnp.asarray(x)))
    by_element = by_element.reshape(x.shape)
    # of probabilities the peer takes logarithms no lower than -100, and a logit above 36 has a probability of 1
    of_probabilities = np.where(logits > 36, 100 * (1 - x), np.minimum(by_element, 100))
    expected = {"": by_element, "_sum": summed, "_of_probabilities": of_probabilities}
    for name, found in expected.items():
        peer = numbers[f"bernoulli_nll{name}"]
        difference = (np.abs(found - peer) / (1 if x64 else np.maximum(1, np.abs(peer)))).max()
        print(f"bernoulli{name}, {by_element.dtype}: {difference:.1e}")
        assert difference < tolerance


@pytest.mark.parametrize("shape", [(), (4,), (4, 2, 3)])
def test_gaussian_is_scipys(shape, float64):
    mean, data = RANDOM.normal(size=(2, 4, 2, 3))
    log_variance = RANDOM.normal(size=shape)
    deviation = np.exp(0.5 * log_variance.reshape(shape + (1,) * (3 - len(shape)) if shape else ()))
    expected = stats.norm(mean, deviation).logpdf(data).sum(axis=(1, 2))
    found = likelihood.gaussian(jnp.asarray(mean), jnp.asarray(data), log_variance=jnp.asarray(log_variance))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_categorical_is_the_log_softmax_of_the_category(float64):
    logits, data = RANDOM.normal(size=(3, 2, 5)), RANDOM.integers(5, size=(3, 2))
    p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    expected = [sum(np.log(p[b, i, data[b, i]]) for i in range(2)) for b in range(3)]
    np.testing.assert_allclose(likelihood.categorical(jnp.asarray(logits), jnp.asarray(data)), expected, rtol=1e-12)


def test_gaussian_mixture_integrates_to_one_and_is_scipys(float64):
    logits, mean, log_scale = (jnp.asarray(RANDOM.normal(size=(1, 1, 3))) for _ in range(3))
    grid = np.linspace(-60, 60, 24_001)
    same = (jnp.broadcast_to(values, (len(grid), 1, 3)) for values in (logits, mean, log_scale))
    logits_each, mean_each, log_scale_each = same
    found = likelihood.gaussian_mixture(logits_each, mean_each, jnp.asarray(grid)[:, None], log_scale=log_scale_each)
    np.testing.assert_allclose(np.trapezoid(np.exp(found), grid), 1, rtol=1e-9)
    weights = np.exp(logits[0, 0]) / np.exp(logits[0, 0]).sum()
    density = stats.norm(mean[0, 0], np.exp(log_scale[0, 0])).pdf(grid[:, None]) @ weights
    np.testing.assert_allclose(np.exp(found), density, rtol=1e-9, atol=1e-300)


def test_gaussian_mixture_of_one_component_is_the_gaussian_summed_over_dimensions(float64):
    mean, data, log_scale = (jnp.asarray(RANDOM.normal(size=(4, 2, 3))) for _ in range(3))
    found = likelihood.gaussian_mixture(jnp.ones((4, 2, 3, 1)), mean[..., None], data, log_scale=log_scale[..., None])
    np.testing.assert_allclose(found, likelihood.gaussian(mean, data, log_variance=2 * log_scale), rtol=1e-12)


def test_gaussian_mixture_has_finite_gradients_far_away():
    def loss(mean):
        scales = jnp.full((1, 1, 2), -7.0)
        return likelihood.gaussian_mixture(jnp.zeros((1, 1, 2)), mean, jnp.full((1, 1), 1e4), log_scale=scales).sum()

    value, gradient = jax.value_and_grad(loss)(jnp.asarray([[[0.0, 1.0]]]))
    assert np.isfinite(value)
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_every_level_has_its_centre_and_every_centre_its_level(levels):
    values = jnp.arange(levels)
    centres = likelihood.centres_of(values, levels=levels)
    np.testing.assert_allclose(centres, (2 * np.arange(levels) - levels + 1) / levels, atol=1e-6)
    for noise in (-0.49, 0.0, 0.49):
        np.testing.assert_array_equal(likelihood.levels_of(centres + 2 * noise / levels, levels=levels), values)
    beyond = likelihood.levels_of(jnp.asarray([-9.0, 9.0]), levels=levels)
    np.testing.assert_array_equal(beyond, [0, levels - 1])


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("log_scale", [-9.0, -2.0, 1.0])
@pytest.mark.parametrize("mean", [-1.3, 0.06, 0.9])
def test_discretized_logistic_is_the_mass_of_the_bins(levels, log_scale, mean, float64):
    centres = (2 * np.arange(levels) - levels + 1) / levels
    edges = np.concatenate([[-np.inf], centres[:-1] + 1 / levels, [np.inf]])
    distribution = stats.logistic(mean, np.exp(log_scale))
    mass = np.where(edges[1:] > mean, -np.diff(distribution.sf(edges)), np.diff(distribution.cdf(edges)))
    found = likelihood.discretized_logistic(
        jnp.full((levels, 1), mean), jnp.asarray(centres)[:, None], log_scale=log_scale, levels=levels
    )
    np.testing.assert_allclose(jnp.exp(found).sum(), 1, rtol=1e-9)
    np.testing.assert_allclose(jnp.exp(found), mass, rtol=1e-6, atol=1e-14)
    assert np.all(np.isfinite(found))


def test_discretized_logistic_has_finite_gradients_far_away():
    def loss(mean, log_scale):
        data = jnp.linspace(-1 + 1 / 256, 1 - 1 / 256, 256)[:, None]
        return likelihood.discretized_logistic(jnp.full((256, 1), mean), data, log_scale=log_scale, levels=256).sum()

    for log_scale in (-12.0, 0.0, 12.0):
        assert np.all(np.isfinite(jax.grad(loss, argnums=(0, 1))(0.3, log_scale)))


LEVELS = 5
CENTRES = (2 * np.arange(LEVELS) - LEVELS + 1) / LEVELS


def test_dequantising_a_density_that_is_constant_in_each_bin_is_exact():
    probability = jnp.asarray([0.1, 0.4, 0.05, 0.25, 0.2])

    def log_density(x):
        level = jnp.floor((x + 1) * LEVELS / 2).astype(jnp.int32)
        return jnp.sum(jnp.log(probability[level] * LEVELS / 2), axis=(1, 2))

    levels = RANDOM.integers(LEVELS, size=(500, 2, 3))
    data = jnp.asarray(CENTRES[levels], jnp.float32)
    found = likelihood.dequantised(log_density, jax.random.key(0), data, levels=LEVELS)
    np.testing.assert_allclose(found, np.log(probability[levels]).sum(axis=(1, 2)), rtol=1e-5)


def test_dequantising_bounds_the_mass_of_the_bins_from_below_and_has_it_as_its_exponentials_mean(float64):
    data = jnp.asarray(np.tile(CENTRES, (400_000, 1)))

    def log_density(x):
        return likelihood.gaussian(jnp.full_like(x, 0.3), x, log_variance=-3.0)

    found = likelihood.dequantised(log_density, jax.random.key(1), data.reshape(-1, 1), levels=LEVELS)
    draws = np.asarray(found).reshape(data.shape)
    normal = stats.norm(0.3, np.exp(-1.5))
    mass = normal.cdf(CENTRES + 1 / LEVELS) - normal.cdf(CENTRES - 1 / LEVELS)
    assert np.all(draws.mean(axis=0) < np.log(mass) - 0.02)
    np.testing.assert_allclose(np.exp(draws).mean(axis=0), mass, rtol=0.02)


def test_continuous_data_are_not_dequantised():
    data = jnp.asarray(RANDOM.normal(size=(4, 2)))

    def log_density(x):
        return likelihood.gaussian(jnp.zeros_like(x), x)

    found = likelihood.dequantised(log_density, jax.random.key(0), data, levels=0)
    np.testing.assert_array_equal(found, log_density(data))


def test_bits_per_dim_of_a_uniform_density_over_integers_is_their_bits(float64):
    """Integers 0 .. 255 in model units fill [-1, 1]: density 1/2 a dimension, 8 bits."""
    log_density = jnp.full(2, -12 * np.log(2.0))
    np.testing.assert_allclose(likelihood.bits_per_dim(log_density, (2, 2, 3), levels=256), 8.0, rtol=1e-12)
    np.testing.assert_allclose(likelihood.bits_per_dim(log_density, (2, 2, 3)), 1.0, rtol=1e-12)
    np.testing.assert_array_equal(likelihood.negative_log_likelihood(log_density), -log_density)
