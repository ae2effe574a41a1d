"""Distances along directions: exact for scaled and shifted sets, closed for Gaussians, a bound, parity."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from genjax.metrics.sliced import draw_directions, projected_wasserstein, sliced_wasserstein
from genjax.transport import wasserstein

POINTS = np.load(Path(__file__).parents[1] / "reference" / "point_set_metrics.npz")


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def test_a_scaled_and_shifted_set_has_a_closed_form(float64):
    """To c x + m along w: (c - 1)^2 var(w.x) + (w.m)^2 about the mean of x; over an orthonormal frame, traces over D."""
    x, shift = draw(200, 3), jnp.asarray([[1.0, 0.0, -2.0]])
    x = x - x.mean(axis=0, keepdims=True)
    frame = jnp.asarray(np.linalg.qr(draw(3, 3, seed=1))[0])
    order = np.random.default_rng(2).permutation(200)
    found = sliced_wasserstein(x, (2.5 * x + shift)[order], frame)
    expected = (1.5**2 * jnp.sum(x**2) / 200 + jnp.sum(shift**2)) / 3
    assert found**2 == pytest.approx(float(expected), rel=1e-12)
    along = projected_wasserstein(x, (x + shift)[order], frame, power=1)
    np.testing.assert_allclose(along, jnp.abs(frame @ shift[0]), rtol=1e-12)


def test_between_gaussians_along_each_direction():
    """|w.m|^2 + (sqrt(w.A w) - sqrt(w.B w))^2."""
    a, b = np.array([[2.0, 0.5], [0.5, 1.0]]), np.array([[0.3, 0.0], [0.0, 3.0]])
    mean, num = np.array([[0.5, -1.0]]), 20_000
    x = draw(num, 2) @ np.linalg.cholesky(a).T
    y = mean + draw(num, 2, seed=1) @ np.linalg.cholesky(b).T
    directions = draw_directions(jax.random.key(0), 64, 2)
    deviations = [np.sqrt(np.einsum("ki,ij,kj->k", directions, c, directions)) for c in (a, b)]
    expected = (directions @ mean[0]) ** 2 + (deviations[0] - deviations[1]) ** 2
    found = projected_wasserstein(x, y, directions, power=2)
    np.testing.assert_allclose(found**2, expected, atol=0.1)
    assert sliced_wasserstein(x, y, directions) == pytest.approx(np.sqrt(expected.mean()), rel=0.02)


@pytest.mark.parametrize("power", [1, 2, 3.5])
def test_on_a_line_it_is_the_exact_distance(power, float64):
    x, y = draw(50, 1), 2 + draw(50, 1, seed=1) ** 3
    expected = wasserstein(x, y, power=power)
    assert projected_wasserstein(x, y, jnp.ones((1, 1)), power=power)[0] == pytest.approx(expected, rel=1e-12)
    assert sliced_wasserstein(x, y, -jnp.ones((1, 1)), power=power) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("num", "num_other"), [(12, 7), (7, 12), (5, 1), (6, 12)])
def test_sets_of_two_sizes(num, num_other, float64):
    x, y = draw(num, 3), 0.5 + draw(num_other, 3, seed=1)
    directions = jnp.eye(3)
    expected = [wasserstein_distance(x[:, i], y[:, i]) for i in range(3)]
    np.testing.assert_allclose(projected_wasserstein(x, y, directions), expected, rtol=1e-12)
    repeated = jnp.repeat(x, num_other, axis=0), jnp.repeat(y, num, axis=0)
    expected = sliced_wasserstein(*repeated, directions)
    assert sliced_wasserstein(x, y, directions) == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("power", [1, 2])
def test_it_bounds_the_distance_itself_from_below_and_is_zero_between_equal_sets(power, float64):
    x, y = draw(100, 3), 1 + draw(100, 3, seed=1) * jnp.asarray([[1.0, 2.0, 0.1]])
    directions = draw_directions(jax.random.key(0), 200, 3)
    found = sliced_wasserstein(x, y, directions, power=power)
    assert 0.2 < found < wasserstein(x, y, power=power)
    assert jnp.all(projected_wasserstein(x, y, directions, power=power) < wasserstein(x, y, power=power))
    assert sliced_wasserstein(x, x[::-1], directions, power=power) == 0


def test_drawn_directions_are_uniform_on_the_sphere_and_do_not_depend_on_their_number():
    directions = draw_directions(jax.random.key(3), 4000, 3)
    np.testing.assert_allclose(jnp.linalg.norm(directions, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(directions.mean(axis=0), 0, atol=4 / np.sqrt(3 * 4000))
    np.testing.assert_allclose(directions.T @ directions / 4000, np.eye(3) / 3, atol=4 * 0.3 / np.sqrt(4000))
    # along an axis: uniform between -1 and 1 in three dimensions (Archimedes)
    quantiles = np.sort(directions[:, 0])
    np.testing.assert_allclose(quantiles, np.linspace(-1, 1, 4000), atol=0.06)
    np.testing.assert_allclose(draw_directions(jax.random.key(3), 10, 3), directions[:10], rtol=1e-5)


@pytest.mark.parametrize(("precision", "tolerance"), [("float64", 1e-9), ("float32", 1e-5)])
def test_parity(precision, tolerance):
    with jax.enable_x64(precision == "float64"):
        x, y, directions = (jnp.asarray(values) for values in (POINTS["x"], POINTS["y"], POINTS["projections"].T))
        np.testing.assert_allclose(sliced_wasserstein(x, y, directions), POINTS["sliced_w2"], rtol=0, atol=tolerance)
        found = projected_wasserstein(x, y, directions)
        np.testing.assert_allclose(found, POINTS["projected_w1"], rtol=0, atol=tolerance)


def test_what_does_not_fit_is_refused():
    x = jnp.zeros((4, 2))
    with pytest.raises(ValueError, match="expected"):
        sliced_wasserstein(x, jnp.zeros((4, 3)), jnp.eye(2))
    with pytest.raises(ValueError, match="must be"):
        sliced_wasserstein(x, x, jnp.eye(3))
    with pytest.raises(ValueError, match="power"):
        projected_wasserstein(x, x, jnp.eye(2), power=0.5)
