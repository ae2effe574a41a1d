"""Critics: one logit an example, labels by projection, what the waves buy, and kernels that stretch nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from genjax.networks.critic import image_critic, octave_features, point_critic, spectral_normalise


def critic_of(event_shape, num_classes=0):
    if len(event_shape) == 1:
        return point_critic(features=(16, 16), octaves=3, num_classes=num_classes)
    return image_critic(event_shape, base=4, num_classes=num_classes)


shapes = pytest.mark.parametrize("event_shape", [(2,), (8, 8, 1), (12, 16, 3)])


@shapes
def test_the_logit_of_an_example_is_its_own(event_shape):
    net, x = critic_of(event_shape), jax.random.normal(jax.random.key(0), (6, *event_shape))
    params = net.init(jax.random.key(1), x)
    logits = net.apply(params, x)
    assert logits.shape == (6,)
    np.testing.assert_allclose(net.apply(params, x[2:4]), logits[2:4], rtol=1e-4, atol=1e-5)


@shapes
def test_features_are_about_as_large_at_the_end_as_at_the_start(event_shape):
    net, x = critic_of(event_shape), jax.random.normal(jax.random.key(0), (64, *event_shape))
    logits = jnp.stack([net.apply(net.init(jax.random.key(seed), x), x) for seed in range(20)])
    assert 0.5 < np.sqrt(np.mean(np.square(logits))) < 2


@shapes
def test_the_logit_is_linear_in_the_labels_row(event_shape):
    net, x = critic_of(event_shape, 3), jax.random.normal(jax.random.key(0), (5, *event_shape))
    label = jnp.arange(5) % 3
    params = net.init(jax.random.key(1), x, label)

    def logits(factor):
        return net.apply({**params, "label": {"embedding": factor * params["label"]["embedding"]}}, x, label)

    without, one, two = logits(0.0), logits(1.0), logits(2.0)
    np.testing.assert_allclose(two - without, 2 * (one - without), rtol=1e-3, atol=1e-4)
    assert np.abs(one - without).min() > 1e-4
    np.testing.assert_allclose(one, net.apply(params, x, label), rtol=1e-5)
    assert np.abs(net.apply(params, x, (label + 1) % 3) - one).min() > 1e-4


def test_labels_and_classes_go_together():
    x, label = jnp.ones((2, 2)), jnp.zeros(2, jnp.int32)
    with pytest.raises(ValueError, match="a network of 3 classes needs labels"):
        critic_of((2,), 3).init(jax.random.key(0), x)
    with pytest.raises(ValueError, match="this network takes no labels"):
        critic_of((2,)).init(jax.random.key(0), x, label)


def test_sides_that_cannot_be_halved_are_refused():
    with pytest.raises(ValueError, match=r"images of 10x8 cannot be halved 2 times"):
        image_critic((10, 8, 1))


def test_octaves_double_the_frequency_on_each_axis():
    x = jnp.asarray([[0.3, -1.0]])
    expected = [[0.3, -1.0, *np.cos([0.3, 0.6, -1.0, -2.0]), *np.sin([0.3, 0.6, -1.0, -2.0])]]
    np.testing.assert_allclose(octave_features(x, 2), expected, rtol=1e-6)


def test_waves_let_a_critic_see_fine_structure():
    """Regression on a wave of length 0.1: with octaves it is fitted, without it hardly at all."""

    def remaining(octaves):
        net, x = point_critic(features=(64, 64), octaves=octaves), jnp.linspace(-1, 1, 512).reshape(-1, 1)
        optimizer, target = optax.adam(3e-3), jnp.sin(2 * jnp.pi * x[:, 0] / 0.1)
        params = net.init(jax.random.key(0), x)

        def step(carry, _):
            params, state = carry
            value, grads = jax.value_and_grad(lambda p: jnp.mean(jnp.square(net.apply(p, x) - target)))(params)
            updates, state = optimizer.update(grads, state)
            return (optax.apply_updates(params, updates), state), value

        return jax.lax.scan(step, (params, optimizer.init(params)), length=300)[1][-1] / 0.5

    assert remaining(7) < 0.05
    assert remaining(0) > 0.5


def kernels(params):
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return [leaf.reshape(-1, leaf.shape[-1]) for path, leaf in leaves if path[-1].key == "kernel"]


@shapes
@pytest.mark.parametrize("scale", [0.05, 1.0, 20.0])
def test_spectral_norms_become_one(event_shape, scale):
    net, x = critic_of(event_shape), jnp.ones((2, *event_shape))
    params = jax.tree.map(lambda leaf: scale * leaf, net.init(jax.random.key(0), x))
    normalised = spectral_normalise(params)
    for kernel in kernels(normalised):
        assert np.linalg.norm(kernel, ord=2) == pytest.approx(1, abs=1e-3)
    assert jax.tree.structure(normalised) == jax.tree.structure(params)
    assert np.array_equal(normalised["out"]["bias"], params["out"]["bias"])


@pytest.mark.parametrize("values", [np.ones(64), np.linspace(1, 0.99, 64), np.r_[1.0, np.zeros(63)]])
def test_spectral_norms_of_close_and_of_few_singular_values(values):
    left, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((64, 64)))
    right, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((64, 64)))
    kernel = jnp.asarray(3 * left @ np.diag(values) @ right, jnp.float32)
    normalised = spectral_normalise({"kernel": kernel})["kernel"]
    assert np.linalg.norm(normalised, ord=2) == pytest.approx(1, abs=1e-3)


def test_spectral_normalisation_has_the_gradient_of_the_singular_value():
    """`d/dW f(W / sigma(W))` with `d sigma = u^T dW v`, against differences of an exact decomposition."""
    kernel, target = jax.random.normal(jax.random.key(0), (2, 7, 5))

    def value(kernel):
        return jnp.sum(spectral_normalise({"kernel": kernel})["kernel"] * target)

    gradient = np.asarray(jax.grad(value)(kernel), np.float64)
    exact = np.zeros((7, 5))
    for index in np.ndindex(7, 5):
        moved = [np.asarray(kernel, np.float64) for _ in range(2)]
        moved[0][index] += 1e-5
        moved[1][index] -= 1e-5
        ends = [np.sum(m * np.asarray(target, np.float64)) / np.linalg.norm(m, ord=2) for m in moved]
        exact[index] = (ends[0] - ends[1]) / 2e-5
    np.testing.assert_allclose(gradient, exact, atol=1e-3)


def test_a_normalised_critic_of_points_has_slope_at_most_one():
    net, x = point_critic(features=(64, 64, 64), octaves=0), 3 * jax.random.normal(jax.random.key(0), (500, 2))
    params = jax.tree.map(lambda leaf: 2 * leaf, net.init(jax.random.key(1), x))

    def steepest(params):
        slopes = jax.grad(lambda x: jnp.sum(net.apply(params, x)))(x)
        return float(jnp.max(jnp.linalg.norm(slopes, axis=-1)))

    assert steepest(params) > 5
    assert 0.01 < steepest(spectral_normalise(params)) <= 1.001
