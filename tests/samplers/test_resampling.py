"""Resampling on three outcomes, where the law of what is kept is a finite sum, and on Gaussians, where K is large."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.arrays import example_keys
from genjax.samplers import importance_resample

NUM = 40_000
DRAWN = np.array([0.6, 0.3, 0.1])
WANTED = np.array([0.2, 0.3, 0.5])


def kept_law(num_candidates):
    """P(outcome) after keeping one of K independent draws in proportion to WANTED / DRAWN, by enumeration."""
    law = np.zeros(3)
    for row in itertools.product(range(3), repeat=num_candidates):
        weights = (WANTED / DRAWN)[list(row)]
        np.add.at(law, list(row), np.prod(DRAWN[list(row)]) * weights / weights.sum())
    return law


@pytest.mark.parametrize("num_candidates", [1, 2, 4])
def test_the_law_of_what_is_kept_is_the_enumerated_one(num_candidates):
    draw_key, keep_key = jax.random.split(jax.random.key(0))
    candidates = jax.random.categorical(draw_key, jnp.log(jnp.asarray(DRAWN)), shape=(NUM, num_candidates))
    kept = importance_resample(keep_key, candidates, jnp.log(jnp.asarray(WANTED / DRAWN))[candidates] + 7.0)
    expected = kept_law(num_candidates)
    error = np.sqrt(expected * (1 - expected) / NUM)
    assert np.all(np.abs(np.bincount(kept, minlength=3) / NUM - expected) < 4 * error)
    if num_candidates == 1:
        np.testing.assert_array_equal(kept, candidates[:, 0])


def test_what_is_kept_comes_nearer_to_what_is_wanted_with_every_candidate():
    errors = [np.abs(kept_law(k) - WANTED).sum() for k in range(1, 8)]
    assert np.all(np.diff(errors) < 0)


def test_many_draws_of_one_gaussian_make_another():
    draws = jax.random.normal(jax.random.key(0), (NUM, 64, 1))
    log_weights = -0.5 * jnp.square((draws - 0.5) / 0.8) + 0.5 * jnp.square(draws)
    kept = np.asarray(importance_resample(jax.random.key(1), draws, log_weights[..., 0]))
    assert kept.shape == (NUM, 1)
    assert kept.mean() == pytest.approx(0.5, abs=0.03)
    assert kept.std() == pytest.approx(0.8, abs=0.02)


def test_a_row_is_its_key_alone():
    keys = example_keys(jax.random.key(0), 8)
    candidates, log_weights = jnp.arange(32.0).reshape(8, 4), jnp.zeros((8, 4))
    whole = importance_resample(keys, candidates, log_weights)
    np.testing.assert_array_equal(whole, importance_resample(jax.random.key(0), candidates, log_weights))
    np.testing.assert_array_equal(whole[3:5], importance_resample(keys[3:5], candidates[3:5], log_weights[3:5]))
    assert len(np.unique(np.asarray(whole) % 4)) > 1
