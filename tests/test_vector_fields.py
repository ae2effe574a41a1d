"""Divergences: exact ones are traces of Jacobians, estimates have them as their mean, probes belong to their example."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.arrays import example_keys
from genjax.vector_fields import divergence, draw_probes, hutch_plus_plus_divergence, hutchinson_divergence

SHAPES = [(), (3,), (2, 2, 1)]


def draws(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def field_on(shape):
    """A field whose Jacobian is full and differs between examples."""
    dimension = int(np.prod(shape))
    first, second = draws(dimension, dimension, seed=1), draws(dimension, dimension, seed=2)
    return lambda x: (jnp.tanh(x.reshape(len(x), dimension) @ first) @ second).reshape(x.shape)


def jacobians(field, x):
    """`[B, D, D]`, one example after the other."""
    dimension = int(np.prod(x.shape[1:]))
    one = lambda x: field(x[None])[0]  # noqa: E731
    return jax.vmap(jax.jacfwd(one))(x).reshape(len(x), dimension, dimension)


def all_signs(dimension):
    """The 2^D Rademacher probes, `[2^D, D]`."""
    return jnp.asarray(list(itertools.product([-1.0, 1.0], repeat=dimension)))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_divergence_is_the_trace_of_the_jacobian(float64, shape):
    field, x = field_on(shape), draws(5, *shape)
    expected = jnp.trace(jacobians(field, x), axis1=1, axis2=2)
    for chunk in (None, 1, 2):
        value, found = jax.jit(lambda x, chunk=chunk: divergence(field, x, chunk=chunk))(x)
        np.testing.assert_allclose(value, field(x), atol=1e-12)
        np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_over_all_signs_the_estimate_is_exact(float64, shape):
    field, x = field_on(shape), draws(5, *shape)
    signs = all_signs(int(np.prod(shape))).reshape(-1, 1, *shape)
    probes = jnp.broadcast_to(signs, (len(signs), *x.shape))
    values, estimates = jax.vmap(lambda probe: hutchinson_divergence(field, x, probe))(probes)
    np.testing.assert_allclose(values[-1], field(x), atol=1e-12)
    np.testing.assert_allclose(estimates.mean(axis=0), divergence(field, x)[1], atol=1e-12)


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
def test_estimates_have_the_mean_and_the_variance_of_theory(float64, distribution):
    """Within 4 standard errors; that of a variance from the fourth moments of the draws."""
    num = 20_000
    field, point = field_on((3,)), draws(1, 3)
    x = jnp.broadcast_to(point, (num, 3))
    probes = draw_probes(jax.random.key(0), x, distribution=distribution)
    estimates = np.asarray(hutchinson_divergence(field, x, probes)[1])
    jacobian = jacobians(field, point)[0]
    symmetric = np.asarray(jacobian + jacobian.T) / 2
    counted = 1 - np.eye(3) if distribution == "rademacher" else np.ones((3, 3))
    variance = 2 * np.sum(counted * symmetric**2)
    squares = (estimates - np.trace(jacobian)) ** 2
    assert abs(estimates.mean() - np.trace(jacobian)) < 4 * (variance / num) ** 0.5
    assert abs(squares.mean() - variance) < 4 * squares.std() / num**0.5


@pytest.mark.parametrize("shape", [(3,), (2, 2, 1)])
def test_hutch_plus_plus_over_all_signs_is_exact_whatever_the_sketch(float64, shape):
    field, x = field_on(shape), draws(5, *shape)
    signs = all_signs(int(np.prod(shape))).reshape(-1, 1, *shape)
    probe = jnp.broadcast_to(signs, (len(signs), *x.shape))
    value, found = hutch_plus_plus_divergence(field, x, draws(2, *x.shape, seed=4), probe)
    np.testing.assert_allclose(value, field(x), atol=1e-12)
    np.testing.assert_allclose(found, divergence(field, x)[1], atol=1e-12)


def test_hutch_plus_plus_is_exact_at_the_rank_of_the_sketch_and_nearer_with_it(float64):
    """A Jacobian of rank 2 in 20 dimensions; and one of decaying spectrum, by as many derivatives of each estimator."""
    low, x = draws(20, 2, seed=1) @ draws(2, 20, seed=2), draws(4, 20)
    sketch, probe = draws(2, *x.shape, seed=3), draws(3, *x.shape, seed=4)
    found = hutch_plus_plus_divergence(lambda x: x @ low, x, sketch, probe)[1]
    np.testing.assert_allclose(found, np.trace(low), atol=1e-10)
    turned = np.linalg.qr(np.random.default_rng(5).standard_normal((20, 20)))[0]
    decaying = turned @ np.diag(0.5 ** np.arange(20)) @ turned.T
    field, many = lambda x: x @ decaying, jnp.broadcast_to(x[:1], (500, 20))
    plus = hutch_plus_plus_divergence(field, many, draws(3, *many.shape, seed=6), draws(3, *many.shape, seed=7))[1]
    plain = hutchinson_divergence(field, many, draws(9, *many.shape, seed=8))[1].mean(axis=0)
    errors = [np.sqrt(np.mean((np.asarray(found) - np.trace(decaying)) ** 2)) for found in (plus, plain)]
    assert errors[0] < errors[1] / 2


def test_probes_are_signs_or_normal_and_white():
    like = jnp.zeros((20_000, 2))
    signs, normals = (draw_probes(jax.random.key(1), like, distribution=name) for name in ("rademacher", "gaussian"))
    assert set(np.unique(signs)) == {-1.0, 1.0}
    for probes in (signs, normals):
        assert probes.dtype == like.dtype
        assert np.abs(np.mean(probes, axis=0)).max() < 4 / len(like) ** 0.5
        second = np.einsum("bi,bj->ij", probes, probes) / len(like)
        assert np.abs(second - np.eye(2)).max() < 4 * (2 / len(like)) ** 0.5


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
def test_the_probe_of_example_i_depends_on_the_key_and_i_alone(distribution):
    key, like = jax.random.key(2), jnp.zeros((8, 3, 2))
    together = draw_probes(key, like, distribution=distribution)
    parts = [
        draw_probes(example_keys(key, 2, start), like[start : start + 2], distribution=distribution)
        for start in range(0, 8, 2)
    ]
    np.testing.assert_array_equal(together, jnp.concatenate(parts))
    assert len(np.unique(together.reshape(8, -1), axis=0)) > 1


def test_the_field_is_traced_once_however_many_dimensions():
    for dimension in (2, 50):
        calls = []
        divergence(lambda x, calls=calls: calls.append(None) or jnp.sin(x), jnp.ones((2, dimension)))
        assert len(calls) == 1


def test_divergences_have_gradients(float64):
    x, weights = draws(4, 3), draws(3, 3, seed=5)

    def total(weights, estimate):
        field = lambda x: jnp.tanh(x @ weights)  # noqa: E731
        found = hutchinson_divergence(field, x, draws(4, 3, seed=6)) if estimate else divergence(field, x)
        return jnp.sum(found[1])

    for estimate in (False, True):
        gradient = jax.grad(total)(weights, estimate)
        step = 1e-5 * draws(3, 3, seed=7)
        difference = total(weights + step, estimate) - total(weights - step, estimate)
        np.testing.assert_allclose(2 * jnp.sum(gradient * step), difference, rtol=1e-6)


def test_what_cannot_be_meant_raises():
    x = jnp.ones((4, 3))
    with pytest.raises(ValueError, match=r"shape \(4, 2\) for x of shape \(4, 3\)"):
        divergence(lambda x: x[:, :2], x)
    with pytest.raises(ValueError, match=r"shape \(4, 2\) for x of shape \(4, 3\)"):
        hutchinson_divergence(lambda x: x[:, :2], x, x)
    with pytest.raises(ValueError, match="'uniform'; expected one of rademacher, gaussian"):
        draw_probes(jax.random.key(0), x, distribution="uniform")
