"""Couplings: the cheapest permutation, draws from the plan, marginals kept, classes kept apart, the same in `jit`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from genjax import couplings, transport

COUPLINGS = {
    "given": couplings.given,
    "independent": couplings.independent,
    "optimal": couplings.optimal,
    "entropic": couplings.entropic(0.5),
    "entropic_relative": couplings.entropic(0.1, relative=True),
}
every_coupling = pytest.mark.parametrize("coupling", COUPLINGS.values(), ids=COUPLINGS)
KEY = jax.random.key(0)


def batch(num=64, shape=(2,), seed=0):
    """A source that is normal and data on two far clusters, which are the classes."""
    generator = np.random.default_rng(seed)
    label = generator.integers(0, 2, num)
    source, data = generator.normal(size=(2, num, *shape))
    data = 0.3 * data + 3.0 * (2 * label - 1).reshape(num, *[1] * len(shape))
    return jnp.asarray(source, jnp.float32), jnp.asarray(data, jnp.float32), jnp.asarray(label, jnp.int32)


def costs_of(source, data):
    return cdist(*(np.asarray(value, np.float64).reshape(len(value), -1) for value in (data, source)), "sqeuclidean")


def over_keys(coupling, source, data, num, label=None):
    """`index [num, B]` for as many keys."""
    one = functools.partial(coupling, source=source, data=data, label=label)
    return np.asarray(jax.jit(lambda keys: jax.lax.map(one, keys))(jax.random.split(KEY, num)))


# What they share


@every_coupling
@pytest.mark.parametrize("labelled", [False, True])
def test_an_index_for_each_example_the_same_in_jit(coupling, labelled):
    source, data, label = batch(shape=(4, 2, 1))
    label = label if labelled else None
    index = coupling(KEY, source, data, label=label)
    assert index.shape == (64,)
    assert index.dtype == jnp.int32
    assert np.all((index >= 0) & (index < 64))
    np.testing.assert_array_equal(coupling(KEY, source, data, label=label), index)
    np.testing.assert_array_equal(jax.jit(coupling)(KEY, source, data, label=label), index)


@pytest.mark.parametrize("name", ["given", "independent", "optimal"])
@pytest.mark.parametrize("labelled", [False, True])
def test_permutations_keep_the_source_as_it_is(name, labelled):
    source, data, label = batch()
    index = COUPLINGS[name](KEY, source, data, label=label if labelled else None)
    assert sorted(index.tolist()) == list(range(64))


@pytest.mark.parametrize("name", ["independent", "entropic", "entropic_relative"])
def test_another_key_is_another_draw(name):
    source, data, _ = batch()
    first, second = (COUPLINGS[name](jax.random.key(seed), source, data) for seed in (0, 1))
    assert not np.array_equal(first, second)


@every_coupling
def test_shapes_that_disagree_are_refused(coupling):
    with pytest.raises(ValueError, match="must agree"):
        coupling(KEY, jnp.zeros((3, 2)), jnp.zeros((4, 2)))
    with pytest.raises(ValueError, match="must agree"):
        coupling(KEY, jnp.zeros((4, 1)), jnp.zeros((4, 2)))
    with pytest.raises(ValueError, match="one an example"):
        coupling(KEY, jnp.zeros((4, 2)), jnp.zeros((4, 2)), label=jnp.zeros((4, 1), jnp.int32))


def test_given_pairs_stay():
    source, data, label = batch()
    np.testing.assert_array_equal(couplings.given(KEY, source, data, label=label), np.arange(64))


def test_independent_pairs_are_uniform():
    source, data, _ = batch(5)
    index = over_keys(couplings.independent, source, data, 4000)
    counts = np.stack([(index == draw).sum(axis=0) for draw in range(5)])
    assert np.abs(counts - 800).max() < 4 * (4000 * 0.2 * 0.8) ** 0.5


# The cheapest permutation


@pytest.mark.parametrize("shape", [(1,), (2,), (3, 2, 1), (40,)])
@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_the_optimum_is_scipys_and_below_any_permutation(shape, shift):
    source, data, _ = batch(shape=shape)
    source, data = source + shift, data + shift  # far from 0, where squares of float32 lose most
    costs = costs_of(source, data)
    index = np.asarray(couplings.optimal(KEY, source, data))
    cost = costs[np.arange(64), index].sum()
    assert cost == pytest.approx(costs[linear_sum_assignment(costs)].sum(), rel=1e-5)
    generator = np.random.default_rng(0)
    assert all(costs[np.arange(64), generator.permutation(64)].sum() > cost for _ in range(200))


def test_large_batches_are_priced_first():
    source, data, _ = batch(600)
    costs = costs_of(source, data)
    index = np.asarray(couplings.optimal(KEY, source, data))
    assert costs[np.arange(600), index].sum() == pytest.approx(costs[linear_sum_assignment(costs)].sum(), rel=1e-5)


def test_the_optimum_without_labels_does_not_depend_on_the_key():
    source, data, _ = batch()
    first, second = (couplings.optimal(jax.random.key(seed), source, data) for seed in (0, 1))
    np.testing.assert_array_equal(first, second)


def test_the_optimum_is_found_in_scan_and_vmap():
    pairs = [batch(16, seed=seed)[:2] for seed in range(3)]
    sources, data = (jnp.stack(values) for values in zip(*pairs, strict=True))
    expected = [couplings.optimal(KEY, *pair) for pair in pairs]
    one = functools.partial(couplings.optimal, KEY)
    np.testing.assert_array_equal(jax.vmap(one)(sources, data), expected)
    _, scanned = jax.jit(lambda *both: jax.lax.scan(lambda c, pair: (c, one(*pair)), 0, both))(sources, data)
    np.testing.assert_array_equal(scanned, expected)


@every_coupling
def test_no_gradient_passes_through_the_choice(coupling):
    source, data, label = batch(16)

    def distance(source):
        index = coupling(KEY, source, data, label=label)
        return jnp.sum((source[index] - data) ** 2), index

    (_, index), gradient = jax.jit(jax.value_and_grad(distance, has_aux=True))(source)
    expected = np.zeros_like(source)
    np.add.at(expected, np.asarray(index), 2 * (source[index] - data))
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6)


# Draws from the plan


def test_draws_have_the_frequencies_of_the_plan():
    source, data, _ = batch(8)
    index = over_keys(couplings.entropic(2.0, tolerance=1e-5), source, data, 20_000)
    plan = transport.sinkhorn(jnp.asarray(costs_of(source, data), jnp.float32), regularisation=2.0, tolerance=1e-5)
    expected = 8 * np.exp(plan.log_plan)  # of draw i given example j
    found = np.stack([(index == draw).mean(axis=0) for draw in range(8)], axis=1)
    error = np.sqrt(expected * (1 - expected) / len(index))
    assert np.all(np.abs(found - expected) < 4 * error + 1e-4)


def test_the_source_is_kept_in_expectation():
    source, data, _ = batch(32)
    index = over_keys(couplings.entropic(1.0, tolerance=1e-4), source, data, 4000)
    uses = np.stack([np.bincount(row, minlength=32) for row in index])
    assert uses.max() > 1  # in a batch draws do repeat
    assert np.abs((uses.mean(axis=0) - 1) / (uses.std(axis=0) / len(uses) ** 0.5)).max() < 4


def test_regularisation_leads_from_optimal_to_independent():
    source, data, _ = batch(16)
    costs = costs_of(source, data)

    def mean_cost(coupling):
        return costs[np.arange(16)[None], over_keys(coupling, source, data, 200)].mean()

    ladder = [couplings.optimal, *(couplings.entropic(r) for r in (0.1, 3.0, 30.0)), couplings.independent]
    values = [mean_cost(coupling) for coupling in ladder]
    assert values == sorted(values)
    assert mean_cost(couplings.entropic(0.01)) == pytest.approx(values[0], rel=0.03)
    assert mean_cost(couplings.entropic(1e4)) == pytest.approx(values[-1], rel=0.03)


def test_relative_regularisation_does_not_depend_on_the_unit():
    source, data, label = batch()
    relative = couplings.entropic(0.05, relative=True)
    absolute = couplings.entropic(0.05 * costs_of(source, data).mean())
    np.testing.assert_array_equal(relative(KEY, source, data), absolute(KEY, source, data))
    for labels in (None, label):
        index = relative(KEY, source, data, label=labels)
        np.testing.assert_array_equal(relative(KEY, 8 * source, 8 * data, label=labels), index)


@pytest.mark.parametrize("regularisation", [0.0, -1.0, np.nan])
def test_regularisation_must_be_positive(regularisation):
    with pytest.raises(ValueError, match="expected more than 0"):
        couplings.entropic(regularisation)


# Classes


@pytest.mark.parametrize("name", ["optimal", "entropic", "entropic_relative"])
def test_with_labels_every_class_has_the_whole_source(name):
    """Without, each of two far clusters takes its own half of the normal source."""
    source, data, label = batch()
    towards, ones = np.asarray(source).sum(axis=1), np.asarray(label) == 1  # the clusters' axis

    def mean_of_class(labels):
        drawn = towards[over_keys(COUPLINGS[name], source, data, 400, labels)][:, ones].mean(axis=1) - towards.mean()
        return drawn.mean(), drawn.std() / len(drawn) ** 0.5

    skewed, _ = mean_of_class(None)
    kept, error = mean_of_class(label)
    assert skewed > 0.5
    assert abs(kept) < 4 * error


def test_with_labels_pairs_are_optimal_within_each_class():
    source, data, label = batch()
    index = np.asarray(couplings.optimal(KEY, source, data, label=label))
    costs = costs_of(source, data)
    for one in (np.asarray(label) == 0, np.asarray(label) == 1):
        block = costs[np.ix_(one, index[one])]
        assert np.trace(block) == pytest.approx(block[linear_sum_assignment(block)].sum(), rel=1e-5)


def test_with_labels_the_plan_stays_within_each_class():
    """Each class draws from its own hand alone: no draw serves both."""
    source, data, label = batch()
    index = over_keys(COUPLINGS["entropic"], source, data, 20, label)
    for row in index:
        assert not set(row[np.asarray(label) == 0]) & set(row[np.asarray(label) == 1])


def test_draws_are_dealt_at_random_even_if_they_came_sorted_by_class():
    _, data, label = batch()
    source = data  # as given, every class would be dealt its own cluster
    index = over_keys(couplings.optimal, source, data, 200, label)
    share = (np.asarray(label)[index] == np.asarray(label)[None]).mean(axis=1)
    frequency = np.bincount(label) / 64
    assert share.mean() == pytest.approx(np.sum(frequency**2), abs=0.03)
