"""Autoregressive networks: an output sees every earlier dimension of its view, and nothing else."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.networks.masked import degree_mask, hidden_degrees, made, pixelcnn

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def perturbed(params):
    """Every parameter moved, so that nothing is hidden behind a layer that starts at zero."""
    random = np.random.default_rng(2)
    return jax.tree.map(lambda leaf: leaf + 0.1 * random.normal(size=leaf.shape).astype(leaf.dtype), params)


def dependencies(function, x):
    """Whether output i depends on input j, `[outputs, inputs]`, by the Jacobian at x; outputs are summed over their last axis."""
    jacobian = jit(jax.jacobian(lambda x: jnp.sum(function(x[None])[0], axis=-1)))(x)
    return np.asarray(jacobian).reshape(x.size, x.size) != 0


def made_with_parameters(dimensions, num_classes=0, features=24):
    net = made(dimensions, 3, features=features, depth=3, num_classes=num_classes)
    label = jnp.zeros(1, jnp.int32) if num_classes else None
    return net, perturbed(net.init(jax.random.key(0), jnp.zeros((1, dimensions)), label)), label


@pytest.mark.parametrize("dimensions", [1, 2, 7])
@pytest.mark.parametrize("num_classes", [0, 3])
def test_an_output_of_made_depends_on_all_earlier_dimensions_and_no_other(dimensions, num_classes):
    net, params, label = made_with_parameters(dimensions, num_classes)
    x = jax.random.normal(jax.random.key(1), (dimensions,))
    found = dependencies(lambda x: net.apply(params, x, label), x)
    np.testing.assert_array_equal(found, np.tril(np.ones((dimensions, dimensions), bool), -1))


def test_one_output_alone_is_that_of_all():
    net, params, _ = made_with_parameters(5)
    x = jax.random.normal(jax.random.key(1), (4, 5))
    every = net.apply(params, x)
    alone = jit(net.apply)
    for dimension in range(5):
        one = alone(params, x, None, jnp.asarray(dimension))
        np.testing.assert_allclose(one, every[:, dimension : dimension + 1], rtol=1e-5, atol=1e-6)


def test_every_output_is_told_the_label_also_the_first():
    net, params, _ = made_with_parameters(4, num_classes=3)
    outputs = net.apply(params, jnp.zeros((3, 4)), jnp.arange(3))
    for dimension in range(4):
        assert len(np.unique(np.round(outputs[:, dimension, 0], 4))) == 3


def test_masks_compose_to_the_strict_order_whatever_the_widths():
    """A path from input j to output i exists exactly if j < i (Germain et al. 2015, eq. 10)."""
    order = np.arange(1, 7)
    for units in (5, 8, 31):
        degrees = hidden_degrees(6, units, least=1)
        within = degree_mask(degrees, degrees, strict=False)
        paths = degree_mask(order, degrees, strict=False) @ within @ degree_mask(degrees, order, strict=True)
        np.testing.assert_array_equal(paths > 0, np.triu(np.ones((6, 6), bool), 1))


VIEWS = {
    "all of a small image": ((5, 5, 1), 2),
    "three channels in order": ((3, 4, 3), 2),
    "a part of a wide image": ((9, 17, 1), 2),
}


@pytest.mark.parametrize("name", VIEWS)
def test_an_output_of_pixelcnn_depends_on_every_earlier_value_in_view_and_no_later_one(name):
    shape, depth = VIEWS[name]
    net = pixelcnn(shape, 2, width=8, depth=depth)
    x = jax.random.normal(jax.random.key(1), shape)
    params = perturbed(net.init(jax.random.key(0), x[None]))
    found = dependencies(lambda x: net.apply(params, x), x)
    later = np.triu(np.ones((x.size, x.size), bool))
    assert not found[later].any()
    reach = 1 + sum((1, 2, 4)[:depth])
    position = np.stack(np.unravel_index(np.arange(x.size), shape), axis=1)
    rows, columns, _ = np.moveaxis(position[:, None] - position[None], -1, 0)
    in_view = (rows <= reach + 1) & (np.abs(columns) <= reach)
    np.testing.assert_array_equal(found, in_view & ~later)


def test_a_pixel_is_told_its_label():
    net = pixelcnn((3, 3, 1), 4, width=8, depth=1, num_classes=3)
    x = jnp.zeros((3, 3, 3, 1))
    params = perturbed(net.init(jax.random.key(0), x, jnp.arange(3)))
    outputs = net.apply(params, x, jnp.arange(3))
    assert len(np.unique(np.round(outputs[:, 0, 0, 0, 0], 4))) == 3


def test_rows_alone_and_channels_alone_are_those_of_the_whole_image():
    shape = (3, 4, 3)
    net = pixelcnn(shape, 2, width=8, depth=2)
    x = jax.random.normal(jax.random.key(1), (2, *shape))
    params = perturbed(net.init(jax.random.key(0), x))

    @jit
    def in_parts(params, x):
        above = net.above(params, x, None)
        rows = []
        for row in range(shape[0]):
            pixels = x[:, row : row + 1]
            context = net.along(params, pixels, [found[:, row : row + 1] for found in above])
            channels = [net.pixels(params, pixels, context, jnp.asarray(c)) for c in range(shape[2])]
            rows.append(jnp.concatenate(channels, axis=3))
        return jnp.concatenate(rows, axis=1)

    np.testing.assert_allclose(in_parts(params, x), jit(net.apply)(params, x), rtol=1e-4, atol=1e-5)


NETS = {
    "made": lambda classes: made(4, 1, features=8, depth=2, num_classes=classes),
    "pixelcnn": lambda classes: pixelcnn((2, 2, 1), 2, width=4, depth=1, num_classes=classes),
}


@pytest.mark.parametrize("name", NETS)
def test_labels_that_do_not_fit_are_refused_in_one_line(name):
    x = jnp.zeros((3, 4) if name == "made" else (3, 2, 2, 1))
    key = jax.random.key(0)
    for num_classes, label, told in (
        (0, jnp.zeros(3, jnp.int32), "takes no labels"),
        (5, None, "a network of 5 classes needs labels"),
        (5, jnp.zeros(2, jnp.int32), r"label is int32\[2\]; expected int32\[3\]"),
    ):
        with pytest.raises(ValueError, match=told):
            NETS[name](num_classes).init(key, x, label)
