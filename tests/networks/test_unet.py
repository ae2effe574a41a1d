import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.networks import unet
from genjax.networks.unet import side_by_side


def _shapes(net, *image):
    return jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *image)), jnp.zeros(1))


def _names(tree, kind):
    return [name for name in tree if name.startswith(kind)]


@pytest.mark.parametrize("image", [(28, 28, 1), (8, 16, 3), (4, 4, 2), (7, 7, 4), (27, 10, 1), (1, 3, 1)])
def test_images_of_any_size_keep_their_shape(image):
    net = unet(base=8, multipliers=(1, 2, 2), blocks=1)
    x, t = jnp.zeros((2, *image)), jnp.zeros(2)
    assert jax.eval_shape(net.apply, _shapes(net, *image), x, t).shape == x.shape


def test_every_pixel_of_an_odd_image_is_seen_and_answered():
    net, x, t = unet(base=8, multipliers=(1, 1, 1), blocks=1, attention=()), jnp.ones((1, 7, 5, 1)), jnp.zeros(1)
    leaves, tree = jax.tree.flatten(net.init(jax.random.key(0), x, t))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    params = tree.unflatten([jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)])
    jacobian = jax.jacobian(lambda x: net.apply(params, x, t))(x)[0, :, :, 0, 0, :, :, 0]
    assert (np.abs(np.asarray(jacobian)) > 0).all(axis=(0, 1)).all()
    assert (np.abs(np.asarray(jacobian)) > 0).all(axis=(2, 3)).all()


def test_the_channels_of_two_images_side_by_side():
    first, second = (
        jax.random.normal(jax.random.key(0), (2, 3, 5, 4)),
        jax.random.normal(jax.random.key(1), (2, 3, 5, 2)),
    )
    np.testing.assert_array_equal(side_by_side(first, second), np.concatenate([first, second], axis=-1))


def test_what_is_no_image_is_refused():
    with pytest.raises(ValueError, match=r"x has shape \(1, 4\); a unet takes images \[B, H, W, C\]"):
        _shapes(unet(base=8), 4)


def test_attention_is_at_the_heights_given_and_nowhere_else():
    def attentions(*heights):
        return len(_names(_shapes(unet(base=8, multipliers=(1, 1), blocks=2, attention=heights), 8, 8, 1), "Attention"))

    assert attentions() == attentions(7) == 0
    assert attentions(8) == 4
    assert attentions(4) == 5
    assert attentions(4, 8) == 9


def test_every_level_has_its_channels_and_its_blocks_both_ways():
    params = _shapes(unet(base=8, multipliers=(1, 3), blocks=2, attention=()), 8, 8, 1)
    blocks = [params[f"ResidualBlock_{i}"]["conv_in"]["kernel"].shape[2:] for i in range(10)]
    down, middle, up = blocks[:4], blocks[4:6], blocks[6:]
    assert down == [(8, 8), (8, 8), (8, 24), (24, 24)]
    assert middle == [(24, 24), (24, 24)]
    assert up == [(48, 24), (48, 24), (16, 8), (16, 8)]
    assert len(_names(params, "ResidualBlock")) == 10


def test_options_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"^base is 12; expected a multiple of groups, 8$"):
        unet(base=12)
    with pytest.raises(ValueError, match=r"^a unet needs at least one multiplier; got \(\)$"):
        unet(multipliers=())
