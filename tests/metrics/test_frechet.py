"""The Frechet distance: closed forms, invariances, agreement with optimal transport, parity."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.metrics.frechet import frechet_distance
from genjax.transport import wasserstein

FEATURES = np.load(Path(__file__).parents[1] / "reference" / "feature_metrics.npz")


def exact_moments(mean, covariance, num=400, seed=0):
    """Points whose sample mean and covariance are exactly these."""
    z = np.random.default_rng(seed).standard_normal((num, len(mean)))
    z = (z - z.mean(axis=0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(z, rowvar=False))).T
    return jnp.asarray(mean + z @ np.linalg.cholesky(covariance).T)


def test_commuting_covariances_have_a_closed_form(float64):
    """|m - m'|^2 + sum (s - s')^2 for diagonal ones; also for both turned by one rotation."""
    s, s_reference = np.array([1.0, 2.0, 0.5]), np.array([0.3, 2.0, 1.5])
    rotation, _ = np.linalg.qr(np.random.default_rng(3).standard_normal((3, 3)))
    mean = np.array([1.0, 0.0, -2.0])
    for turn in (np.eye(3), rotation):
        samples = exact_moments(mean, turn @ np.diag(s**2) @ turn.T)
        reference = exact_moments(0 * mean, turn @ np.diag(s_reference**2) @ turn.T, seed=1)
        expected = mean @ mean + ((s - s_reference) ** 2).sum()
        np.testing.assert_allclose(frechet_distance(samples, reference), expected, rtol=1e-9)


def test_a_linear_map_that_is_a_gradient_costs_what_it_moves(float64):
    """x to A x with A symmetric and positive is optimal: the distance is E |A x - x|^2, whatever commutes."""
    a = np.array([[2.0, 0.5], [0.5, 1.0]])
    x = exact_moments(np.zeros(2), np.array([[1.0, -0.4], [-0.4, 0.7]]))
    cost = np.trace((a - np.eye(2)) @ np.cov(x, rowvar=False) @ (a - np.eye(2)).T)
    np.testing.assert_allclose(frechet_distance(x, x @ a.T), cost, rtol=1e-9)
    np.testing.assert_allclose(frechet_distance(x @ a.T, x), cost, rtol=1e-9)


def test_it_bounds_the_distance_of_any_two_samples_from_below():
    """Gelbrich: of all pairs of laws with these moments Gaussians are nearest."""
    x, y = (np.asarray(jax.random.normal(jax.random.key(i), (500, 2))) for i in range(2))
    y = np.sign(y) * y**2
    biased = 500 / 499  # the moments of the bound are those of the samples themselves
    assert frechet_distance(x, y) <= biased * wasserstein(x, y) ** 2
    assert float(frechet_distance(x, x)) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("shapes", [((4, 2), (4, 3)), ((4,), (4,)), ((1, 2), (4, 2))])
def test_other_shapes_are_refused(shapes):
    with pytest.raises(ValueError, match="expected"):
        frechet_distance(*(jnp.zeros(shape) for shape in shapes))


@pytest.mark.parametrize(("precision", "tolerance"), [("float64", 1e-8), ("float32", 1e-4)])
def test_parity(precision, tolerance):
    with jax.enable_x64(precision == "float64"):
        found = frechet_distance(jnp.asarray(FEATURES["fake"]), jnp.asarray(FEATURES["real"]))
        np.testing.assert_allclose(found, FEATURES["frechet_distance"], rtol=tolerance)


def test_parity_of_singular_covariances(float64):
    found = frechet_distance(jnp.asarray(FEATURES["fake"][:12]), jnp.asarray(FEATURES["real"][:12]))
    np.testing.assert_allclose(found, FEATURES["frechet_distance_first12"], atol=1e-8)
