"""Encoders and decoders: shapes, refusal of sides that cannot be halved."""

import jax
import jax.numpy as jnp
import pytest

from genjax.networks.autoencoder import (
    image_decoder,
    image_encoder,
    map_decoder,
    map_encoder,
    point_decoder,
    point_encoder,
)


def output_shape(net, x):
    return jax.eval_shape(lambda x: net.apply(net.init(jax.random.key(0), x), x), x).shape


@pytest.mark.parametrize("event_shape", [(8, 8, 1), (12, 16, 3)])
def test_images_become_codes_and_codes_images(event_shape):
    images, codes = jnp.ones((5, *event_shape)), jnp.ones((5, 6))
    assert output_shape(image_encoder(event_shape, 12, base=4), images) == (5, 12)
    assert output_shape(image_decoder(event_shape, base=4), codes) == images.shape


@pytest.mark.parametrize(("event_shape", "sides"), [((8, 8, 1), (2, 2)), ((12, 16, 3), (3, 4))])
def test_images_become_maps_and_maps_images(event_shape, sides):
    images, codes = jnp.ones((5, *event_shape)), jnp.ones((5, *sides, 6))
    assert output_shape(map_encoder(event_shape, 12, base=4), images) == (5, *sides, 12)
    assert output_shape(map_decoder(event_shape, base=4), codes) == images.shape


def test_points_become_codes_and_codes_points():
    assert output_shape(point_encoder(4, features=(8,)), jnp.ones((5, 3))) == (5, 4)
    assert output_shape(point_decoder(6, features=(8, 8)), jnp.ones((5, 2))) == (5, 6)


@pytest.mark.parametrize(
    "make", [lambda shape: image_encoder(shape, 2), image_decoder, lambda shape: map_encoder(shape, 2), map_decoder]
)
def test_sides_that_cannot_be_halved_are_refused(make):
    with pytest.raises(ValueError, match=r"images of 10x8 cannot be halved 2 times.*multiple of 4"):
        make((10, 8, 1))
