"""Balls of nearest neighbours: what equal, far, lost and doubled samples make of them; expectations; parity."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial import KDTree
from scipy.spatial.distance import cdist

from genjax.metrics.neighbours import density_and_coverage, precision_and_recall, squared_radii

FEATURES = np.load(Path(__file__).parents[1] / "reference" / "feature_metrics.npz")


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def all_four(samples, reference, neighbours):
    first = precision_and_recall(samples, reference, neighbours=neighbours)
    second = density_and_coverage(samples, reference, neighbours=neighbours)
    return {**first._asdict(), **second._asdict()}


def floats(found):
    return {name: float(value) for name, value in found.items()}


@pytest.mark.parametrize("dimension", [1, 3, 100])
@pytest.mark.parametrize("neighbours", [1, 4])
def test_radii_are_those_of_a_tree(dimension, neighbours, float64):
    """More pairs than are held at once."""
    points = draw(1001, dimension)
    expected = KDTree(points).query(points, neighbours + 1)[0][:, -1]
    np.testing.assert_allclose(np.sqrt(squared_radii(points, neighbours=neighbours)), expected, rtol=1e-10)


def test_a_point_is_not_its_own_neighbour_but_its_double_is():
    points = jnp.asarray([[0.0], [0.0], [0.0], [2.0], [5.0]])
    assert squared_radii(points, neighbours=2).tolist() == [0, 0, 0, 4, 25]
    assert squared_radii(points, neighbours=3).tolist() == [4, 4, 4, 4, 25]
    assert squared_radii(points, neighbours=4).tolist() == [25, 25, 25, 9, 25]


@pytest.mark.parametrize("dimension", [2, 100])
@pytest.mark.parametrize("neighbours", [1, 3, 10])
def test_of_a_set_and_itself(dimension, neighbours):
    """Each closed ball holds its centre and k others."""
    points = jnp.float32(draw(200, dimension))
    found = all_four(points[::-1], points, neighbours)
    assert found["precision"] == found["recall"] == found["coverage"] == 1
    assert found["density"] == pytest.approx((neighbours + 1) / neighbours, rel=1e-6)


def test_of_sets_far_from_each_other():
    points = draw(100, 3)
    assert all(value == 0 for value in all_four(points + 1000, points, 3).values())


def test_samples_of_one_of_two_clusters_are_precise_and_cover_half():
    one, other = 0.01 * draw(100, 2), 10 + 0.01 * draw(100, 2, seed=1)
    found = all_four(one, jnp.concatenate([one, other]), 3)
    assert found == pytest.approx({"precision": 1, "recall": 0.5, "density": 4 / 3, "coverage": 0.5}, rel=1e-6)
    found = all_four(jnp.concatenate([one, other]), one, 3)
    assert found == pytest.approx({"precision": 0.5, "recall": 1, "density": 2 / 3, "coverage": 1}, rel=1e-6)


def test_one_stray_point_makes_precision_but_not_density():
    """The ball of one stray point of reference holds samples that lie near nothing else."""
    cluster, stray = 0.01 * draw(100, 2), jnp.asarray([[10.0, 0.0]])
    samples = jnp.asarray([[5.0, 0.0]]) + 0.01 * draw(50, 2, seed=1)
    found = all_four(samples, jnp.concatenate([cluster, stray]), 5)
    assert found["precision"] == 1
    assert found["density"] == pytest.approx(1 / 5, rel=1e-6)
    assert found["coverage"] == pytest.approx(1 / 101, rel=1e-6)


@pytest.mark.parametrize("neighbours", [1, 4])
@pytest.mark.parametrize("transform", [lambda z: z, lambda z: jnp.exp(2 * z)])
def test_of_samples_of_one_law_the_means_of_density_and_coverage_are_known_whatever_the_law(neighbours, transform):
    num, num_reference, repetitions = 40, 30, 500
    samples, reference = draw(repetitions, num, 2), draw(repetitions, num_reference, 2, seed=1)
    found = jax.lax.map(
        lambda sets: density_and_coverage(*sets, neighbours=neighbours),
        (transform(samples), transform(reference)),
        batch_size=100,
    )
    others = num_reference - np.arange(1, neighbours + 1)
    for values, expected in ((found.density, 1), (found.coverage, 1 - np.prod(others / (others + num)))):
        assert values.mean() == pytest.approx(expected, abs=4 * float(values.std()) / np.sqrt(repetitions))


@pytest.mark.parametrize("neighbours", [2, 5])
def test_definition_on_more_pairs_than_are_held_at_once(neighbours, float64):
    samples, reference = draw(1203, 3) * 1.3 + 0.5, draw(900, 3, seed=1)
    to_reference = cdist(samples, reference)

    def radii(points):
        return np.sort(cdist(points, points), axis=1)[:, neighbours]

    in_reference = to_reference <= radii(reference)[None]
    in_samples = to_reference <= radii(samples)[:, None]
    expected = {
        "precision": in_reference.any(axis=1).mean(),
        "recall": in_samples.any(axis=0).mean(),
        "density": in_reference.sum() / (neighbours * len(samples)),
        "coverage": in_reference.any(axis=0).mean(),
    }
    assert all_four(samples, reference, neighbours) == pytest.approx(expected, rel=1e-12)


def test_a_motion_of_everything_does_not_matter(float64):
    samples, reference = draw(150, 2), 0.5 + draw(150, 2, seed=1)
    turn = jnp.asarray([[0.6, -0.8], [0.8, 0.6]])
    found = all_four(samples, reference, 3)
    assert 0.5 < found["recall"] < 1
    moved = all_four(7 + 3 * samples @ turn, 7 + 3 * reference @ turn, 3)
    assert moved == pytest.approx(floats(found), rel=1e-12)


def test_samples_that_are_no_numbers_are_nowhere():
    points = jnp.float32(draw(100, 2))
    found = all_four(points.at[:50].set(jnp.nan), points, 3)
    alone = all_four(points[50:], points, 3)
    assert alone["recall"] < 1
    expected = {**alone, "precision": alone["precision"] / 2, "density": alone["density"] / 2}
    assert found == pytest.approx(floats(expected), rel=1e-6)


def test_no_matrix_of_all_pairs_is_held():
    shape = jax.ShapeDtypeStruct((10_000, 128), jnp.float32)
    compiled = jax.jit(lambda x, y: all_four(x, y, 3)).lower(shape, shape).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 50e6  # of the matrix: 400e6


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("neighbours", [3, 5])
def test_parity(neighbours, precision):
    """Counts of 500: exact, but that a float32 distance may move a point over the edge of a ball."""
    with jax.enable_x64(precision == "float64"):
        found = all_four(jnp.asarray(FEATURES["fake"]), jnp.asarray(FEATURES["real"]), neighbours)
        for name, value in found.items():
            atol = 1e-12 if precision == "float64" else 2 / 500
            np.testing.assert_allclose(value, FEATURES[f"{name}_k{neighbours}"], rtol=0, atol=atol, err_msg=name)


def test_what_does_not_fit_is_refused():
    few, many = jnp.zeros((3, 2)), jnp.zeros((9, 2))
    with pytest.raises(ValueError, match="at least 4"):
        precision_and_recall(few, many, neighbours=3)
    with pytest.raises(ValueError, match="more than 3"):
        density_and_coverage(many, few, neighbours=3)
    with pytest.raises(ValueError, match="at least 1"):
        precision_and_recall(many, many, neighbours=0)
    with pytest.raises(ValueError, match="expected"):
        density_and_coverage(many, jnp.zeros((9, 3)))
    assert density_and_coverage(few, many, neighbours=3).coverage == 1
