"""Maximum mean discrepancies: closed forms, what makes an estimate unbiased, parity."""

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from genjax.metrics.kernel import (
    draw_subsets,
    gaussian_kernel,
    kernel_inception_distance,
    kernel_inception_distance_of_subsets,
    mmd_squared,
    polynomial_kernel,
)

REFERENCE = Path(__file__).parents[1] / "reference"
POINTS, FEATURES = (np.load(REFERENCE / f"{name}.npz") for name in ("point_set_metrics", "feature_metrics"))


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def between_gaussians(mean, variances, width, dimension=1):
    """MMD^2 of N(0, variances[0] I) and N(mean, variances[1] I), `mean` on each axis, for the Gaussian kernel."""

    def expected(offset, variance):
        total = width**2 + variance
        return ((width**2 / total) ** 0.5 * np.exp(-(offset**2) / (2 * total))) ** dimension

    a, b = variances
    return expected(0, 2 * a) + expected(0, 2 * b) - 2 * expected(mean, a + b)


@pytest.mark.parametrize("width", [0.3, 1.0, 4.0])
def test_between_gaussians_the_discrepancy_has_a_closed_form(width, float64):
    quantiles = norm.ppf((np.arange(2000) + 0.5) / 2000)[:, None]
    x, y = jnp.asarray(quantiles), jnp.asarray(0.8 + 1.5 * quantiles)
    found = mmd_squared(x, y, kernel=gaussian_kernel(width), unbiased=False)
    assert found == pytest.approx(between_gaussians(0.8, (1.0, 2.25), width), rel=2e-3)


def test_the_unbiased_estimate_of_few_points_has_the_exact_mean_and_the_biased_one_has_not(float64):
    x, y = draw(400, 20, 3), 0.5 + 1.2 * draw(400, 15, 3, seed=1)
    exact = between_gaussians(0.5, (1.0, 1.44), 1.5, dimension=3)

    def means(unbiased):
        one = lambda sets: mmd_squared(*sets, kernel=gaussian_kernel(1.5), unbiased=unbiased)  # noqa: E731
        values = np.asarray(jax.jit(lambda sets: jax.lax.map(one, sets, batch_size=100))((x, y)))
        return values.mean(), values.std() / np.sqrt(400)

    mean, error = means(True)
    assert abs(mean - exact) < 4 * error
    mean, error = means(False)
    assert mean - exact > 10 * error


@pytest.mark.parametrize("kernel", [gaussian_kernel(0.7), polynomial_kernel(3), polynomial_kernel(1)])
@pytest.mark.parametrize("num", [2, 3])
def test_over_all_ways_to_deal_six_points_into_two_sets_the_unbiased_mean_is_zero(kernel, num, float64):
    """Two sets of one law: every pair of points is as often within a set as across. So KID of equal laws has mean 0."""
    points, everything = draw(6, 4), set(range(6))
    own = list(itertools.combinations(range(6), num))
    others = [sorted(everything - set(one)) for one in own]
    over_all = jax.jit(jax.vmap(lambda x, y: mmd_squared(x, y, kernel=kernel)))
    values = over_all(points[np.array(own)], points[np.array(others)])
    assert np.mean(values) == pytest.approx(0, abs=1e-14)
    assert np.std(values) > 1e-2


def test_the_cubic_kernel_compares_the_first_three_moments(float64):
    """(x.y / D + 1)^3 = sum_l binomial(3, l) <x^l, y^l> / D^l, so MMD^2 is that sum of |E x^l - E y^l|^2 of tensors."""
    x, y = draw(40, 3), 0.3 + draw(30, 3, seed=1) ** 2

    def moments(z):
        return [z.mean(axis=0), jnp.einsum("ni,nj->ij", z, z) / len(z), jnp.einsum("ni,nj,nk->ijk", z, z, z) / len(z)]

    differences = [float(jnp.sum((a - b) ** 2)) for a, b in zip(moments(x), moments(y), strict=True)]
    expected = 3 * differences[0] / 3 + 3 * differences[1] / 3**2 + differences[2] / 3**3
    assert mmd_squared(x, y, kernel=polynomial_kernel(3), unbiased=False) == pytest.approx(expected, rel=1e-12)


def test_the_biased_estimate_is_never_negative_and_zero_between_equal_sets(float64):
    x, y = draw(50, 2), draw(50, 2, seed=1)
    kernel = gaussian_kernel(1.0)
    assert mmd_squared(x, y, kernel=kernel, unbiased=False) > 0
    assert mmd_squared(x, x[::-1], kernel=kernel, unbiased=False) == pytest.approx(0, abs=1e-14)
    assert mmd_squared(x, x, kernel=kernel) < 0
    one, other = jnp.zeros((1, 2)), jnp.ones((1, 2))
    assert mmd_squared(one, other, kernel=kernel, unbiased=False) == pytest.approx(2 - 2 * np.exp(-1), rel=1e-12)


@pytest.mark.parametrize("unbiased", [True, False])
def test_rows_that_are_taken_in_turns_are_all_counted_once(unbiased, float64):
    """More pairs than are held at once, and a number of rows that does not divide evenly."""
    x, y = draw(1003, 2), draw(1100, 2, seed=1) + 0.2
    kernel = gaussian_kernel(0.5)
    own, cross = [np.asarray(kernel(z, z)) for z in (x, y)], np.asarray(kernel(x, y))
    without_diagonal = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in own]
    within = sum(without_diagonal if unbiased else [k.mean() for k in own])
    expected = within - 2 * cross.mean()
    assert mmd_squared(x, y, kernel=kernel, unbiased=unbiased) == pytest.approx(expected, abs=1e-14)


def test_any_function_is_a_kernel_and_the_discrepancy_is_a_loss(float64):
    """With `k = -|x - y|`, which makes it the energy distance, its gradient is that of finite differences."""

    def energy(x, y):
        return -jnp.sqrt(jnp.sum((x[:, None] - y[None]) ** 2, axis=-1) + 1e-12)

    x, y, way = draw(8, 2), draw(9, 2, seed=1), draw(8, 2, seed=2)
    gradient = jax.jit(jax.grad(lambda x: mmd_squared(x, y, kernel=energy)))(x)
    ahead, behind = (mmd_squared(x + s * 1e-5 * way, y, kernel=energy) for s in (1, -1))
    assert jnp.sum(gradient * way) == pytest.approx(float(ahead - behind) / 2e-5, rel=1e-6)


def test_no_matrix_of_all_pairs_is_held():
    shape = jax.ShapeDtypeStruct((10_000, 64), jnp.float32)
    compiled = jax.jit(kernel_inception_distance).lower(shape, shape).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 50e6  # of the matrix: 400e6


def test_subsets_are_drawn_without_replacement():
    rows = draw_subsets(jax.random.key(0), 30, subsets=200, size=10)
    assert rows.shape == (200, 10)
    assert all(len(set(one)) == 10 for one in rows.tolist())
    counts = np.bincount(np.asarray(rows).ravel(), minlength=30)
    assert counts.sum() == 2000
    assert np.abs(counts - 2000 / 30).max() < 5 * np.sqrt(200 / 3 * 2 / 3)
    assert not np.array_equal(rows, draw_subsets(jax.random.key(1), 30, subsets=200, size=10))
    assert len({tuple(one) for one in rows.tolist()}) == 200


def test_over_subsets_mean_and_deviation_are_those_of_each_alone(float64):
    samples, reference = draw(60, 4), draw(50, 4, seed=1)
    rows = draw_subsets(jax.random.key(0), 60, subsets=7, size=20)
    reference_rows = draw_subsets(jax.random.key(1), 50, subsets=7, size=15)
    mean, deviation = kernel_inception_distance_of_subsets(samples, reference, rows, reference_rows)
    pairs = zip(rows, reference_rows, strict=True)
    distance = jax.jit(kernel_inception_distance)
    alone = [float(distance(samples[a], reference[b])) for a, b in pairs]
    assert mean == pytest.approx(np.mean(alone), abs=1e-14)
    assert deviation == pytest.approx(np.std(alone), rel=1e-12)


@pytest.mark.parametrize(("precision", "tolerance"), [("float64", 1e-10), ("float32", 1e-5)])
def test_parity(precision, tolerance):
    with jax.enable_x64(precision == "float64"):
        x, y, real, fake = (
            jnp.asarray(values) for values in (POINTS["x"], POINTS["y"], FEATURES["real"], FEATURES["fake"])
        )
        for name, width in (("0p2", 0.2), ("1", 1.0), ("3", 3.0)):
            for kind in ("unbiased", "biased"):
                found = mmd_squared(x, y, kernel=gaussian_kernel(width), unbiased=kind == "unbiased")
                expected = POINTS[f"mmd2_rbf_{kind}_sigma{name}"]
                np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance, err_msg=f"{kind} {name}")
        rows = jnp.asarray(FEATURES["kid_subset_rows"])
        found = {
            "kid_full": kernel_inception_distance(fake, real),
            "kid_full_biased": mmd_squared(fake, real, kernel=polynomial_kernel(3), unbiased=False),
        }
        found["kid_subsets_mean"], found["kid_subsets_std"] = kernel_inception_distance_of_subsets(
            fake, real, rows[:, 1], rows[:, 0]
        )
        for name, value in found.items():
            np.testing.assert_allclose(value, FEATURES[name], rtol=0, atol=tolerance, err_msg=name)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="at least 2"):
        mmd_squared(jnp.zeros((1, 2)), jnp.zeros((3, 2)), kernel=gaussian_kernel(1.0))
    with pytest.raises(ValueError, match="expected"):
        kernel_inception_distance(jnp.zeros((3, 2)), jnp.zeros((3, 4)))
    for shapes in (((2, 2), (1, 2)), ((2,), (2, 2)), ((2, 2), (2,))):
        rows = [jnp.zeros(shape, int) for shape in shapes]
        with pytest.raises(ValueError, match="must be"):
            kernel_inception_distance_of_subsets(jnp.zeros((3, 2)), jnp.zeros((3, 2)), *rows)
    with pytest.raises(ValueError, match="does not fit"):
        draw_subsets(jax.random.key(0), 5, size=6)
