import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.errors import UsageError
from genjax.training.data import load
from genjax.training.data.dataset import (
    Scaling,
    binarised,
    from_arrays,
    hold_out,
    integer_scaling,
    range_scaling,
    standardisation,
)

LEVELS = [2, 17, 100, 256]


@pytest.mark.parametrize("levels", LEVELS)
def test_integers_map_as_documented(levels):
    values = np.arange(levels)[None]
    expected = (values - (levels - 1) / 2) / (levels / 2)
    np.testing.assert_allclose(integer_scaling(levels).to_model(values), expected, atol=1e-6)


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_every_integer_round_trips_exactly(levels, wrap):
    scaling = integer_scaling(levels)
    values = np.arange(levels)[None]
    back = wrap(scaling.to_data)(wrap(scaling.to_model)(values))
    assert back.dtype == jnp.float32
    np.testing.assert_array_equal(back, values)


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_dequantised_integers_stay_in_range_and_are_recovered(levels, wrap):
    scaling = integer_scaling(levels)
    values = np.tile(np.array([0, levels // 2, levels - 1], np.int32), (100_000, 1))
    x = wrap(scaling.to_model)(values, jax.random.key(0))
    assert x.dtype == jnp.float32
    assert float(jnp.abs(x).max()) <= 1
    error = np.abs(np.asarray(scaling.to_data(x)) - values)
    assert error.max() <= 1
    assert (error > 0).mean() < 1e-4


@pytest.mark.parametrize("levels", LEVELS)
def test_the_ends_of_the_noise_stay_in_range(levels):
    scaling = Scaling(*integer_scaling(levels)._replace(levels=0))
    ends = jax.jit(scaling.to_model)(np.array([-0.5, levels - 0.5]))
    np.testing.assert_array_equal(ends, [-1, 1])


def test_dequantisation_noise_is_uniform_and_fresh():
    scaling = integer_scaling(256)
    values = np.full((200_000, 1), 7, np.uint8)
    draws = [scaling.to_model(values, jax.random.key(seed)) * 128 + 127.5 - 7 for seed in (0, 1)]
    assert not np.array_equal(*draws)
    np.testing.assert_array_equal(draws[0], scaling.to_model(values, jax.random.key(0)) * 128 + 127.5 - 7)
    for draw in draws:
        counts, _ = np.histogram(draw, bins=10, range=(-0.5, 0.5))
        assert counts.sum() == len(values)
        np.testing.assert_allclose(counts / len(values), 0.1, atol=5 * np.sqrt(0.09 / len(values)))
    assert abs(np.corrcoef(np.ravel(draws[0]), np.ravel(draws[1]))[0, 1]) < 0.02


def test_integer_data_units_are_rounded_and_clipped():
    x = (np.array([-3.0, 0.4, 0.6, 15.4, 40.0]) - 8) / 8.5
    np.testing.assert_array_equal(integer_scaling(17).to_data(x), [0, 0, 1, 15, 16])


def test_continuous_data_get_no_noise():
    points = np.random.default_rng(0).normal(size=(100, 2)).astype(np.float32)
    scaling = standardisation(points)
    np.testing.assert_array_equal(scaling.to_model(points, jax.random.key(0)), scaling.to_model(points))


def test_standardised_points_have_mean_0_and_deviation_1_and_round_trip():
    points = np.random.default_rng(0).normal([3, -1e4, 1e-3], [2, 10, 1e-5], (5000, 3)).astype(np.float32)
    scaling = standardisation(points)
    x = np.asarray(scaling.to_model(points), np.float64)
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(x.std(axis=0), 1, atol=1e-3)
    error = np.abs(np.asarray(scaling.to_data(scaling.to_model(points))) - points).max(axis=0)
    assert (error <= 2 * np.finfo(np.float32).eps * np.abs(points).max(axis=0)).all()


def test_constant_features_and_images_stay_finite():
    points = np.stack([np.full(9, 0.1), np.arange(9.0), np.arange(9) * 1e-44], axis=1).astype(np.float32)
    scaling = standardisation(points)
    np.testing.assert_array_equal(np.asarray(scaling.scale)[[0, 2]], 1)
    assert np.isfinite(scaling.to_model(points)).all()
    images = np.full((3, 2, 2, 1), 0.7, np.float32)
    np.testing.assert_array_equal(range_scaling(images).to_model(images), 0)


def test_float_images_span_minus_1_to_1():
    images = np.random.default_rng(0).uniform(-3, 9, (10, 4, 4, 3)).astype(np.float32)
    scaling = range_scaling(images)
    x = np.asarray(scaling.to_model(images))
    np.testing.assert_allclose([x.min(), x.max()], [-1, 1], atol=1e-6)
    np.testing.assert_allclose(scaling.to_data(x), images, atol=1e-5)


def test_trajectories_of_points_scale_under_raised_rank_promotion():
    scaling = standardisation(np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32))
    x = np.random.default_rng(1).normal(size=(7, 5, 2)).astype(np.float32)
    with jax.numpy_rank_promotion("raise"):
        whole = scaling.to_data(x)
    np.testing.assert_array_equal(whole[3], scaling.to_data(x[3]))


def test_units_stay_float32_when_x64_is_enabled():
    with jax.enable_x64(True):
        scaling = integer_scaling(17)
        x = scaling.to_model(np.array([[3.0]]), jax.random.key(0))
        assert x.dtype == scaling.to_data(x).dtype == jnp.float32


@pytest.mark.parametrize(("num", "held_out"), [(2, 1), (9, 1), (25, 2), (100, 10), (150_000, 10_000)])
def test_a_tenth_is_held_out(num, held_out):
    data = np.arange(num, dtype=np.float32)[:, None]
    train, test = hold_out(data, np.arange(num, dtype=np.int32))
    assert len(test.data) == held_out
    np.testing.assert_array_equal(np.sort(np.concatenate([train.data, test.data]), axis=0), data)
    for part in (train, test):
        np.testing.assert_array_equal(part.data[:, 0], part.label)
        assert (np.diff(part.label) > 0).all()


def test_what_is_held_out_never_changes_and_is_no_prefix():
    first, second = (hold_out(np.arange(100.0)[:, None], None)[1] for _ in range(2))
    np.testing.assert_array_equal(first.data, second.data)
    assert first.label is None
    assert first.data.max() > 20
    assert first.data.min() < 80


def test_arrays_choose_their_scaling():
    rng = np.random.default_rng(0)
    assert from_arrays("a", rng.integers(0, 9, (20, 4, 4, 1), np.uint8), None).scaling == (127.5, 128, 256)
    floats = from_arrays("a", rng.uniform(0, 1, (20, 4, 4, 1)).astype(np.float32), np.arange(20) % 3)
    assert floats.scaling.levels == 0
    assert isinstance(floats.scaling.scale, float)
    assert floats.num_classes == 3
    points = from_arrays("a", rng.normal(size=(20, 3)).astype(np.float32), None)
    assert np.shape(points.scaling.shift) == np.shape(points.scaling.scale) == (3,)
    np.testing.assert_allclose(points.scaling.shift, np.mean(points.train.data, axis=0), rtol=1e-5)
    assert points.num_classes == 0
    assert points.log_density is None


@pytest.mark.parametrize("name", ["digits", "bytes"])
def test_binarised_images_have_two_levels_split_at_half(name):
    every_byte = np.arange(256, dtype=np.uint8).repeat(20).reshape(80, 8, 8, 1)
    grey = load("digits") if name == "digits" else from_arrays("bytes", every_byte, np.arange(80) % 4)
    binary = binarised(grey)
    first_white = (grey.scaling.levels + 1) // 2
    for before, after in ((grey.train, binary.train), (grey.test, binary.test)):
        assert after.data.dtype == np.uint8
        np.testing.assert_array_equal(after.data, before.data >= first_white)
        np.testing.assert_array_equal(after.label, before.label)
    assert binary.examples == grey.examples._replace(levels=2)
    np.testing.assert_array_equal(binary.scaling.to_model(np.array([[0, 1]], np.uint8)), [[-0.5, 0.5]])
    np.testing.assert_array_equal(binary.scaling.to_data(np.array([[-0.5, 0.5]])), [[0, 1]])


@pytest.mark.parametrize(("shape", "told"), [((20, 2), "points"), ((20, 4, 4, 1), "images of floats")])
def test_what_has_no_levels_is_not_binarised(shape, told):
    with pytest.raises(UsageError, match=f"--binarise is for images of integer levels.*these data are {told}"):
        binarised(from_arrays("a", np.random.default_rng(0).normal(size=shape).astype(np.float32), None))
