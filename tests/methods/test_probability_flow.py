"""Adaptive draws and likelihoods of a method on a Gaussian path, whose network is the exact model: what the ODE gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from scipy import stats

from genjax import oracles, paths, predictions, times
from genjax.errors import UsageError
from genjax.losses import denoising
from genjax.methods import path_models
from genjax.training.steps import adamw
from genjax.typing import Examples, Net

STD = 0.6
MIX = oracles.mixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], [0.01, 0.3])


def method_of(apply, examples=None, num_classes=0):
    path = paths.linear()
    return path_models.build(
        Net(lambda key, *inputs: {}, lambda params, *inputs: apply(*inputs)),
        adamw(1e-3, 1),
        examples=examples or Examples((2,), num_classes),
        num_classes=num_classes,
        path=path,
        predict=predictions.velocity,
        error=predictions.velocity,
        weighting=denoising.uniform,
        density=times.uniform_density(path),
        knots=lambda steps: paths.knots(path, times.uniform(path, steps)),
        default_sampler="heun",
        default_steps=10,
        first_order_end=False,
        ema_decay=0.9,
        label_dropout=0.1,
        compiler_options=None,
    )


def exact(mix):
    return oracles.model(mix, paths.linear(), predictions.velocity)


def gaussian(std):
    return oracles.mixture([1.0], [[0.0, 0.0]], [std**2])


def test_draws_are_where_the_flow_ends_and_none_depends_on_its_batch():
    """N(0, I) to N(0, STD^2 I): a factor. The last call lands on the data from 0.002 of noise."""
    noise = jax.random.normal(jax.random.key(0), (6, 2))
    draw = method_of(exact(gaussian(STD))).sample
    keys = jax.random.split(jax.random.key(1), 6)
    found = draw({}, keys, 6, sampler="adaptive", tolerance=1e-5, noise=noise)
    np.testing.assert_allclose(found, STD * noise, atol=1e-4)
    draw = jax.jit(
        lambda noise, key: method_of(exact(MIX)).sample({}, key, len(noise), sampler="adaptive", noise=noise)
    )
    np.testing.assert_allclose(draw(noise, keys)[2:4], draw(noise[2:4], keys[2:4]), atol=1e-5)


def test_calls_are_told_for_each_draw_and_are_double_with_guidance():
    def labelled(x, t, label):
        return exact(gaussian(STD))(x, t)

    draw = method_of(labelled, num_classes=3).sample
    options = dict(sampler="adaptive", counted=True, label=jnp.asarray([0, 1]))
    (plain, calls), (guided, twice) = (
        draw({}, jax.random.key(0), 2, guidance=scale, **options) for scale in (1.0, 3.0)
    )
    np.testing.assert_allclose(plain, guided, atol=1e-4)
    assert calls.shape == (2,)
    np.testing.assert_array_equal(twice, 2 * calls)
    assert method_of(labelled, num_classes=3).network_calls(sampler="adaptive") is None


def test_a_draw_that_fails_is_nan_and_no_other():
    field = exact(gaussian(STD))
    model = lambda x, t: jnp.where(x[:, :1] > 0, jnp.nan, field(x, t))  # noqa: E731
    noise = jnp.asarray([[-1.0, 0.0], [1.0, 0.0]])
    found = method_of(model).sample({}, jax.random.key(0), 2, sampler="adaptive", noise=noise)
    np.testing.assert_array_equal(np.isnan(found), [[False, False], [True, True]])


def test_what_does_not_fit_is_refused():
    method = method_of(exact(gaussian(STD)))
    for options, told in (
        (dict(sampler="adaptive", trace=True), "--trajectory does not apply"),
        (dict(sampler="heun", tolerance=1e-3), "--tolerance does not apply: --sampler heun"),
        (dict(sampler="adaptive", tolerance=0.0), "--tolerance is 0.0"),
        (dict(sampler="adaptve"), "adaptive"),
    ):
        with pytest.raises(UsageError, match=told):
            method.sample({}, jax.random.key(0), 2, **options)


def test_the_log_likelihood_of_points_is_the_exact_one():
    data = oracles.sample(MIX, jax.random.key(0), 32)
    method = method_of(exact(MIX))
    found = method.log_prob({}, jax.random.key(1), data)
    np.testing.assert_allclose(found, oracles.log_density(MIX, data), atol=5e-3)
    assert not method.bounds_log_prob


def test_any_velocity_has_its_likelihood_be_it_a_mean_or_not():
    """As that of paired noise and data, or of a rectified flow: for dx/dt = A x from N(0, I), that of the matrix exponential."""
    matrix, last = np.asarray([[0.3, 0.8], [-0.6, -0.1]]), 1 / 1.002  # where sigma is 0.002 alpha
    data = np.random.default_rng(0).standard_normal((16, 2))
    start = last * data @ scipy.linalg.expm(-last * matrix).T
    exact = stats.norm.logpdf(start).sum(axis=1) - last * np.trace(matrix) + 2 * np.log(last)
    found = jax.jit(method_of(lambda x, t: x @ matrix.T).log_prob)(
        {}, jax.random.key(0), jnp.asarray(data, jnp.float32)
    )
    np.testing.assert_allclose(found, exact, atol=2e-3)


def test_that_of_integer_images_is_of_their_probability():
    """On N(0, STD^2) in each of 4 pixels, whose trace one probe of signs gives exactly: log P of 32 levels, within Jensen's gap."""
    levels, shape = 32, (2, 2, 1)
    mix = oracles.mixture([1.0], np.zeros((1, 4)), [STD**2])
    model = lambda x, t: exact(mix)(x.reshape(len(x), 4), t).reshape(x.shape)  # noqa: E731
    method = method_of(model, Examples(shape, 0, levels))
    values = np.random.default_rng(0).integers(4, 28, (16, *shape))
    data = (2 * values - levels + 1) / levels
    edges = jax.scipy.stats.norm.cdf(jnp.stack([data - 1 / levels, data + 1 / levels]) / STD)
    exact_log = jnp.log(edges[1] - edges[0]).sum(axis=(1, 2, 3))
    of_draw = jax.jit(jax.vmap(lambda key: method.log_prob({}, key, jnp.asarray(data, jnp.float32))))
    draws = of_draw(jax.random.split(jax.random.key(0), 20))
    np.testing.assert_allclose(draws.mean(axis=0), exact_log, atol=0.1)
    assert method.bounds_log_prob
