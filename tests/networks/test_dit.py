import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.networks import dit

HEIGHT, WIDTH, CHANNELS, SIDE = 4, 6, 2, 2
X, T = jnp.asarray(np.random.default_rng(1).normal(size=(1, HEIGHT, WIDTH, CHANNELS)), jnp.float32), jnp.full(1, 0.3)


@functools.cache
def _net(depth):
    net = dit(patch=SIDE, width=8, depth=depth, heads=2)
    return jax.jit(net.apply), net.init(jax.random.key(0), X, T)


def _moved(params):
    random = np.random.default_rng(2)
    return jax.tree.map(lambda leaf: leaf + 0.2 * random.normal(size=leaf.shape).astype(leaf.dtype), params)


def test_an_output_patch_stands_where_its_input_patch_stood():
    apply, params = _net(depth=0)
    params = _moved(params)
    changed = np.any(apply(params, X.at[0, 3, 2, 1].add(1.0), T) != apply(params, X, T), axis=-1)[0]
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[2:4, 2:4] = True
    np.testing.assert_array_equal(changed, expected)


def test_every_patch_reaches_every_other_through_attention():
    apply, params = _net(depth=1)
    params = _moved(params)
    changed = np.any(apply(params, X.at[0, 3, 2, 1].add(1.0), T) != apply(params, X, T), axis=-1)[0]
    assert np.all(changed)


def test_entries_of_an_output_token_are_the_pixels_of_its_patch_row_by_row():
    apply, params = _net(depth=1)
    bias = np.arange(8.0, dtype=np.float32)
    params = {**params, "out": {**params["out"], "bias": bias}}
    np.testing.assert_array_equal(apply(params, X, T)[0], np.tile(bias.reshape(2, 2, 2), (2, 3, 1)))


def test_positions_break_the_symmetry_of_the_patches():
    apply, params = _net(depth=1)
    out = np.asarray(apply(_moved(params), jnp.ones_like(X), T))
    patches = out.reshape(2, SIDE, 3, SIDE, CHANNELS).swapaxes(1, 2).reshape(6, -1)
    assert len(np.unique(np.round(patches, 4), axis=0)) == 6


def test_a_block_starts_as_the_identity():
    (shallow, few), (deep, more) = _net(depth=0), _net(depth=1)
    few = {**few, "out": {"kernel": jnp.eye(8), "bias": jnp.zeros(8)}}
    np.testing.assert_allclose(deep({**more, **few}, X, T), shallow(few, X, T), atol=1e-6)
    assert np.abs(shallow(few, X, T)).max() > 1


@pytest.mark.parametrize(
    ("image", "divisors"), [((28, 28), "1, 2, 4, 7, 14, 28"), ((8, 12), "1, 2, 4"), ((12, 8), "1, 2, 4")]
)
def test_images_that_patches_do_not_tile_are_refused(image, divisors):
    net = dit(patch=8, width=8, depth=1, heads=1)
    with pytest.raises(ValueError) as error:
        net.init(jax.random.key(0), jnp.zeros((1, *image, 1)), jnp.zeros(1))
    height, width = image
    assert str(error.value) == (
        f"images of {height}x{width} cannot be cut into patches of 8x8: "
        f"give a patch that divides both sides ({divisors})"
    )


def test_a_width_that_heads_or_positions_do_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"^width is 12; expected a multiple of heads, 5, and of 4$"):
        dit(width=12, heads=5)
    with pytest.raises(ValueError, match=r"^width is 6; expected a multiple of heads, 2, and of 4$"):
        dit(width=6, heads=2)
