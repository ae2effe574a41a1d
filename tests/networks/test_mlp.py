import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.networks import mlp
from genjax.networks.mlp import fourier


def test_fourier_tells_the_two_ends_of_the_clock_apart_and_is_its_formula():
    t = np.array([0.0, 0.3, 1.0])
    angles = np.pi / 2 * t[:, None] * np.arange(1, 4)
    expected = np.concatenate([t[:, None], np.cos(angles), np.sin(angles)], axis=1)
    out = fourier(jnp.asarray(t, jnp.float32), 6)
    np.testing.assert_allclose(out, expected, atol=1e-6)
    assert float(jnp.linalg.norm(out[0] - out[2])) > 1


def test_widths_and_activation_are_those_given():
    x, t = jnp.ones((2, 5)), jnp.zeros(2)
    net = mlp((7, 9), activation=lambda hidden: 0 * hidden, time_features=4)
    params = net.init(jax.random.key(0), x, t)
    assert sorted(layer["kernel"].shape for layer in params.values()) == [(7, 9), (9, 5), (10, 7)]
    np.testing.assert_array_equal(net.apply(params, x, t), jnp.broadcast_to(params["out"]["bias"], (2, 5)))


def test_odd_time_features_are_refused():
    with pytest.raises(ValueError, match=r"^time_features is 7; expected an even number$"):
        mlp(time_features=7)


def test_a_network_without_layers_is_refused():
    with pytest.raises(ValueError, match=r"^an mlp needs at least one hidden layer; got features \(\)$"):
        mlp(())
