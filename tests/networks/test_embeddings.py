import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.networks.embeddings import ConditionEmbedding, positions_2d, sinusoidal


def test_sinusoidal_is_its_formula():
    t, features, scale, longest = np.array([0.0, 0.25, 0.9]), 6, 50.0, 100.0
    angles = scale * t[:, None] * longest ** (-np.arange(3) / 3)
    expected = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    out = sinusoidal(jnp.asarray(t, jnp.float32), features, scale=scale, max_period=longest)
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_the_product_of_two_times_depends_on_their_difference_alone(float64):
    t = jnp.linspace(0, 1, 11)
    gram = sinusoidal(t, 32) @ sinusoidal(t, 32).T
    for offset in range(11):
        assert np.ptp(np.diagonal(gram, offset)) < 1e-9
    assert gram[0, 0] == pytest.approx(16)


def test_a_time_of_any_shape_and_narrow_dtype_is_embedded_in_float32():
    assert sinusoidal(jnp.float32(0.5), 8).shape == (8,)
    out = sinusoidal(jnp.full((2, 3), 0.5, jnp.bfloat16), 8)
    assert (out.shape, out.dtype) == ((2, 3, 8), jnp.float32)
    np.testing.assert_array_equal(out[1, 2], sinusoidal(jnp.float32(0.5), 8))


def test_odd_features_are_refused():
    with pytest.raises(ValueError, match=r"^a sinusoidal embedding needs an even number of features; got 7$"):
        sinusoidal(jnp.zeros(1), 7)


def test_the_product_of_two_positions_depends_on_their_displacement_alone():
    height, width = 5, 4
    positions = positions_2d(height, width, 16).reshape(height, width, 16)
    gram = np.einsum("ijf,klf->ijkl", positions, positions)
    for down in range(height):
        for right in range(width):
            products = [gram[i, j, i + down, j + right] for i in range(height - down) for j in range(width - right)]
            assert np.ptp(products) < 1e-12
    assert np.all(gram.reshape(20, 20)[~np.eye(20, dtype=bool)] < 8 - 1e-3)


def test_rows_fill_the_first_half_of_a_position_and_columns_the_second():
    positions = positions_2d(3, 5, 8).reshape(3, 5, 8)
    assert np.ptp(positions[..., :4], axis=1).max() == 0
    assert np.ptp(positions[..., 4:], axis=0).max() == 0
    np.testing.assert_allclose(positions[2, 0, :4], sinusoidal(jnp.float32(2), 4, scale=1.0), atol=1e-6)


def test_positions_need_four_features_a_frequency():
    with pytest.raises(ValueError, match=r"^2-D positions need a multiple of 4 features; got 6$"):
        positions_2d(2, 2, 6)


def test_labels_have_one_more_row_than_classes_and_an_index_outside_gives_nan():
    module = ConditionEmbedding(8, 4, 1000.0, 3, jnp.dtype("float32"))
    t, label = jnp.zeros(5), jnp.arange(5)
    variables = jax.jit(module.init)(jax.random.key(0), t, label)
    out = jax.jit(module.apply)(variables, t, label)
    assert variables["params"]["label"]["embedding"].unbox().shape == (4, 8)
    assert len(np.unique(np.asarray(out[:4]), axis=0)) == 4
    assert bool(jnp.all(jnp.isfinite(out[:4])))
    assert bool(jnp.all(jnp.isnan(out[4])))
