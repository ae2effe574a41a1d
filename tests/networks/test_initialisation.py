import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from genjax.networks import from_linen
from genjax.networks.initialisation import initialiser_of, normal
from genjax.networks.layers import dense, table
from genjax.networks.unet import UNet


class Mixed(nn.Module):
    """Layers with this package's initializers beside layers with Flax's own."""

    @nn.compact
    def __call__(self, x):
        x = dense(64, x.dtype, "ours", kernel_init=normal(0.3, mean=2.0))(x)
        x = nn.Dense(64, name="flax", bias_init=nn.initializers.uniform(0.5))(x)
        rows = table(50, 64, x.dtype, "ours_table")(jnp.zeros(x.shape[:1], jnp.int32))
        x = nn.Conv(48, (3,), name="flax_conv")((x + rows)[:, None])[:, 0]
        return nn.LayerNorm(name="flax_norm")(x)


def _shapes_and_dtypes(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


def test_the_moments_are_those_of_the_modules_own_initializers():
    module, x = Mixed(), jnp.ones((1, 40))
    ours = initialiser_of(module)(jax.random.key(0), x)
    own_init = jax.jit(module.init, compiler_options={"xla_backend_optimization_level": 0})
    theirs = meta.unbox(own_init(jax.random.key(1, impl="unsafe_rbg"), x)["params"])
    assert _shapes_and_dtypes(ours) == _shapes_and_dtypes(theirs)
    for (path, a), b in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        deviation = max(float(np.std(a)), float(np.std(b)))
        if deviation == 0:
            np.testing.assert_array_equal(a, b, err_msg=str(path))
        sampling_error = deviation * (2 / a.size) ** 0.5
        assert abs(np.std(a) - np.std(b)) <= 5 * sampling_error, path
        assert abs(np.mean(a) - np.mean(b)) <= 5 * sampling_error, path


def test_kernels_have_the_variance_of_their_fan_in_and_biases_are_zero():
    module = UNet(16, (1,), 1, (), 8, 1000.0, 0, jnp.float32)
    block = initialiser_of(module)(jax.random.key(0), jnp.ones((1, 8, 8, 1)), jnp.zeros(1))["ResidualBlock_0"]
    assert float(jnp.std(block["conv_in"]["kernel"])) == pytest.approx(1 / (9 * 16) ** 0.5, rel=0.06)
    assert not np.any(block["conv_out"]["kernel"])
    assert not np.any(block["conv_in"]["bias"])
    assert np.all(block["norm_in"]["gain"] == 1)


def test_no_two_parameters_share_a_draw():
    module, x = Mixed(), jnp.ones((1, 40))
    params = initialiser_of(module)(jax.random.key(0), x)
    leaves = [
        params["ours"]["kernel"],
        params["ours_table"]["embedding"],
        params["flax"]["kernel"],
        params["flax_conv"]["kernel"],
    ]
    shortest = min(leaf.size for leaf in leaves)
    correlations = np.corrcoef([np.ravel(leaf)[:shortest] for leaf in leaves])
    assert np.abs(correlations[~np.eye(4, dtype=bool)]).max() < 5 / shortest**0.5


def test_tracing_gives_the_same_parameters_and_an_ensemble_is_one_vmap():
    net = from_linen(nn.Sequential([dense(5, jnp.dtype("float32")), dense(4, jnp.dtype("float32"))]))
    x = jnp.ones((2, 3))
    eager = net.init(jax.random.key(0), x)
    traced = jax.jit(net.init)(jax.random.key(0), x)
    keys = jax.random.split(jax.random.key(1), 3)
    ensemble = jax.vmap(lambda key: net.init(key, x))(keys)
    second = net.init(keys[1], x)
    for a, b, c, d in zip(*map(jax.tree.leaves, (eager, traced, ensemble, second)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
        np.testing.assert_allclose(c[1], d, rtol=1e-6)


def test_parameters_of_an_initializer_that_reads_the_inputs_receive_them():
    class Centred(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x - self.param("mean", lambda key: jnp.mean(x, axis=0))[None]

    x = jnp.arange(12.0).reshape(4, 3)
    np.testing.assert_allclose(from_linen(Centred()).init(jax.random.key(0), x)["mean"], jnp.mean(x, axis=0))


def test_other_variables_are_refused():
    with pytest.raises(ValueError, match=r"^the module has variables besides its parameters: batch_stats$"):
        from_linen(nn.BatchNorm(use_running_average=True)).init(jax.random.key(0), jnp.ones((2, 3)))
