"""Reductions to one value an example, broadcasting over event axes, and noise that does not depend on the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kstest

from genjax import arrays

KEY = jax.random.key(3)


@pytest.mark.parametrize("event_shape", [(), (5,), (4, 4, 3)])
def test_expand_broadcasts_over_event_axes(event_shape):
    like, values = jnp.ones((3, *event_shape)), jnp.arange(3.0)
    product = arrays.expand(values, like) * like
    assert product.shape == like.shape
    for row, value in zip(np.asarray(product), (0.0, 1.0, 2.0), strict=True):
        np.testing.assert_array_equal(row, value)


@pytest.mark.parametrize("scalar", [2.0, jnp.asarray(2.0), np.float32(2.0)])
def test_expand_leaves_a_scalar(scalar):
    assert arrays.expand(scalar, jnp.ones((3, 4))).shape == ()


@pytest.mark.parametrize("event_shape", [(), (5,), (4, 4, 3)])
def test_sums_and_means_reduce_all_but_the_first_axis(event_shape):
    values = np.random.default_rng(0).normal(size=(3, *event_shape))
    flat = values.reshape(3, -1)
    np.testing.assert_allclose(arrays.sum_events(jnp.asarray(values)), flat.sum(axis=1), rtol=1e-5)
    np.testing.assert_allclose(arrays.mean_events(jnp.asarray(values)), flat.mean(axis=1), rtol=1e-5)


def test_reductions_of_bfloat16_are_float32():
    values = jnp.full((2, 1000), 1.0, jnp.bfloat16)  # a bfloat16 sum of 1000 ones stops at 256
    assert arrays.sum_events(values).dtype == arrays.mean_events(values).dtype == jnp.float32
    np.testing.assert_array_equal(arrays.sum_events(values), [1000.0, 1000.0])


def test_reductions_keep_float64(float64):
    assert arrays.sum_events(jnp.ones((2, 3))).dtype == jnp.float64


def test_normal_does_not_depend_on_the_batch():
    whole = arrays.normal(KEY, (6, 3, 2))
    parts = [arrays.normal(arrays.example_keys(KEY, 2, start), (2, 3, 2)) for start in (0, 2, 4)]
    np.testing.assert_array_equal(whole, np.concatenate(parts))
    np.testing.assert_array_equal(whole[:4], arrays.normal(KEY, (4, 3, 2)))
    assert len(np.unique(np.asarray(whole))) == whole.size


def test_normal_is_standard_normal():
    assert kstest(np.ravel(arrays.normal(KEY, (500, 10))), "norm").pvalue > 1e-3


def test_normal_returns_the_noise_handed_in():
    noise = jax.random.normal(KEY, (4, 2))
    np.testing.assert_array_equal(arrays.normal(noise, (4, 2)), noise)
    assert arrays.normal(noise, (4, 2), jnp.bfloat16).dtype == jnp.bfloat16


@pytest.mark.parametrize("shape", [(2, 4), (8,), (3, 2), (4, 2, 1)])
def test_normal_refuses_noise_of_another_shape(shape):
    with pytest.raises(ValueError, match="noise has shape"):
        arrays.normal(jnp.zeros(shape), (4, 2))


def test_another_number_of_keys_is_refused():
    with pytest.raises(ValueError, match="one an example"):
        arrays.normal(arrays.example_keys(KEY, 3), (4, 2))


@pytest.mark.parametrize("num", [2, 5])
def test_raw_keys_draw_what_typed_ones_draw(num):
    raw = jax.random.PRNGKey(3)
    np.testing.assert_array_equal(arrays.normal(raw, (num, 3)), arrays.normal(KEY, (num, 3)))
    several = arrays.example_keys(KEY, num)
    from_data = arrays.normal(jax.random.key_data(several), (num, 3))
    np.testing.assert_array_equal(from_data, arrays.normal(several, (num, 3)))


def test_fold_each_folds_every_key():
    keys = arrays.example_keys(KEY, 3)
    expected = [jax.random.key_data(jax.random.fold_in(key, 7)) for key in keys]
    np.testing.assert_array_equal(jax.random.key_data(arrays.fold_each(keys, jnp.uint32(7))), np.stack(expected))


def test_normal_draws_in_double_precision(float64):
    assert arrays.normal(KEY, (2, 3), jnp.float64).dtype == jnp.float64


EXTREMES = np.array([-1e30, -80.0, -30.0, -1.0, -1e-3, 0.0, 1e-3, 1.0, 30.0, 80.0, 1e30])


def test_softplus_is_numpys_at_every_size():
    found = np.asarray(arrays.softplus(jnp.asarray(EXTREMES, jnp.float32)), np.float64)
    np.testing.assert_allclose(found, np.logaddexp(EXTREMES, 0), rtol=3e-7, atol=1e-37)


def test_derivatives_of_softplus_are_sigmoids_at_zero_too(float64):
    x = jnp.asarray([-40.0, -1.0, 0.0, 2.0, 40.0])
    first, second = (jax.vmap(f)(x) for f in (jax.grad(arrays.softplus), jax.grad(jax.grad(arrays.softplus))))
    sigmoid = 1 / (1 + np.exp(-np.asarray(x)))
    np.testing.assert_allclose(first, sigmoid, rtol=1e-14)
    np.testing.assert_allclose(second, sigmoid * (1 - sigmoid), rtol=1e-14, atol=1e-16)


def test_softplus_keeps_dtype_and_shows_nan():
    assert arrays.softplus(jnp.zeros(2, jnp.bfloat16)).dtype == jnp.bfloat16
    assert jnp.isnan(arrays.softplus(jnp.float32(jnp.nan)))
