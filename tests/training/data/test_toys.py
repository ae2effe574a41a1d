"""Each generator against the distribution that its recipe states, computed here without it.

All but the pinwheel and the checkerboard are a curve (or a few points) plus noise that is independent on the
axes, so that the probability of a cell of a grid is a sum over the curve of products of two differences of a
distribution function. Counts in cells are compared with these probabilities by a chi-square statistic, one
label at a time.
"""

import time
from functools import partial

import jax
import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import chi2, norm

from genjax.training.data import toys

NUM = 2**16
MIDPOINTS = (np.arange(1000) + 0.5) / 1000
TURN = 2 * np.pi * MIDPOINTS
ROLL = 1.5 * np.pi + 3 * np.pi * MIDPOINTS
ARM = 3 * np.pi * np.sqrt(MIDPOINTS)


def circle(angle):
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1)


SPIRAL = np.stack([-ARM * np.cos(ARM), ARM * np.sin(ARM)], axis=1) / 3
EIGHT = 4 / 1.414 * circle(np.arange(8) * np.pi / 4)
GRID = np.array([[x, y] for x in (-4, -2, 0, 2, 4) for y in (-4, -2, 0, 2, 4)], float)

# name: (centres of each label, standard deviation, width of the uniform noise of each label, entropy)
PLANAR = {
    "moons": (
        [circle(TURN / 2), np.stack([1 - np.cos(TURN / 2), 0.5 - np.sin(TURN / 2)], axis=1)],
        0.1,
        [0, 0],
        1.008,
    ),
    "eight_gaussians": (list(EIGHT[:, None]), 0.5 / 1.414, [0] * 8, 2.832),
    "two_spirals": ([SPIRAL, -SPIRAL], 0.1, [1 / 6, -1 / 6], 2.645),
    "swiss_roll": ([ROLL[:, None] * circle(ROLL) / 5], 0.2, [0], 2.670),
    "rings": ([radius * circle(TURN) for radius in (0.75, 1.5, 2.25, 3)], 0.08, [0] * 4, 2.623),
    "grid25": (list(GRID[:, None]), 0.05, [0] * 25, 0.065),
    "ring8": (list(circle(np.arange(8) * np.pi / 4)[:, None]), 0.01, [0] * 8, -4.293),
}
EDGES = {"grid25": np.linspace(-7, 7, 14 * 50 + 1), "ring8": np.linspace(-1.1, 1.1, 221)}


def noise_distribution(z, deviation, width):
    """The distribution function of N(0, deviation^2) + U(0, width) (of U(width, 0) for a negative width)."""
    if width == 0:
        return norm.cdf(z / deviation)

    def integral(u):
        return deviation * (u * norm.cdf(u) + norm.pdf(u))

    return (integral(z / deviation) - integral((z - width) / deviation)) / width


def cell_probabilities(centres, deviation, width, edges):
    def mass(axis):
        return np.diff(noise_distribution(edges[:, None] - centres[:, axis], deviation, width), axis=0)

    return mass(0) @ mass(1).T / len(centres)


def chi_square_p_value(counts, probabilities):
    """The probability of a larger chi-square; cells of fewer than 10 expected counts are taken together."""
    counts, expected = np.ravel(counts), np.ravel(probabilities) * counts.sum()
    large = expected >= 10
    if not large.all():
        counts = np.append(counts[large], counts[~large].sum())
        expected = np.append(expected[large], expected[~large].sum())
    statistic = np.sum((counts - expected) ** 2 / expected)
    return chi2.sf(statistic, len(counts) - 1)


def draw(name, num=NUM, seed=0):
    return toys.GENERATORS[name](np.random.default_rng(seed), num)


@pytest.mark.parametrize("name", PLANAR)
def test_points_of_each_label_have_the_stated_distribution(name):
    centres, deviation, widths, _ = PLANAR[name]
    points, label = draw(name, 2**18)
    label = np.zeros(len(points), int) if label is None else label
    edges = EDGES.get(name, np.linspace(-7, 7, 141))
    for k, (centre, width) in enumerate(zip(centres, widths, strict=True)):
        own = points[label == k].astype(float)
        counts = np.histogram2d(*own.T, bins=edges)[0]
        assert counts.sum() == len(own)
        probabilities = cell_probabilities(centre, deviation, width, edges)
        assert probabilities.sum() == pytest.approx(1, abs=1e-6)
        assert chi_square_p_value(counts, probabilities) > 1e-4, k


@pytest.mark.parametrize("name", PLANAR)
def test_the_documented_entropies(name):
    centres, deviation, widths, entropy = PLANAR[name]
    edges = np.linspace(-4.5, 4.5, 901)
    probability = sum(
        cell_probabilities(centre, deviation, width, edges) for centre, width in zip(centres, widths, strict=True)
    ) / len(centres)
    positive = probability[probability > 0]
    # cells of side h raise the entropy by (h^2 / 24) E |grad log p|^2, at most (h^2 / 24) (2 / deviation^2)
    side = edges[1] - edges[0]
    smoothing = 2 * side**2 / 24 / deviation**2
    assert -np.sum(positive * np.log(positive)) + 2 * np.log(side) == pytest.approx(entropy, abs=1e-3 + smoothing)


@pytest.mark.parametrize(
    ("name", "num_labels"),
    [
        ("moons", 2),
        ("eight_gaussians", 8),
        ("checkerboard", 8),
        ("two_spirals", 2),
        ("rings", 4),
        ("pinwheel", 5),
        ("grid25", 25),
        ("ring8", 8),
    ],
)
def test_labels_are_equally_likely(name, num_labels):
    counts = np.bincount(draw(name)[1], minlength=num_labels)
    assert len(counts) == num_labels
    assert chi_square_p_value(counts, np.full(num_labels, 1 / num_labels)) > 1e-4


def test_checkerboard_is_uniform_on_the_dark_squares():
    points, label = draw("checkerboard")
    assert np.abs(points).max() <= 4
    squares = np.floor(points / 2).astype(int)
    assert (squares.sum(axis=1) % 2 == 0).all()
    column, row = squares.T + 2
    np.testing.assert_array_equal(label, 2 * column + row // 2)
    within = np.floor((points - 2 * squares) * 2).astype(int)
    counts = np.bincount(label * 16 + within[:, 0] * 4 + within[:, 1], minlength=128)
    assert chi_square_p_value(counts, np.full(128, 1 / 128)) > 1e-4


def test_checkerboard_entropy_is_log_32():
    points = draw("checkerboard", 2**18)[0]
    counts = np.histogram2d(*points.T.astype(float), bins=np.linspace(-4, 4, 65))[0]
    occupied = counts[counts > 0] / counts.sum()
    assert -np.sum(occupied * np.log(occupied)) + 2 * np.log(0.125) == pytest.approx(np.log(32), abs=0.01)


def test_pinwheel_blades_have_the_stated_moments():
    points, label = draw("pinwheel")
    z = points[:, 0] + 1j * points[:, 1].astype(complex)
    nodes, weights = np.polynomial.hermite_e.hermegauss(100)
    along, weights = 1 + 0.3 * nodes, weights / weights.sum()
    bend = np.exp(-0.25j * np.exp(along))
    for k in range(5):
        turn = np.exp(-2j * np.pi * k / 5)
        blade = z[label == k]
        expectations = {
            "z": (blade, 2 * turn * np.sum(weights * along * bend)),
            "z^2": (blade**2, 4 * turn**2 * np.sum(weights * (along**2 - 0.01) * bend**2)),
            "|z|^2": (np.abs(blade) ** 2, 4 * (1 + 0.09 + 0.01)),
        }
        for values, expected in expectations.values():
            assert abs(values.mean() - expected) < 5 * np.std(values) / np.sqrt(len(values)), k


def test_mixture1d_has_the_stated_distribution():
    points, label = draw("mixture1d")
    assert points.shape == (NUM, 1)
    edges = np.linspace(-6, 6, 121)
    for k, (weight, mean, deviation) in enumerate([(0.3, -2, 0.5), (0.7, 2, 0.7)]):
        own = points[label == k, 0]
        assert abs(len(own) / NUM - weight) < 5 * np.sqrt(0.21 / NUM)
        assert chi_square_p_value(np.histogram(own, edges)[0], np.diff(norm.cdf(edges, mean, deviation))) > 1e-4


def test_mixture1d_density_and_entropy():
    x = np.linspace(-9, 9, 20_001).reshape(-1, 1)
    expected = np.log(0.3 * norm.pdf(x, -2, 0.5) + 0.7 * norm.pdf(x, 2, 0.7))[:, 0]
    log_density = np.asarray(jax.jit(partial(toys.log_density, "mixture1d"))(x.astype(np.float32)), np.float64)
    np.testing.assert_allclose(log_density, expected, rtol=1e-4, atol=1e-4)
    step = 18 / 20_000
    assert np.sum(np.exp(log_density)) * step == pytest.approx(1, abs=1e-5)
    assert -np.sum(np.exp(log_density) * log_density) * step == pytest.approx(1.571, abs=1e-3)


@pytest.mark.parametrize(
    ("name", "centres"), [("eight_gaussians", EIGHT), ("grid25", GRID), ("ring8", circle(np.arange(8) * np.pi / 4))]
)
def test_log_densities_of_the_planar_mixtures(name, centres):
    deviation, entropy = PLANAR[name][1], PLANAR[name][3]
    points = draw(name)[0]
    squares = np.sum((points[:, None].astype(float) - centres) ** 2, axis=-1)
    expected = logsumexp(-0.5 * squares / deviation**2, axis=1) - np.log(2 * np.pi * deviation**2 * len(centres))
    log_density = np.asarray(jax.jit(toys.toy(name).log_density)(points))
    assert log_density.shape == (NUM,)
    np.testing.assert_allclose(log_density, expected, atol=2e-3)
    assert -log_density.mean() == pytest.approx(entropy, abs=1e-3 + 5 * log_density.std() / np.sqrt(NUM))


def test_log_density_under_jit_and_x64():
    points = draw("eight_gaussians", 16)[0]
    log_density = partial(toys.log_density, "eight_gaussians")
    expected = log_density(points)
    np.testing.assert_allclose(jax.jit(log_density)(points), expected, rtol=1e-5)
    with jax.enable_x64(True):
        np.testing.assert_allclose(jax.jit(log_density)(points.astype(np.float64)), expected, rtol=1e-5)


@pytest.mark.parametrize("name", toys.GENERATORS)
def test_generators_are_pure_functions_of_the_generator(name):
    points, label = draw(name, 50)
    again, _ = draw(name, 50)
    np.testing.assert_array_equal(points, again)
    assert not np.array_equal(points, draw(name, 50, seed=1)[0])
    assert points.shape == (50, 1 if name == "mixture1d" else 2)
    assert points.dtype == np.float32
    assert label is None or (label.shape == (50,) and label.dtype == np.int32)
    assert draw(name, 0)[0].shape == (0, points.shape[1])


@pytest.mark.parametrize("name", toys.GENERATORS)
def test_data_sets_are_large_fixed_and_standardised(name):
    first, second = toys.toy(name), toys.toy(name)
    np.testing.assert_array_equal(first.train.data, second.train.data)
    np.testing.assert_array_equal(first.test.data, second.test.data)
    assert (len(first.train.data), len(first.test.data)) == (2**18, 2**14)
    for part, stream in ((first.train, 0), (first.test, 1)):
        rng = np.random.default_rng([toys.SEED, stream])
        np.testing.assert_array_equal(part.data, toys.GENERATORS[name](rng, len(part.data))[0])
    assert first.num_classes == (0 if name == "swiss_roll" else len(np.unique(first.test.label)))
    np.testing.assert_allclose(np.std(first.train.data, axis=0, dtype=float), first.scaling.scale, rtol=1e-6)
    assert first.scaling.levels == 0
    assert (first.log_density is not None) == (name in ("mixture1d", "eight_gaussians", "grid25", "ring8"))


@pytest.mark.parametrize("name", toys.GENERATORS)
def test_generation_takes_less_than_0_3_seconds(name):
    def seconds():
        start = time.process_time()
        toys.toy(name)
        return time.process_time() - start

    assert min(seconds() for _ in range(3)) < 0.3
