import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.networks import unet
from genjax.networks.layers import double


def _shapes(net, *image):
    return jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *image)), jnp.zeros(1))


def _names(tree, kind):
    return [name for name in tree if name.startswith(kind)]


@pytest.mark.parametrize(
    ("image", "multipliers", "halvings", "padded", "possible"),
    [((28, 28), (1, 1, 1, 1), 3, "32x32", 3), ((8, 6), (1, 1, 1), 2, "8x8", 2), ((9, 9), (1, 1), 1, "10x10", 1)],
)
def test_images_that_cannot_be_halved_are_refused_before_any_work(image, multipliers, halvings, padded, possible):
    with pytest.raises(ValueError) as error:
        _shapes(unet(base=8, multipliers=multipliers), *image, 1)
    height, width = image
    assert str(error.value) == (
        f"images of {height}x{width} cannot be halved {halvings} times for {len(multipliers)} multipliers: "
        f"pad them to {padded} or give at most {possible}"
    )


@pytest.mark.parametrize("image", [(28, 28, 1), (8, 8, 1), (8, 16, 3), (4, 4, 2)])
def test_images_that_can_be_halved_keep_their_shape(image):
    net = unet(base=8, multipliers=(1, 2, 2), blocks=1)
    x, t = jnp.zeros((2, *image)), jnp.zeros(2)
    assert jax.eval_shape(net.apply, _shapes(net, *image), x, t).shape == x.shape


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


def test_doubling_repeats_every_pixel_in_a_square():
    x = jnp.arange(2 * 2 * 3 * 2.0).reshape(2, 2, 3, 2)
    np.testing.assert_array_equal(double(x), np.kron(x, np.ones((1, 2, 2, 1))))


def test_options_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"^base is 12; expected a multiple of groups, 8$"):
        unet(base=12)
    with pytest.raises(ValueError, match=r"^a unet needs at least one multiplier; got \(\)$"):
        unet(multipliers=())
