"""Consistency sampling: the marginal is kept by the exact function; randomness by example; one scan."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import oracles, paths, predictions
from genjax.arrays import example_keys
from genjax.samplers import consistency_sample

NUM = 8192
SIGMA_MIN = 0.3  # large, so that noise which forgets it shows
LEVELS = jnp.asarray([4.0, 1.5, 0.5, 0.8])  # need not fall

WEIGHTS, MEANS, VARIANCES = np.array([0.3, 0.7]), np.array([[-2.0, 0.0], [2.0, 0.5]]), np.array([0.1, 0.2])
COVARIANCE = np.array([[0.8, 0.3], [0.3, 0.5]])


def gaussian():
    return oracles.mixture([1.0], [[0.5, -1.0]], COVARIANCE[None])


def two_modes():
    return oracles.mixture(WEIGHTS, MEANS, VARIANCES)


def exact(mix, steps=60):
    """The consistency function of a mixture: its ODE from t to SIGMA_MIN, by the midpoint method in log t."""
    velocity = oracles.model(mix, paths.edm(), predictions.velocity)

    def function(x, t):
        rate = jnp.log(SIGMA_MIN / t) / steps

        def move(x, position):
            level = t * jnp.exp(rate * position)
            return (rate * level)[:, None] * velocity(x, level)

        def advance(x, index):
            return x + move(x + 0.5 * move(x, index), index + 0.5), None

        return jax.lax.scan(advance, x, jnp.arange(steps, dtype=x.dtype))[0]

    return function


def runs(mix, model, levels):
    """Estimates `[n, NUM, 2]` from an exact draw of the marginal at the first level."""

    @jax.jit
    def run(key):
        data_key, noise_key, sample_key = jax.random.split(key, 3)
        start = oracles.sample(mix, data_key, NUM) + levels[0] * jax.random.normal(noise_key, (NUM, 2))
        options = {"levels": levels, "sigma_min": SIGMA_MIN, "trace": True}
        return consistency_sample(model, sample_key, start / levels[0], **options)[1]

    return np.asarray(run(jax.random.key(0)), np.float64)


def off_gaussian(x):
    """The greatest deviation of mean and covariance from those of the blurred Gaussian, in standard errors."""
    covariance = COVARIANCE + SIGMA_MIN**2 * np.eye(2)
    variances = np.diag(covariance)
    of_mean = (x.mean(axis=0) - [0.5, -1.0]) / np.sqrt(variances / len(x))
    of_covariance = (np.cov(x.T) - covariance) / np.sqrt((np.outer(variances, variances) + covariance**2) / len(x))
    return max(np.abs(of_mean).max(), np.abs(of_covariance).max())


def off_mixture(x):
    """The same of each mode of the blurred mixture, weights included: the modes are 6 deviations or more apart."""
    nearest = np.argmin(np.sum((x[:, None] - MEANS) ** 2, axis=-1), axis=1)
    deviations = []
    for k, (weight, mean, variance) in enumerate(zip(WEIGHTS, MEANS, VARIANCES + SIGMA_MIN**2, strict=True)):
        own = x[nearest == k]
        deviations.append((len(own) / len(x) - weight) / np.sqrt(weight * (1 - weight) / len(x)))
        deviations.extend((own.mean(axis=0) - mean) / np.sqrt(variance / len(own)))
        deviations.extend((own.var(axis=0) / variance - 1) / np.sqrt(2 / len(own)))
    return np.abs(deviations).max()


@pytest.mark.parametrize(("make", "off"), [(gaussian, off_gaussian), (two_modes, off_mixture)])
def test_the_exact_function_keeps_the_marginal_at_every_level(make, off):
    mix = make()
    estimates = runs(mix, exact(mix), LEVELS)
    found = [off(x) for x in estimates]
    print(f"{make.__name__}: largest deviations {found} standard errors")
    assert np.all(np.asarray(found) < 4)
    assert np.all(np.abs(np.diff(estimates, axis=0)).mean(axis=(1, 2)) > 0.1)  # and yet the examples moved


def test_another_function_does_not_keep_it():
    """The denoiser's mean of the data is the wrong one: the estimates have too little variance."""
    denoiser = oracles.model(gaussian(), paths.edm(), predictions.data)
    assert min(off_gaussian(x) for x in runs(gaussian(), denoiser, LEVELS)) > 10


def test_one_call_from_noise_alone_at_the_largest_level():
    """80 is large enough to take the marginal there for N(0, 80^2)."""
    noise = jax.random.normal(jax.random.key(0), (NUM, 2))
    sample = lambda noise: consistency_sample(  # noqa: E731
        exact(two_modes(), 200), jax.random.key(1), noise, levels=jnp.asarray([80.0]), sigma_min=SIGMA_MIN
    )
    assert off_mixture(np.asarray(jax.jit(sample)(noise), np.float64)) < 4


# By hand


def bent(x, t):
    return jnp.tanh(x / t[:, None, None]) + 0.1 * x


def test_it_is_algorithm_1():
    noise, fresh = (
        jax.random.normal(jax.random.key(seed), shape) for seed, shape in ((0, (4, 3, 1)), (1, (2, 4, 3, 1)))
    )
    levels = jnp.asarray([5.0, 2.0, 0.4])
    last, estimates = consistency_sample(bent, fresh, noise, levels=levels, sigma_min=0.1, trace=True)
    expected = [bent(5.0 * noise, jnp.full(4, 5.0))]
    for level, z in zip((2.0, 0.4), fresh, strict=True):
        expected.append(bent(expected[-1] + (level**2 - 0.1**2) ** 0.5 * z, jnp.full(4, level)))
    np.testing.assert_allclose(estimates, jnp.stack(expected), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(last, estimates[-1])


def test_one_level_is_one_call_whatever_the_key():
    noise = jax.random.normal(jax.random.key(0), (4, 3, 1))
    for key in (jax.random.key(1), jax.random.key(2), jnp.zeros((0, 4, 3, 1))):
        found = consistency_sample(bent, key, noise, levels=jnp.asarray([5.0]))
        np.testing.assert_allclose(found, bent(5.0 * noise, jnp.full(4, 5.0)), rtol=1e-6)


def test_at_sigma_min_no_noise_is_added():
    noise = jax.random.normal(jax.random.key(0), (4, 3, 1))
    levels = jnp.asarray([5.0, 0.1])
    _, estimates = consistency_sample(
        lambda x, t: x, jax.random.key(1), noise, levels=levels, sigma_min=0.1, trace=True
    )
    np.testing.assert_array_equal(estimates[0], estimates[1])


# Randomness and compilation


def test_example_i_depends_on_its_key_alone():
    sample = jax.jit(lambda key, noise: consistency_sample(bent, key, noise, levels=LEVELS))
    key, noise = jax.random.key(4), jax.random.normal(jax.random.key(0), (16, 3, 1))
    whole, other = sample(key, noise), sample(jax.random.key(5), noise)
    parts = [sample(example_keys(key, 4, start), noise[start : start + 4]) for start in range(0, 16, 4)]
    np.testing.assert_allclose(whole, np.concatenate(parts), rtol=1e-5, atol=1e-6)
    assert np.all(np.abs(whole - other).max(axis=(1, 2)) > 1e-3)
    changed = sample(example_keys(key, 16).at[3].set(jax.random.key(7)), noise)
    np.testing.assert_array_equal(np.any(changed != whole, axis=(1, 2)), np.arange(16) == 3)


def test_levels_receive_different_noise():
    levels = jnp.ones(4)
    _, estimates = consistency_sample(lambda x, t: x, jax.random.key(0), jnp.zeros((NUM, 1)), levels=levels, trace=True)
    increments = np.diff(np.asarray(estimates)[..., 0], axis=0)
    assert increments.shape == (3, NUM)
    np.testing.assert_allclose(np.corrcoef(increments), np.eye(3), atol=4 / NUM**0.5)
    np.testing.assert_allclose(increments.std(axis=1), 1.0, atol=4 / (2 * NUM) ** 0.5)


def test_the_number_of_traces_does_not_grow_with_the_levels():
    counts = []
    for num in (1, 2, 100):
        calls = []
        counting = lambda x, t, calls=calls: calls.append(None) or bent(x, t)  # noqa: E731
        run = lambda noise, levels, counting=counting: consistency_sample(  # noqa: E731
            counting, jax.random.key(0), noise, levels=levels
        )
        jaxpr = jax.make_jaxpr(run)(jnp.ones((4, 3, 1)), jnp.linspace(5.0, 1.0, num))
        assert len(calls) == 1
        counts.append(len(jaxpr.eqns))
    assert counts[1] == counts[2]


def test_other_levels_do_not_recompile():
    traces = []

    @jax.jit
    def run(key, levels):
        traces.append(levels)
        return consistency_sample(bent, key, jnp.ones((4, 3, 1)), levels=levels)

    found = [run(jax.random.key(seed), LEVELS * (1 + seed)) for seed in range(3)]
    assert len(traces) == 1
    assert np.all(np.isfinite(found))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_dtype_is_that_of_the_noise(dtype):
    low = lambda x, t: bent(x, t).astype(jnp.bfloat16)  # noqa: E731
    assert consistency_sample(low, jax.random.key(0), jnp.ones((4, 3, 1), dtype), levels=LEVELS).dtype == dtype


def test_what_cannot_be_meant_raises():
    noise = jnp.ones((4, 2))
    for levels in (jnp.ones(()), jnp.ones(0), jnp.ones((2, 2))):
        with pytest.raises(ValueError, match="levels have shape"):
            consistency_sample(bent, jax.random.key(0), noise, levels=levels)
    with pytest.raises(ValueError, match="noise has shape"):
        consistency_sample(bent, jnp.ones((4, 4, 2)), noise, levels=LEVELS)
    with pytest.raises(ValueError, match="one an example"):
        consistency_sample(bent, example_keys(jax.random.key(0), 3), noise, levels=LEVELS)
