import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from genjax.networks import from_linen, from_nnx, mlp


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x, t):
        hidden = nn.tanh(nn.Dense(32)(jnp.concatenate([x, t[:, None]], axis=-1)))
        return nn.Dense(x.shape[-1])(hidden)


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(3, 32, rngs=rngs), nnx.Linear(32, 2, rngs=rngs)])

    def __call__(self, x, t):
        return self.layers[1](nnx.tanh(self.layers[0](jnp.concatenate([x, t[:, None]], axis=-1))))


NETS = {"linen": lambda: from_linen(LinenNet()), "nnx": lambda: from_nnx(NnxNet), "mlp": lambda: mlp((32,))}
X, T = jax.random.normal(jax.random.key(0), (256, 2)), jnp.linspace(0, 1, 256)


@pytest.mark.parametrize("name", NETS)
def test_nets_of_every_kind_train_under_one_loss(name):
    net = NETS[name]()

    def loss(params):
        target = T[:, None] * X - (1 - T)[:, None] * X[:, ::-1]
        return jnp.mean((net.bind(params)(X, T) - target) ** 2)

    optimizer = optax.adam(1e-2)

    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state)
        return (optax.apply_updates(params, updates), state), value

    params = net.init(jax.random.key(1), X, T)
    _, values = jax.jit(lambda carry: jax.lax.scan(step, carry, length=300))((params, optimizer.init(params)))
    assert values[-1] < 0.1 * values[0]


def _is_plain(tree):
    if isinstance(tree, dict):
        return all(type(name) is str and _is_plain(branch) for name, branch in tree.items())
    return isinstance(tree, jax.Array)


@pytest.mark.parametrize("name", NETS)
def test_parameters_are_nested_dicts_of_arrays_that_the_key_determines(name):
    net = NETS[name]()
    params, same, other = (net.init(jax.random.key(seed), X, T) for seed in (3, 3, 4))
    assert type(params) is dict
    assert _is_plain(params)
    assert jax.tree.all(jax.tree.map(np.array_equal, params, same))
    assert not jax.tree.all(jax.tree.map(np.array_equal, params, other))


def test_an_nnx_net_computes_what_its_module_computes_with_those_parameters():
    net, module = from_nnx(NnxNet), NnxNet(nnx.Rngs(0))
    params = {
        "layers": {
            str(i): {"kernel": layer.kernel[...], "bias": layer.bias[...]} for i, layer in enumerate(module.layers)
        }
    }
    np.testing.assert_allclose(net.apply(params, X, T), module(X, T), atol=1e-6)


def test_an_nnx_net_has_the_moments_of_its_modules_initializers():
    net = from_nnx(lambda rngs: nnx.Linear(100, 50, rngs=rngs))
    ours = net.init(jax.random.key(0))["kernel"]
    theirs = nnx.Linear(100, 50, rngs=nnx.Rngs(1)).kernel[...]
    assert float(jnp.std(ours)) == pytest.approx(float(jnp.std(theirs)), rel=5 / 5000**0.5)


@pytest.mark.parametrize("make", [lambda rngs: nnx.BatchNorm(3, rngs=rngs), lambda rngs: nnx.Dropout(0.5, rngs=rngs)])
def test_an_nnx_module_with_other_state_is_refused(make):
    net = from_nnx(make)
    with pytest.raises(ValueError, match=r"^the module has state besides its parameters[^\n]*$"):
        net.init(jax.random.key(0))


def test_binding_labels_leaves_a_function_of_x_and_t():
    net = mlp((8,), num_classes=2)
    label = jnp.zeros(256, jnp.int32)
    params = net.init(jax.random.key(0), X, T, label)
    np.testing.assert_array_equal(net.bind(params, label)(X, T), net.apply(params, X, T, label))
