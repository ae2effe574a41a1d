"""Distances of all pairs: right for near points, the same by both ways; rows in turns."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import cdist

from genjax.metrics import pairs


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("dimension", [1, 3, 64, 65, 300])
def test_both_ways_are_those_of_double_precision(dimension, float64):
    x, y = draw(30, dimension), 5 + draw(20, dimension, seed=1)
    found = pairs.squared_distances(jnp.asarray(x), jnp.asarray(y))
    np.testing.assert_allclose(found, cdist(x, y, "sqeuclidean"), rtol=1e-12)


def test_near_points_of_clusters_far_apart_keep_their_distances_in_single_precision():
    x = np.float32(np.repeat([[3.0], [-3.0]], 25, axis=0) + 1e-4 * draw(50, 2))
    expected = cdist(x, x, "sqeuclidean")
    np.testing.assert_allclose(pairs.squared_distances(jnp.asarray(x), jnp.asarray(x)), expected, rtol=1e-6)


def test_in_many_dimensions_what_is_common_to_all_points_costs_no_digits():
    x = np.float32(30 + draw(50, 500))
    found = pairs.squared_distances(jnp.asarray(x), jnp.asarray(x))
    np.testing.assert_allclose(found, cdist(x, x, "sqeuclidean"), atol=1e-6 * 2 * 500)


@pytest.mark.parametrize("width", [1, 2**17 + 5, 2**30])
def test_every_row_is_mapped_once_and_told_its_number(width):
    x = jnp.asarray(draw(11, 2))
    found = pairs.map_rows(lambda i, row: jnp.stack([i, row[0] + 2 * row[1]]), x, width=width)
    np.testing.assert_allclose(found[:, 0], np.arange(11))
    np.testing.assert_allclose(found[:, 1], x[:, 0] + 2 * x[:, 1], rtol=1e-6)
