"""What every network of the package obeys, whatever is inside."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.networks import dit, mlp, unet

POINTS, IMAGES = (3,), (8, 8, 2)
NETS = {
    "mlp": (functools.partial(mlp, (16, 16), time_features=8), POINTS),
    "unet": (functools.partial(unet, base=8, multipliers=(1, 2), blocks=1, attention=(4,), groups=4), IMAGES),
    "dit": (functools.partial(dit, patch=4, width=16, depth=1, heads=2), IMAGES),
}
CLASSES = 3
QUICKLY_COMPILED = {"xla_backend_optimization_level": 0}
jit = functools.partial(jax.jit, compiler_options=QUICKLY_COMPILED)
every_net = pytest.mark.parametrize("name", NETS)
image_nets = pytest.mark.parametrize("name", ["unet", "dit"])


def inputs(name, batch=4, dtype=jnp.float32):
    x = np.random.default_rng(1).normal(size=(batch, *NETS[name][1]))
    label = np.arange(batch, dtype=np.int32) % (CLASSES + 1)
    return jnp.asarray(x, dtype), jnp.asarray(np.linspace(0.1, 0.9, batch), dtype), jnp.asarray(label)


def perturbed(params, size=0.2):
    """Every parameter moved, so that nothing is hidden behind a layer that starts at zero."""
    random = np.random.default_rng(2)
    return jax.tree.map(lambda leaf: leaf + size * random.normal(size=leaf.shape).astype(leaf.dtype), params)


@functools.cache
def conditional(name):
    """A conditional network, its initial parameters and its compiled `apply`."""
    net = NETS[name][0](num_classes=CLASSES)
    params = jax.tree.map(np.asarray, net.init(jax.random.key(0), *inputs(name)))
    return net, params, jit(net.apply)


@every_net
def test_the_output_has_the_shape_and_dtype_of_x(name):
    _, params, apply = conditional(name)
    args = inputs(name)
    out = apply(perturbed(params), *args)
    assert (out.shape, out.dtype) == (args[0].shape, jnp.float32)
    assert bool(jnp.all(jnp.isfinite(out)))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}


@image_nets
def test_image_networks_are_exactly_zero_at_initialisation(name):
    _, params, apply = conditional(name)
    assert not np.any(apply(params, *inputs(name)))
    assert np.any(apply(perturbed(params), *inputs(name)))


@every_net
def test_an_example_depends_on_its_own_time_and_label_and_on_nothing_of_the_others(name):
    _, params, apply = conditional(name)
    params = perturbed(params)
    x, t, label = inputs(name)
    before = apply(params, x, t, label)

    def changed(*args):
        return [bool(np.any(np.abs(new - old) > 1e-4)) for new, old in zip(apply(params, *args), before, strict=True)]

    assert changed(x, t.at[1].add(0.3), label) == [False, True, False, False]
    assert changed(x, t, label.at[2].set(0)) == [False, False, True, False]
    assert changed(x.at[0].add(0.5), t, label) == [True, False, False, False]


@every_net
def test_the_last_label_means_none_and_is_a_row_of_its_own(name):
    _, params, apply = conditional(name)
    x, t, _ = (jnp.repeat(each[:1], CLASSES + 1, axis=0) for each in inputs(name))
    out = np.asarray(apply(perturbed(params), x, t, jnp.arange(CLASSES + 1)))
    assert np.all(np.isfinite(out))
    assert len(np.unique(np.round(out.reshape(CLASSES + 1, -1), 4), axis=0)) == CLASSES + 1


@every_net
def test_a_batch_of_four_is_four_batches_of_one(name):
    _, params, apply = conditional(name)
    params, args = perturbed(params), inputs(name)
    singly = [apply(params, *(each[i : i + 1] for each in args)) for i in range(4)]
    np.testing.assert_allclose(apply(params, *args), jnp.concatenate(singly), atol=1e-5)


@every_net
def test_bfloat16_computes_near_float32_with_float32_parameters_and_gradients(name):
    _, params, apply = conditional(name)
    params, args = perturbed(params, 0.1), inputs(name)
    narrow = NETS[name][0](num_classes=CLASSES, dtype=jnp.bfloat16)
    shapes = jax.eval_shape(narrow.init, jax.random.key(0), *args)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), shapes) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), params
    )

    grads = jax.eval_shape(jax.grad(lambda params: jnp.sum(narrow.apply(params, *args))), params)
    out = jit(narrow.apply)(params, *args)
    expected = apply(params, *args)
    error = jnp.linalg.norm(out - expected) / jnp.linalg.norm(expected)
    assert out.dtype == jnp.float32
    assert 1e-5 < error < 0.03
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {np.dtype("float32")}


@every_net
def test_float64_keeps_float64_and_a_directional_derivative_is_the_limit_of_differences(name, float64):
    net = NETS[name][0](num_classes=CLASSES, dtype=jnp.float64)
    x, t, label = inputs(name, batch=2, dtype=jnp.float64)
    params = perturbed(net.init(jax.random.key(0), x, t, label))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float64")}

    def apply(x, t):
        return net.apply(params, x, t, jnp.resize(label, t.shape))

    dx, dt, h = jnp.ones_like(x), jnp.ones_like(t), 1e-5
    out, slope = jit(lambda x, t: jax.jvp(apply, (x, t), (dx, dt)))(x, t)
    either_side = jnp.concatenate([x + h * dx, x - h * dx]), jnp.concatenate([t + h * dt, t - h * dt])
    after, before = jnp.split(jit(apply)(*either_side), 2)
    difference = (after - before) / (2 * h)
    assert out.dtype == jnp.float64
    # the time embedding oscillates at up to 1000 radians per unit: the error of a central difference is h^2 1000^3 / 6
    np.testing.assert_allclose(slope, difference, atol=1e-4 * float(jnp.abs(slope).max()))


@every_net
def test_initialisation_depends_on_the_key_alone(name):
    net, params, _ = conditional(name)
    one = net.init(jax.random.key(0), *(each[:1] for each in inputs(name)))
    other = net.init(jax.random.key(1), *inputs(name))
    assert jax.tree.all(jax.tree.map(np.array_equal, params, one))
    assert not jax.tree.all(jax.tree.map(np.array_equal, params, other))


def error_of(call, *args):
    with pytest.raises(ValueError) as error:
        call(*args)
    message = str(error.value)
    assert "\n" not in message
    return message


@every_net
def test_an_unconditional_network_refuses_labels_and_a_conditional_one_their_absence(name):
    x, t, label = inputs(name)
    conditioned, plain = NETS[name][0](num_classes=CLASSES), NETS[name][0]()
    params = plain.init(jax.random.key(0), x, t)
    assert jax.eval_shape(plain.apply, params, x, t).shape == x.shape
    assert error_of(plain.apply, params, x, t, label).startswith("labels were given to an unconditional network")
    assert error_of(conditioned.init, jax.random.key(0), x, t).startswith("a network of 3 classes needs labels")


@every_net
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, t, label: (x, t[:, None], label), "t has shape (4, 1); expected one time an example: (4,)"),
        (lambda x, t, label: (x, t, label[:2]), "label is int32[2]; expected int32[4]"),
        (lambda x, t, label: (x, t, label.astype(jnp.float32)), "label is float32[4]; expected int32[4]"),
        (lambda x, t, label: (x[..., None], t, label), "x has shape (4, "),
    ],
    ids=["times", "labels", "label dtype", "x"],
)
def test_inputs_that_do_not_fit_are_refused_in_one_line(name, change, message):
    net, params, _ = conditional(name)
    assert error_of(net.apply, params, *change(*inputs(name))).startswith(message)
