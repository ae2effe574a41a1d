"""PixelCNN as a method: probabilities that sum to 1, draws that follow one full pass, resuming, refusals."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from genjax.arrays import example_keys
from genjax.errors import UsageError
from genjax.methods import pixelcnn
from genjax.networks import masked
from genjax.training import data, loop
from genjax.training.data.dataset import host_batch, integer_scaling
from genjax.training.steps import adamw
from genjax.typing import Examples

QUICKLY_COMPILED = {"xla_backend_optimization_level": 0}
jit = functools.partial(jax.jit, compiler_options=QUICKLY_COMPILED)
OPTIONS = dict(batch_size=16, steps_per_dispatch=1, progress=False)
TINY = dict(width=6, depth=1)


def images(shape, levels):
    """Images whose values mostly repeat, labelled by their first value."""
    rng = np.random.default_rng(0)
    steps = rng.integers(0, levels, (200, int(np.prod(shape)))) * (rng.random((200, int(np.prod(shape)))) < 0.3)
    values = (np.cumsum(steps, axis=1) % levels).astype(np.uint8).reshape(-1, *shape)
    batch = host_batch(values, values[:, 0, 0, 0].astype(np.int32))
    return data.Dataset("images", batch, batch, integer_scaling(levels), num_classes=levels, log_density=None)


def jitted(method):
    functions = {name: jit(getattr(method, name)) for name in ("init", "evaluate", "log_prob")}
    sample = jit(method.sample, static_argnums=2)
    return method._replace(sample=sample, compiler_options=QUICKLY_COMPILED, **functions)


def trained(dataset, steps, on_dispatch=None, **config):
    method = jitted(pixelcnn.build(pixelcnn.Config(**TINY, **config), adamw(1e-2, 20), dataset.examples))
    if steps == 0:
        return method, method.init(jax.random.key(0), loop.example_batch(dataset))
    return method, loop.fit(method, dataset, 0, steps=steps, on_dispatch=on_dispatch, **OPTIONS)


def perturbed(params):
    random = np.random.default_rng(2)
    return jax.tree.map(lambda leaf: leaf + 0.3 * random.normal(size=leaf.shape).astype(leaf.dtype), params)


def all_images(shape, levels):
    states = np.asarray(list(itertools.product(range(levels), repeat=int(np.prod(shape)))), np.uint8)
    return integer_scaling(levels).to_model(states.reshape(-1, *shape))


@pytest.mark.parametrize(("shape", "levels", "steps"), [((3, 3, 1), 2, 4), ((1, 2, 3), 3, 0), ((2, 2, 1), 5, 0)])
def test_probabilities_of_all_images_sum_to_one(shape, levels, steps):
    method, state = trained(images(shape, levels), steps)
    params = perturbed(state.ema) if steps == 0 else state.ema
    log_p = method.log_prob(params, jax.random.key(0), all_images(shape, levels))
    np.testing.assert_allclose(jnp.sum(jnp.exp(log_p)), 1, rtol=1e-5)
    assert float(jnp.std(log_p)) > 0.05


def test_draws_have_the_probabilities_of_the_model():
    shape, levels, num = (2, 2, 1), 2, 8000
    dataset = images(shape, levels)
    method, state = trained(dataset, 12)
    expected = np.exp(method.log_prob(state.ema, jax.random.key(0), all_images(shape, levels))).astype(np.float64)
    drawn = dataset.scaling.to_data(method.sample(state.ema, jax.random.key(1), num)).reshape(num, 4)
    counts = np.bincount(np.asarray(drawn, int) @ (2 ** np.arange(4)[::-1]), minlength=16)
    assert stats.chisquare(counts, num * expected / expected.sum()).pvalue > 1e-3
    assert stats.chisquare(counts, np.full(16, num / 16)).pvalue < 1e-3


@pytest.mark.parametrize("shape", [(4, 3, 1), (2, 3, 3)])
def test_drawn_values_are_those_of_one_full_pass_over_the_drawn_image(shape):
    levels, num = 5, 8
    method, state = trained(images(shape, levels), 0)
    params, keys = perturbed(state.ema), example_keys(jax.random.key(3), num)
    drawn = method.sample(params, keys, num)
    logits = np.asarray(jax.jit(masked.pixelcnn(shape, levels, **TINY).apply)(params, drawn))
    values = np.asarray(integer_scaling(levels).to_data(drawn), int)
    for row, column, channel in np.ndindex(shape):

        def key_of(key, pixel=row * shape[1] + column, channel=channel):
            return jax.random.fold_in(jax.random.fold_in(key, pixel), channel)

        again = jax.vmap(lambda key, own: jax.random.categorical(key_of(key), own))(
            keys, logits[:, row, column, channel]
        )
        np.testing.assert_array_equal(again, values[:, row, column, channel])
    assert len(np.unique(values)) == levels


def test_a_draw_is_its_keys_alone_and_training_resumes_bit_for_bit():
    dataset = images((3, 4, 1), 4)
    states = {}

    def keep(state, step, metrics):
        states[step] = jax.tree.map(jnp.copy, state)

    method, whole = trained(dataset, 4, on_dispatch=keep, class_conditional=True)
    resumed = loop.fit(method, dataset, 0, steps=4, state=states[2], **OPTIONS)
    for left, right in zip(jax.tree.leaves(resumed), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(left, right)
    keys = example_keys(jax.random.key(0), 6)
    samples = method.sample(whole.ema, keys, 6)
    assert samples.shape == (6, 3, 4, 1)
    np.testing.assert_array_equal(samples[2:4], method.sample(whole.ema, keys[2:4], 2))
    metrics = method.evaluate(whole.ema, jax.random.key(0), loop.example_batch(dataset, 8))
    np.testing.assert_allclose(metrics["bits_per_dim"], metrics["loss"] / (12 * np.log(2)), rtol=1e-6)


def test_without_a_label_it_is_the_mixture_of_its_classes():
    dataset = images((2, 2, 1), 2)
    method, state = trained(dataset, 0, class_conditional=True)
    params, every = perturbed(state.ema), all_images((2, 2, 1), 2)
    of_class = [
        np.exp(method.log_prob(params, jax.random.key(0), every, label=jnp.full(16, label))) for label in range(2)
    ]
    found = np.exp(method.log_prob(params, jax.random.key(0), every))
    np.testing.assert_allclose(found, np.mean(of_class, axis=0), rtol=1e-5)
    assert np.abs(of_class[0] - of_class[1]).max() > 1e-3


def test_noise_within_a_level_changes_nothing():
    """The density is that of the integers."""
    dataset = images((2, 2, 1), 4)
    method, state = trained(dataset, 0)
    exact = dataset.scaling.to_model(dataset.test.data[:5])
    noisy = dataset.scaling.to_model(dataset.test.data[:5], jax.random.key(1))
    assert not np.array_equal(exact, noisy)
    log_p, of_noisy = (method.log_prob(state.ema, jax.random.key(0), x) for x in (exact, noisy))
    np.testing.assert_array_equal(log_p, of_noisy)


def test_a_draw_costs_the_network_once_a_row_or_column():
    method, _ = trained(images((3, 4, 1), 2), 0)
    assert method.network_calls() == 4


@pytest.mark.parametrize(
    ("options", "examples", "told"),
    [
        ({"width": 0}, Examples((8, 8, 1), levels=2), "--width is 0; expected at least 1"),
        ({"depth": 0}, Examples((8, 8, 1), levels=2), "--depth is 0"),
        ({"class_conditional": True}, Examples((8, 8, 1), levels=2), "--class-conditional needs labels"),
        ({}, Examples((2,)), "points take made"),
        ({}, Examples((8, 8, 1)), "these data are images of floats"),
    ],
)
def test_what_cannot_work_is_refused(options, examples, told):
    with pytest.raises(UsageError, match=told):
        pixelcnn.resolve(pixelcnn.Config(**options), examples)
