from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.networks.initialisation import normal
from genjax.networks.layers import (
    Conv,
    compute_dtype,
    convolution,
    convolve,
    convolve_doubled,
    dense,
    group_norm,
    layer_norm,
    parameter_dtype,
    rows,
    self_attention,
    selu,
)


def _images(dtype=jnp.float32):
    random = np.random.default_rng(0)
    return jnp.asarray(random.normal(size=(2, 4, 6, 8)) + 3 * random.normal(size=8), dtype)


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_group_norm_is_that_of_flax(groups, float64):
    x, gain, shift = _images(jnp.float64), jnp.linspace(0.5, 2, 8), jnp.linspace(-1, 1, 8)
    module = nn.GroupNorm(groups, epsilon=1e-5)
    expected = module.apply({"params": {"scale": gain, "bias": shift}}, x)
    np.testing.assert_allclose(group_norm(x, groups, gain[None], shift[None]), expected, atol=1e-10)


def test_each_example_has_its_own_gain_and_shift():
    x = _images()
    gain, shift = jnp.stack([jnp.ones(8), jnp.full(8, 3.0)]), jnp.stack([jnp.zeros(8), jnp.full(8, -2.0)])
    plain = group_norm(x, 2, jnp.ones((1, 8)), jnp.zeros((1, 8)))
    np.testing.assert_allclose(
        group_norm(x, 2, gain, shift), jnp.stack([plain[0], 3 * plain[1] - 2]), rtol=1e-4, atol=1e-5
    )


def test_group_norm_does_not_feel_the_scale_and_offset_of_a_group(float64):
    x = _images(jnp.float64)
    gain, shift = jnp.ones((1, 8)), jnp.zeros((1, 8))
    moved = x.at[..., 4:].multiply(7).at[..., 4:].add(5)
    np.testing.assert_allclose(
        group_norm(moved, 2, gain, shift, epsilon=0), group_norm(x, 2, gain, shift, epsilon=0), atol=1e-10
    )


def test_a_constant_image_is_normalised_to_the_shift():
    shift = jnp.arange(8.0)[None]
    out = group_norm(jnp.full((1, 4, 4, 8), 1234.5), 2, jnp.ones((1, 8)), shift, epsilon=1e-2)
    np.testing.assert_allclose(out, jnp.broadcast_to(shift[:, None, None], (1, 4, 4, 8)), atol=0.05)


@pytest.mark.parametrize(
    "norm", [lambda x: group_norm(x, 2, jnp.ones((1, 8)), jnp.zeros((1, 8))), layer_norm], ids=["group", "layer"]
)
def test_the_moments_of_bfloat16_are_those_of_float32(norm):
    x = _images(jnp.bfloat16) + 20
    out = norm(x)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out, norm(x.astype(jnp.float32)).astype(jnp.bfloat16))


def test_a_mean_far_above_the_deviation_costs_group_norm_no_digits():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 16, 16, 8)) + 1000, jnp.float32)
    values = np.asarray(x, np.float64).reshape(2, 256, 2, 4)
    centred = values - values.mean((1, 3), keepdims=True)
    expected = centred / np.sqrt(np.square(centred).mean((1, 3), keepdims=True) + 1e-5)
    normalised = group_norm(x, 2, jnp.ones((1, 8)), jnp.zeros((1, 8)))
    np.testing.assert_allclose(normalised, expected.reshape(x.shape), atol=1e-3)


def test_layer_norm_is_that_of_flax():
    x = _images()
    module = nn.LayerNorm(epsilon=1e-6, use_scale=False, use_bias=False)
    np.testing.assert_allclose(layer_norm(x), module.apply({}, x), atol=1e-5)


def _qkv(tokens=5, dtype=jnp.float32):
    return jnp.asarray(2 * np.random.default_rng(0).normal(size=(2, tokens, 36)), dtype)


@pytest.mark.parametrize("heads", [1, 3])
def test_attention_is_that_of_flax(heads):
    qkv = _qkv()
    query, keys, values = (each.reshape(2, 5, heads, 12 // heads) for each in jnp.split(qkv, 3, axis=-1))
    expected = nn.dot_product_attention(query, keys, values).reshape(2, 5, 12)
    np.testing.assert_allclose(self_attention(qkv, heads), expected, atol=1e-5)


def test_attention_commutes_with_permutations_of_the_tokens():
    qkv, order = _qkv(), jnp.array([3, 0, 4, 1, 2])
    np.testing.assert_allclose(self_attention(qkv[:, order], 3), self_attention(qkv, 3)[:, order], atol=1e-6)


def test_a_single_token_attends_to_itself():
    qkv = _qkv(tokens=1)
    np.testing.assert_allclose(self_attention(qkv, 3), qkv[..., 24:], rtol=1e-6)


def test_attention_in_bfloat16_is_as_exact_as_its_inputs():
    qkv = _qkv(tokens=400, dtype=jnp.bfloat16)
    out, expected = self_attention(qkv, 3), self_attention(qkv.astype(jnp.float32), 3)
    assert out.dtype == jnp.bfloat16
    assert float(jnp.linalg.norm(out - expected) / jnp.linalg.norm(expected)) < 2**-8


def test_dtypes_follow_what_is_asked_and_what_is_given(float64):
    single, double, half = jnp.zeros(1, jnp.float32), jnp.zeros(1, jnp.float64), jnp.zeros(1, jnp.bfloat16)
    assert compute_dtype(jnp.float32, single) == compute_dtype(jnp.float32, half) == jnp.float32
    assert compute_dtype(jnp.float32, double) == compute_dtype(jnp.float64, single) == jnp.float64
    assert compute_dtype(jnp.bfloat16, single) == compute_dtype(jnp.bfloat16, double) == jnp.bfloat16
    assert [parameter_dtype(each) for each in (jnp.bfloat16, jnp.float32, jnp.float64)] == [
        jnp.float32,
        jnp.float32,
        jnp.float64,
    ]


def test_selu_is_that_of_jax_and_so_is_its_slope():
    x = jnp.concatenate([jnp.linspace(-100, 100, 2001), jnp.linspace(-1e-3, 1e-3, 21)])
    np.testing.assert_allclose(selu(x), jax.nn.selu(x), rtol=1e-6, atol=3e-7)
    slopes = (jax.vmap(jax.grad(function))(x[x != 0]) for function in (selu, jax.nn.selu))
    np.testing.assert_allclose(*slopes, rtol=1e-6, atol=1e-6)


def test_rows_are_copies_and_their_gradient_is_a_sum(float64):
    values = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3)))
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(2, 5, 3)))
    np.testing.assert_array_equal(rows(values, 5), np.repeat(np.asarray(values)[:, None], 5, axis=1))
    slope_of = jax.grad(lambda values: jnp.sum(rows(values, 5) * weights))
    np.testing.assert_allclose(slope_of(values), np.sum(weights, axis=1), rtol=1e-13)
    assert "dot_general" in str(jax.make_jaxpr(slope_of)(values))
    _, tangent = jax.jvp(lambda values: rows(values, 5), (values,), (2 * values,))
    np.testing.assert_array_equal(tangent, 2 * rows(values, 5))


@pytest.mark.parametrize(
    ("ours", "flax", "shape"),
    [
        (dense(4, jnp.float64), nn.Dense(4), (2, 3)),
        (dense(4, jnp.float64), nn.Dense(4), (2, 5, 6, 3)),
        (dense(20, jnp.float64), nn.Dense(20), (2, 3)),
        (convolution(4, jnp.float64), nn.Conv(4, (3, 3)), (2, 5, 6, 3)),
        (convolution(4, jnp.float64, stride=2), nn.Conv(4, (3, 3), strides=2), (2, 5, 6, 3)),
        (
            Conv(4, (2, 3), jnp.float64, normal(), partial(convolve, dilation=2, padding=((2, 0), (1, 3)))),
            nn.Conv(4, (2, 3), kernel_dilation=2, padding=((2, 0), (1, 3))),
            (2, 5, 6, 3),
        ),
    ],
    ids=["dense", "dense of images", "wide dense", "convolution", "strided", "dilated"],
)
def test_layers_and_their_gradients_are_those_of_flax(ours, flax, shape, float64):
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape))
    initial = flax.init(jax.random.key(0), x)["params"]
    params = initial | {"bias": jnp.arange(float(initial["bias"].size))}

    def squares(module):
        return lambda params, x: jnp.sum(module.apply({"params": params}, x) ** 2)

    assert jax.tree.map(jnp.shape, flax.init(jax.random.key(0), x)) == jax.tree.map(
        jnp.shape, nn.unbox(ours.init(jax.random.key(0), x))
    )
    expected = jax.value_and_grad(squares(flax), (0, 1))(params, x)
    for one, other in zip(
        jax.tree.leaves(jax.value_and_grad(squares(ours), (0, 1))(params, x)), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (4, 4)])
def test_a_doubled_image_is_convolved_as_if_it_had_been_doubled(size, float64):
    random = np.random.default_rng(0)
    x, kernel = random.normal(size=(2, *size, 3)), random.normal(size=(3, 3, 3, 5))
    doubled = np.kron(x, np.ones((1, 2, 2, 1)))
    expected = nn.Conv(5, (3, 3), use_bias=False).apply({"params": {"kernel": kernel}}, doubled)
    np.testing.assert_allclose(convolve_doubled(jnp.asarray(x), jnp.asarray(kernel)), expected, atol=1e-12)
