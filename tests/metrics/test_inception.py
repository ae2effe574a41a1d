"""The Inception Score: its ends, a closed form, splits, parity."""

from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.metrics.inception import inception_score

NUMBERS = np.load(Path(__file__).parents[1] / "reference" / "inception_score.npz")


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


@pytest.mark.parametrize("classes", [2, 7])
@pytest.mark.parametrize("height", [1e3, np.inf])
def test_sure_and_balanced_samples_score_the_number_of_classes_and_no_others_more(classes, height, float64):
    sure = jnp.tile(jnp.where(jnp.eye(classes) == 1, 0.0, -height), (5, 1))
    assert inception_score(sure, splits=5)[0] == pytest.approx(classes, rel=1e-12)
    assert inception_score(sure[1:], splits=1)[0] < classes - 1e-4
    assert 1 < inception_score(3 * draw(50, classes), splits=1)[0] < classes


def test_samples_that_do_not_tell_their_class_score_one(float64):
    for logits in (jnp.zeros((40, 10)), jnp.tile(draw(1, 10), (40, 1)), jnp.tile(1e4 * draw(1, 10), (40, 1))):
        mean, deviation = inception_score(logits, splits=4)
        assert mean == pytest.approx(1, rel=1e-12)
        assert deviation == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("sure", [0.6, 0.99])
def test_of_two_classes_that_are_mistaken_for_each_other_it_is_the_capacity_of_their_channel(sure, float64):
    logits = jnp.log(jnp.asarray([[sure, 1 - sure], [1 - sure, sure]]))
    entropy = -sure * np.log(sure) - (1 - sure) * np.log(1 - sure)
    expected = np.exp(np.log(2) - entropy)
    assert inception_score(logits, splits=1)[0] == pytest.approx(expected, rel=1e-12)


def test_splits_are_consecutive_and_each_is_scored_alone(float64):
    logits = 2 * draw(23, 5)
    bounds = [0, 5, 11, 17, 23]
    alone = [float(inception_score(logits[start:end], splits=1)[0]) for start, end in pairwise(bounds)]
    mean, deviation = inception_score(logits, splits=4)
    assert mean == pytest.approx(np.mean(alone), rel=1e-12)
    assert deviation == pytest.approx(np.std(alone), rel=1e-12)


def test_only_probabilities_matter_and_not_the_order_within_a_split(float64):
    logits = draw(30, 5)
    found = float(inception_score(logits, splits=1)[0])
    assert inception_score(logits[::-1] + 100 * draw(30, 1, seed=1), splits=1)[0] == pytest.approx(found, rel=1e-12)


@pytest.mark.parametrize(("precision", "tolerance"), [("float64", 1e-10), ("float32", 1e-5)])
@pytest.mark.parametrize("splits", [1, 10])
def test_parity(splits, precision, tolerance):
    with jax.enable_x64(precision == "float64"):
        mean, deviation = inception_score(jnp.asarray(NUMBERS["logits"]), splits=splits)
        np.testing.assert_allclose(mean, NUMBERS[f"mean_splits{splits}"], rtol=tolerance)
        np.testing.assert_allclose(deviation, NUMBERS[f"std_splits{splits}"], rtol=tolerance)


@pytest.mark.parametrize(("shape", "splits"), [((3, 4), 4), ((3, 4), 0), ((4,), 1)])
def test_what_does_not_fit_is_refused(shape, splits):
    with pytest.raises(ValueError, match="expected"):
        inception_score(jnp.zeros(shape), splits=splits)
