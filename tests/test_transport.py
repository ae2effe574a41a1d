"""Exact transport: parity, brute force over permutations, the auction's prices, one dimension, laws of a metric."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from genjax import transport

REFERENCE = np.load(Path(__file__).parent / "reference" / "point_set_metrics.npz")


def points(num, dimension, seed=0):
    return np.random.default_rng(seed).normal(size=(num, dimension))


def test_parity_with_other_implementations():
    x, y = REFERENCE["x"], REFERENCE["y"]
    np.testing.assert_array_equal(transport.assignment(x, y), REFERENCE["assignment"])
    assert transport.wasserstein(x, y) == pytest.approx(float(REFERENCE["w2"]), abs=1e-9)
    assert transport.wasserstein(x, y, power=1) == pytest.approx(float(REFERENCE["w1"]), abs=1e-9)


@pytest.mark.parametrize("power", [1, 1.5, 2, 3])
@pytest.mark.parametrize("dimension", [1, 2, 5])
def test_no_permutation_is_cheaper(power, dimension):
    x, y = points(6, dimension), points(6, dimension, 1)
    costs = [np.mean(np.linalg.norm(x - y[list(s)], axis=1) ** power) for s in itertools.permutations(range(6))]
    assert transport.wasserstein(x, y, power=power) == pytest.approx(min(costs) ** (1 / power), rel=1e-12)


def shifted(num):
    """Sets far apart, whose optimal permutation the nearest points do not tell."""
    return points(num, 2) * [3, 0.2], points(num, 2, 1) * [0.2, 3] + 5


def clustered(num):
    """Clusters of unequal counts in the two sets, so that some points travel far."""
    centres = 10 * points(5, 2, 7)
    generator = np.random.default_rng(2)
    return tuple(centres[generator.integers(0, 5, num)] + 0.1 * generator.normal(size=(num, 2)) for _ in range(2))


def repeated(num):
    """Every point many times: full of ties."""
    generator = np.random.default_rng(3)
    return tuple(generator.integers(0, 4, (num, 2)).astype(float) for _ in range(2))


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("sets", [shifted, clustered, repeated])
def test_prices_leave_the_optimum_alone(sets, power):
    x, y = sets(700)
    assert len(x) >= transport._AUCTION_FROM
    costs = cdist(x, y) ** power
    expected = costs[linear_sum_assignment(costs)].sum()
    permutation = transport.assignment(x, y, power=power)
    assert sorted(permutation) == list(range(700))
    assert costs[np.arange(700), permutation].sum() == pytest.approx(expected, rel=1e-12)


def test_prices_are_near_the_dual_optimum():
    costs = cdist(*clustered(600), "sqeuclidean")
    optimum = costs[linear_sum_assignment(costs)].sum()
    prices = transport._auction_prices(costs.astype(np.float32)).astype(np.float64)
    dual = prices.sum() + (costs - prices).min(axis=1).sum()
    assert optimum - transport._LAST_EPS * transport._EPS_FACTOR * costs.max() < dual <= optimum + 1e-9


def test_one_dimension_sorts():
    x, y = points(2000, 1), points(2000, 1, 1)
    expected = np.mean((np.sort(x[:, 0]) - np.sort(y[:, 0])) ** 2) ** 0.5
    assert transport.wasserstein(x, y) == pytest.approx(expected, rel=1e-12)


def test_a_known_distance_between_translates():
    x = points(600, 3)
    move = np.array([3.0, 4.0, 12.0])
    permuted = (x + move)[np.random.default_rng(1).permutation(600)]
    for power in (1, 2):
        assert transport.wasserstein(x, permuted, power=power) == pytest.approx(13.0, rel=1e-12)


def test_it_is_a_metric():
    x, y, z = (points(40, 2, seed) * [1, 2] for seed in range(3))
    assert transport.wasserstein(x, x[::-1]) == 0.0
    assert transport.wasserstein(x, y) == pytest.approx(transport.wasserstein(y, x), rel=1e-12)
    assert transport.wasserstein(x, z) <= transport.wasserstein(x, y) + transport.wasserstein(y, z)
    assert transport.wasserstein(x, y, power=1) <= transport.wasserstein(x, y, power=2)


def test_a_single_point():
    assert transport.wasserstein([[1.0, 2.0]], [[4.0, 6.0]]) == 5.0


@pytest.mark.parametrize(
    ("x", "y", "power", "message"),
    [
        (np.zeros((3, 2)), np.zeros((4, 2)), 2, "must both be"),
        (np.zeros(3), np.zeros(3), 2, "must both be"),
        (np.zeros((0, 2)), np.zeros((0, 2)), 2, "must both be"),
        (np.full((3, 2), np.nan), np.zeros((3, 2)), 2, "finite"),
        (np.zeros((3, 2)), np.full((3, 2), np.inf), 2, "finite"),
        (np.zeros((3, 2)), np.zeros((3, 2)), 0.5, "at least 1"),
    ],
)
def test_bad_input_is_refused(x, y, power, message):
    with pytest.raises(ValueError, match=message):
        transport.assignment(x, y, power=power)
