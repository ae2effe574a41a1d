"""Transport: parity, brute force over permutations, the auction's prices, laws of a metric; entropic plans and their laws."""

import functools
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from scipy.stats import norm

from genjax import transport

REFERENCE = np.load(Path(__file__).parent / "reference" / "point_set_metrics.npz")


def points(num, dimension, seed=0):
    return np.random.default_rng(seed).normal(size=(num, dimension))


def test_parity_with_other_implementations():
    x, y = REFERENCE["x"], REFERENCE["y"]
    np.testing.assert_array_equal(transport.assignment(x, y), REFERENCE["assignment"])
    assert transport.wasserstein(x, y) == pytest.approx(float(REFERENCE["w2"]), abs=1e-9)
    assert transport.wasserstein(x, y, power=1) == pytest.approx(float(REFERENCE["w1"]), abs=1e-9)
    weighted = transport.wasserstein(x[:64], y[:48], weights=(REFERENCE["weights_x"], REFERENCE["weights_y"]))
    assert weighted**2 == pytest.approx(float(REFERENCE["w2_squared_weighted"]), abs=1e-9)


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


@pytest.mark.parametrize("auction_from", [700, 701])
@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("sets", [shifted, clustered, repeated])
def test_prices_leave_the_optimum_alone(monkeypatch, sets, power, auction_from):
    monkeypatch.setattr(transport, "_AUCTION_FROM", auction_from)
    x, y = sets(700)
    costs = cdist(x, y) ** power
    expected = costs[linear_sum_assignment(costs)].sum()
    permutation = transport.assignment(x, y, power=power)
    assert sorted(permutation) == list(range(700))
    assert costs[np.arange(700), permutation].sum() == pytest.approx(expected, rel=1e-12)


def dual_gap(costs, prices):
    prices = prices.astype(np.float64)
    optimum = costs[linear_sum_assignment(costs)].sum()
    return optimum - (prices.sum() + (costs - prices).min(axis=1).sum())


def test_prices_of_the_auction_are_near_the_dual_optimum():
    costs = cdist(*clustered(600), "sqeuclidean")
    gap = dual_gap(costs, transport._auction_prices(costs.astype(np.float32)))
    assert -1e-9 < gap < transport._LAST_EPS * transport._EPS_FACTOR * costs.max()


def test_prices_of_the_entropic_plan_are_as_near_the_dual_optimum_as_its_temperature():
    x, y = points(600, 2), points(600, 2, 1)
    costs = cdist(x, y, "sqeuclidean")
    temperature = transport._TEMPERATURES[-1] * (costs - costs.min(axis=1, keepdims=True)).mean()
    gap = dual_gap(costs, transport._sinkhorn_prices(costs.astype(np.float32)))
    assert -1e-4 < gap < 600 * temperature * np.log(600)
    assert gap < dual_gap(costs, np.zeros(600)) / 2


def test_costs_that_are_all_the_same_have_no_prices():
    assert not transport._sinkhorn_prices(np.ones((80, 80), np.float32)).any()
    assert sorted(transport.cheapest_permutation(np.ones((80, 80)))) == list(range(80))


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


def test_infinite_costs_forbid_pairs():
    """Two classes that may not mix, in more rows than the auction wants: each class is solved by itself."""
    costs, classes = cdist(points(600, 2), points(600, 2, 1)), np.arange(600) % 2
    permutation = transport.cheapest_permutation(np.where(classes[:, None] == classes[None], costs, np.inf))
    assert sorted(permutation) == list(range(600))
    np.testing.assert_array_equal(classes[permutation], classes)
    for one in (classes == 0, classes == 1):
        block = costs[np.ix_(one, one)]
        expected = block[linear_sum_assignment(block)].sum()
        assert costs[one, permutation[one]].sum() == pytest.approx(expected, rel=1e-12)


def test_costs_are_left_as_they_were():
    costs = cdist(points(600, 2), points(600, 2, 1))
    before = costs.copy()
    transport.cheapest_permutation(costs)
    np.testing.assert_array_equal(costs, before)


@pytest.mark.parametrize(
    ("costs", "message"),
    [(np.zeros((3, 2)), "must be"), (np.zeros(3), "must be"), ([[np.nan]], "invalid"), ([[np.inf]], "infeasible")],
)
def test_bad_costs_are_refused(costs, message):
    with pytest.raises(ValueError, match=message):
        transport.cheapest_permutation(costs)


# Weights


@pytest.mark.parametrize("power", [1, 2])
def test_equal_weights_find_the_permutation(power):
    x, y = points(40, 3), points(40, 3, 1)
    found = transport.wasserstein(x, y, power=power, weights=(np.ones(40), np.full(40, 0.3)))
    assert found == pytest.approx(transport.wasserstein(x, y, power=power), rel=1e-9)


def test_a_weight_is_a_point_that_is_repeated():
    x, y, counts = points(5, 2), points(12, 2, 1), np.array([4, 0, 3, 4, 1])
    found = transport.wasserstein(x, y, weights=(counts, np.ones(12)))
    assert found == pytest.approx(transport.wasserstein(np.repeat(x, counts, axis=0), y), rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_a_cheapest_plan_has_its_sums_and_prices_that_prove_it(seed):
    """Complementary slackness: with the best prices of the rows, those of the columns give the same value."""
    generator = np.random.default_rng(seed)
    rows, columns, costs = generator.random(7), generator.random(9), generator.random((7, 9))
    plan = transport.cheapest_plan(costs, rows, columns)
    np.testing.assert_allclose(plan.sum(axis=1), rows / rows.sum(), rtol=1e-9)
    np.testing.assert_allclose(plan.sum(axis=0), columns / columns.sum(), rtol=1e-9)
    assert plan.min() >= 0
    assert np.count_nonzero(plan) <= 7 + 9 - 1
    # The support is a spanning tree of rows and columns: it fixes the prices, and no pair may be cheaper than theirs.
    where = np.argwhere(plan > 0)
    system = np.zeros((len(where), 16))
    system[np.arange(len(where)), where[:, 0]] = system[np.arange(len(where)), 7 + where[:, 1]] = 1
    prices = np.linalg.lstsq(system, costs[plan > 0])[0]
    assert len(where) == 15
    assert np.all(prices[:7, None] + prices[None, 7:] <= costs + 1e-12)


@pytest.mark.parametrize(
    ("costs", "rows", "columns", "message"),
    [
        (np.zeros((2, 3)), np.ones(3), np.ones(3), "one weight a row"),
        (np.full((2, 2), np.inf), np.ones(2), np.ones(2), "finite"),
        (np.zeros((2, 2)), np.ones(2), np.array([-1.0, 2.0]), "at least 0"),
        (np.zeros((2, 2)), np.zeros(2), np.ones(2), "not all 0"),
    ],
)
def test_weights_and_costs_that_do_not_fit_are_refused(costs, rows, columns, message):
    with pytest.raises(ValueError, match=message):
        transport.cheapest_plan(costs, rows, columns)


def test_weighted_sets_of_two_dimensions_are_refused():
    with pytest.raises(ValueError, match="must be"):
        transport.wasserstein(points(4, 2), points(5, 3), weights=(np.ones(4), np.ones(5)))


# Entropic plans


@functools.partial(jax.jit, static_argnames=("tolerance", "max_iterations"))
def solve(costs, regularisation, tolerance=1e-3, max_iterations=1000):
    return transport.sinkhorn(costs, regularisation=regularisation, tolerance=tolerance, max_iterations=max_iterations)


def squared(x, y):
    return jnp.asarray(cdist(x, y, "sqeuclidean"))


def rows_error(log_plan):
    return np.abs(np.exp(log_plan).sum(axis=1) - 1 / len(log_plan)).sum()


@pytest.mark.parametrize("regularisation", [0.05, 0.5, 5.0])
@pytest.mark.parametrize("tolerance", [1e-2, 1e-5])
def test_the_plan_has_its_marginals(regularisation, tolerance, float64):
    costs = squared(points(40, 2), points(60, 2, 1))
    plan = solve(costs, regularisation, tolerance=tolerance, max_iterations=4000)
    np.testing.assert_allclose(np.exp(plan.log_plan).sum(axis=0), 1 / 60, rtol=1e-12)
    assert rows_error(plan.log_plan) <= plan.error <= tolerance
    assert 0 < plan.iterations < 4000


def test_single_precision_reaches_the_default_tolerance():
    costs = jnp.asarray(squared(points(100, 2), points(100, 2, 1)), jnp.float32)
    plan = solve(costs, 0.01 * costs.mean())
    assert plan.log_plan.dtype == jnp.float32
    assert rows_error(plan.log_plan) <= 1.1e-3


def test_the_plan_is_that_of_the_scaling_iteration(float64):
    """Cuturi's `diag(u) exp(-C / r) diag(v)`, at a regularisation at which it does not underflow."""
    costs = np.asarray(squared(points(30, 2), points(20, 2, 1)))
    kernel, v = np.exp(-costs / 0.3), np.ones(20)
    for _ in range(3000):
        u = 1 / 30 / (kernel @ v)
        v = 1 / 20 / (kernel.T @ u)
    plan = solve(jnp.asarray(costs), 0.3, tolerance=1e-12, max_iterations=3000)
    np.testing.assert_allclose(np.exp(plan.log_plan), u[:, None] * kernel * v[None], rtol=1e-9, atol=1e-15)


def test_the_potentials_value_is_the_entropic_cost(float64):
    """Strong duality: <P, C> + r KL(P | 1/nm) = mean f + mean g."""
    costs = squared(points(30, 2), points(20, 2, 1))
    plan = solve(costs, 0.2, tolerance=1e-12, max_iterations=3000)
    mass = np.exp(plan.log_plan)
    primal = np.sum(mass * costs) + 0.2 * np.sum(mass * (plan.log_plan + np.log(600)))
    assert primal == pytest.approx(float(plan.first.mean() + plan.second.mean()), rel=1e-10)


def test_the_cost_falls_to_that_of_the_exact_assignment(float64):
    """<P, C> falls with r, and is between the optimum and `r log n` above it."""
    x, y = REFERENCE["x"], REFERENCE["y"]
    costs, optimum, before = squared(x, y), float(REFERENCE["w2_squared"]), np.inf
    for regularisation in (1.0, 0.3, 0.1, 0.03, 0.01):
        plan = solve(costs, regularisation, tolerance=1e-6, max_iterations=5000)
        cost = float(np.sum(np.exp(plan.log_plan) * costs))
        assert optimum - 1e-5 <= cost <= optimum + regularisation * np.log(len(x)) + 1e-5
        assert cost < before
        before = cost
    assert cost < 1.01 * optimum


def test_much_regularisation_makes_pairs_independent(float64):
    plan = solve(squared(points(10, 2), points(20, 2, 1)), 1e5)
    np.testing.assert_allclose(np.exp(plan.log_plan), 1 / 200, rtol=1e-3)


@pytest.mark.parametrize("regularisation", [0.2, 1.0, 4.0])
def test_between_gaussians_the_plan_is_gaussian(regularisation, float64):
    """On the line its covariance c solves `c^2 + r c / 2 = a b`, a and b the variances (Janati et al. 2020, 2006.02572)."""
    quantiles = norm.ppf((np.arange(400) + 0.5) / 400)[:, None]
    x, y = 0.7 * quantiles, 3.0 + 1.5 * quantiles
    mass = np.exp(solve(squared(x, y), regularisation, tolerance=1e-8).log_plan)
    covariance = np.sum(mass * x * (y - 3.0).T)
    expected = np.sqrt(x.var() * y.var() + regularisation**2 / 16) - regularisation / 4
    assert covariance == pytest.approx(expected, rel=0.01)


def test_forbidden_pairs_have_no_mass(float64):
    costs, classes = squared(points(30, 2), points(30, 2, 1)), np.arange(30) % 3
    allowed = classes[:, None] == classes[None]
    plan = solve(jnp.where(allowed, costs, jnp.inf), 1.0, tolerance=1e-8)
    mass = np.exp(plan.log_plan)
    assert np.all(mass[~allowed] == 0)
    np.testing.assert_allclose(mass.sum(axis=1), 1 / 30, rtol=1e-6)
    alone = solve(costs[::3, ::3], 1.0, tolerance=1e-8)
    np.testing.assert_allclose(mass[::3, ::3], np.exp(alone.log_plan) / 3, rtol=1e-5, atol=1e-12)


def test_a_loose_tolerance_does_not_stop_it_before_the_regularisation_asked_for(float64):
    costs = squared(points(50, 2), points(50, 2, 1))
    plan = solve(costs, 0.05, tolerance=1.0)
    expected = (plan.first[:, None] + plan.second[None, :] - costs) / 0.05 - np.log(2500)
    np.testing.assert_allclose(plan.log_plan, expected, rtol=1e-10)


def test_iterations_are_bounded_and_the_error_tells():
    plan = solve(jnp.asarray(squared(points(50, 2), points(50, 2, 1)), jnp.float32), 0.003, max_iterations=20)
    assert plan.iterations == 20
    assert plan.error > 1e-3


def test_another_regularisation_does_not_recompile():
    traces = []

    @jax.jit
    def run(costs, regularisation):
        traces.append(1)
        return transport.sinkhorn(costs, regularisation=regularisation).log_plan

    for regularisation in (0.1, 0.2, 3.0):
        run(jnp.ones((3, 4)), regularisation)
    assert len(traces) == 1


def test_costs_that_are_no_matrix_are_refused():
    with pytest.raises(ValueError, match="must be"):
        transport.sinkhorn(jnp.zeros(3), regularisation=1.0)


# Sinkhorn divergences


@functools.partial(jax.jit, static_argnames=("power", "tolerance", "max_iterations"))
def diverge(x, y, regularisation, power=2, tolerance=1e-8, max_iterations=20_000):
    return transport.sinkhorn_divergence(
        x, y, regularisation=regularisation, power=power, tolerance=tolerance, max_iterations=max_iterations
    )


def arrays_of(*values):
    return tuple(jnp.asarray(value) for value in values)


@pytest.mark.parametrize(("name", "regularisation"), [("0p05", 0.05), ("0p5", 0.5), ("1", 1.0)])
def test_parity_of_entropic_costs_and_divergences(name, regularisation, float64):
    x, y = arrays_of(REFERENCE["x"], REFERENCE["y"])
    plan = solve(squared(x, y), regularisation, tolerance=1e-8, max_iterations=20_000)
    found = diverge(x, y, regularisation)
    assert found.error <= 1e-8
    for value, kind in (
        (jnp.sum(jnp.exp(plan.log_plan) * squared(x, y)), "sinkhorn_cost"),
        (plan.first.mean() + plan.second.mean(), "entropic_cost"),
        (found.linear, "sinkhorn_divergence_linear"),
        (found.entropic, "sinkhorn_divergence_entropic"),
    ):
        assert value == pytest.approx(float(REFERENCE[f"{kind}_reg{name}"]), abs=1e-6), kind


def test_parity_of_divergences_in_single_precision():
    x, y = arrays_of(np.float32(REFERENCE["x"]), np.float32(REFERENCE["y"]))
    found = diverge(x, y, 0.5, tolerance=1e-5, max_iterations=200)
    assert found.entropic.dtype == jnp.float32
    assert found.entropic == pytest.approx(float(REFERENCE["sinkhorn_divergence_entropic_reg0p5"]), abs=1e-5)
    assert found.linear == pytest.approx(float(REFERENCE["sinkhorn_divergence_linear_reg0p5"]), abs=2e-5)


@pytest.mark.parametrize("regularisation", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("power", [1, 2])
def test_a_set_does_not_diverge_from_itself(regularisation, power, float64):
    """Also tells that the plan of a set with itself, found by averaging, is the one that alternation finds."""
    x = jnp.asarray(points(60, 2))
    found = diverge(x, x[::-1], regularisation, power)
    assert found.entropic == pytest.approx(0, abs=1e-7)
    assert found.linear == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("regularisation", [0.3, 1.0, 10.0])
def test_a_shift_costs_its_square_at_any_regularisation(regularisation, float64):
    """|x - y - m|^2 differs from |x - y|^2 by what no plan can change; of one law and its shift nothing else remains."""
    x, shift = jnp.asarray(points(60, 2)), jnp.asarray([[3.0, -1.0]])
    found = diverge(x, x + shift, regularisation)
    assert found.error <= 1e-8
    assert found.entropic == pytest.approx(10, abs=1e-6)
    assert found.linear == pytest.approx(10, abs=1e-6)


def test_divergences_tend_to_the_exact_cost_and_to_that_of_the_means(float64):
    x, y = arrays_of(points(30, 2), 0.7 * points(40, 2, 1) + 0.5)
    exact = transport.wasserstein(x, y, weights=(np.ones(30), np.ones(40))) ** 2
    errors = []
    for regularisation in (0.3, 0.1, 0.03, 0.01):
        found = diverge(x, y, regularisation, tolerance=1e-5)
        errors.append([abs(float(value) - exact) for value in (found.entropic, found.linear)])
    assert np.all(np.diff(np.array(errors)[:, 0]) < 0)
    assert np.all(np.array(errors)[-1] < 0.02 * exact)
    of_means = float(jnp.sum((x.mean(axis=0) - y.mean(axis=0)) ** 2))
    found = diverge(x, y, 1e4)
    assert found.entropic == pytest.approx(of_means, rel=1e-3)
    assert found.linear == pytest.approx(of_means, rel=1e-3)


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("regularisation", [0.05, 1.0])
def test_the_entropic_divergence_is_symmetric_and_positive(power, regularisation, float64):
    x, y = arrays_of(points(30, 2), points(40, 2, 1))
    found = diverge(x, y, regularisation, power).entropic
    assert found > 1e-3
    assert diverge(y, x, regularisation, power).entropic == pytest.approx(float(found), abs=1e-7)


def test_the_plans_of_a_set_with_itself_need_few_iterations(float64):
    """Alternation would need thousands at this regularisation."""
    x = jnp.asarray(points(100, 1))
    within = diverge(x, x + 100.0, 0.01, tolerance=1e-8, max_iterations=80)
    costs = squared(x, x)
    alternating = solve(costs, 0.01, tolerance=1e-8, max_iterations=80)
    assert alternating.error > 1e-4
    assert transport._plan_with_itself(costs, 0.01, 1e-8, 80).error <= 1e-8
    assert within.error > 1e-8


@pytest.mark.parametrize(("x", "y", "power"), [((4, 2), (5, 3), 2), ((4,), (4,), 2), ((4, 2), (4, 2), 0.5)])
def test_sets_that_do_not_fit_are_refused(x, y, power):
    with pytest.raises(ValueError, match=r"\[m, D\]|at least 1"):
        transport.sinkhorn_divergence(jnp.zeros(x), jnp.zeros(y), regularisation=1.0, power=power)
