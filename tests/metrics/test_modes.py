"""Mode coverage: exact samples of a mixture have the stated values, each kind of failure moves its own one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.metrics.modes import mode_coverage, truncated_variance
from genjax.training.data.toys import MIXTURES

NUM = 20_000


def draw(name, seed=0, *, weights=None, spread=1.0):
    mixture, rng = MIXTURES[name], np.random.default_rng(seed)
    label = rng.choice(len(mixture.means), NUM, p=weights)
    noise = spread * mixture.deviations[0] * rng.standard_normal((NUM, 2))
    return (mixture.means[label] + noise).astype(np.float32)


def coverage(name, samples):
    mixture = MIXTURES[name]
    return mode_coverage(jnp.asarray(samples), jnp.asarray(mixture.means, jnp.float32), deviation=mixture.deviations[0])


both = pytest.mark.parametrize("name", ["ring8", "grid25"])


@both
def test_exact_samples_of_the_mixture(name):
    modes, num = coverage(name, draw(name)), len(MIXTURES[name].means)
    assert modes.found == num
    inside = 1 - np.exp(-4.5)
    assert modes.high_quality == pytest.approx(inside, abs=5 * np.sqrt(inside * (1 - inside) / NUM))
    # twice the divergence times the number of samples is chi-square with K - 1 degrees of freedom
    assert modes.divergence < (num - 1 + 5 * np.sqrt(2 * (num - 1))) / (2 * NUM * inside)
    assert np.abs(modes.deviations - 1).max() < 5 / np.sqrt(4 * NUM / num)


@both
def test_modes_that_are_lost(name):
    num = len(MIXTURES[name].means)
    weights = np.where(np.arange(num) < num - 3, 1 / (num - 3), 0)
    modes = coverage(name, draw(name, weights=weights))
    assert modes.found == num - 3
    assert modes.divergence == pytest.approx(np.log(num / (num - 3)), abs=0.005)
    assert modes.high_quality > 0.98
    assert np.isnan(modes.deviations[-3:]).all()
    assert np.isfinite(modes.deviations[:-3]).all()


def test_unequal_modes_have_the_divergence_of_their_weights():
    weights = np.arange(1, 9) / 36
    assert coverage("ring8", draw("ring8", weights=weights)).divergence == pytest.approx(
        np.sum(weights * np.log(8 * weights)), abs=0.01
    )


def test_everything_in_one_mode_diverges_by_log_k():
    modes = coverage("grid25", draw("grid25", weights=np.eye(25)[3]))
    assert modes.found == 1
    assert modes.divergence == pytest.approx(np.log(25), rel=1e-5)


@both
def test_bridges_count_against_the_share_alone(name):
    samples = draw(name)
    bridges = np.mean(MIXTURES[name].means[:2], axis=0, keepdims=True)
    modes = coverage(name, np.concatenate([samples, np.repeat(bridges, NUM // 4, axis=0).astype(np.float32)]))
    exact = coverage(name, samples)
    assert modes.high_quality == pytest.approx(0.8 * float(exact.high_quality), rel=1e-4)
    assert modes.divergence == pytest.approx(float(exact.divergence), abs=1e-6)
    np.testing.assert_allclose(modes.deviations, exact.deviations, rtol=1e-4)


@both
@pytest.mark.parametrize("spread", [0.0, 0.5])
def test_modes_that_are_too_narrow(name, spread):
    modes = coverage(name, draw(name, spread=spread))
    assert modes.high_quality == pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(modes.deviations, spread / np.sqrt(0.9494), rtol=0.06, atol=0.003)


def test_modes_that_are_too_wide():
    modes = coverage("ring8", draw("ring8", spread=1.5))
    assert modes.high_quality == pytest.approx(1 - np.exp(-4.5 / 1.5**2), abs=0.01)
    assert (modes.deviations > 1.2).all()


def test_the_order_of_samples_and_a_shift_of_everything_do_not_matter():
    samples, mixture = draw("ring8"), MIXTURES["ring8"]
    modes = coverage("ring8", samples)
    shifted = mode_coverage(
        jnp.asarray(samples[::-1] + 0.5), jnp.asarray(mixture.means + 0.5, jnp.float32), deviation=0.01
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-4), modes, shifted)


@pytest.mark.parametrize("dimension", [1, 2, 5])
def test_the_variance_of_a_gaussian_that_is_cut_off(dimension):
    points = np.random.default_rng(0).standard_normal((400_000, dimension))
    inside = points[np.linalg.norm(points, axis=1) <= 3]
    assert truncated_variance(dimension) == pytest.approx(np.mean(inside**2), rel=0.01)
