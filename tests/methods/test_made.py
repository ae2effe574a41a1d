"""MADE as a method: probabilities that sum to 1, draws that follow them, resuming, refusals."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from genjax import cli, cli_sample, cli_train
from genjax.arrays import example_keys
from genjax.errors import UsageError
from genjax.methods import made
from genjax.training import data, loop
from genjax.training.data.dataset import host_batch, integer_scaling
from genjax.training.steps import adamw
from genjax.typing import Examples

BITS = 10
QUICKLY_COMPILED = {"xla_backend_optimization_level": 0}
jit = functools.partial(jax.jit, compiler_options=QUICKLY_COMPILED)
OPTIONS = dict(batch_size=32, steps_per_dispatch=5, progress=False)


def all_images(bits):
    """Every binary image of `bits` pixels in a row, in model units."""
    states = (np.arange(2**bits)[:, None] >> np.arange(bits)) & 1
    return jnp.asarray(states - 0.5, jnp.float32).reshape(-1, 1, bits, 1)


def stripes(bits=BITS):
    """Images of two levels in which a pixel mostly repeats the one before it, labelled by the first."""
    rng = np.random.default_rng(0)
    changes = rng.random((400, bits)) < np.where(np.arange(bits) == 0, 0.5, 0.15)
    pixels = (np.cumsum(changes, axis=1) % 2).astype(np.uint8)
    batch = host_batch(pixels.reshape(-1, 1, bits, 1), pixels[:, 0].astype(np.int32))
    return data.Dataset("stripes", batch, batch, integer_scaling(2), num_classes=2, log_density=None)


def jitted(method):
    functions = {name: jit(getattr(method, name)) for name in ("init", "evaluate", "log_prob")}
    sample = jit(method.sample, static_argnums=2)
    return method._replace(sample=sample, compiler_options=QUICKLY_COMPILED, **functions)


def trained(dataset, steps, on_dispatch=None, **config):
    method = jitted(made.build(made.Config(**config), adamw(1e-2, 40, clip_norm=0), dataset.examples))
    if steps == 0:
        return method, method.init(jax.random.key(0), loop.example_batch(dataset))
    return method, loop.fit(method, dataset, 0, steps=steps, on_dispatch=on_dispatch, **OPTIONS)


def perturbed(params):
    random = np.random.default_rng(2)
    return jax.tree.map(lambda leaf: leaf + random.normal(size=leaf.shape).astype(leaf.dtype), params)


@pytest.mark.parametrize("steps", [0, 10])
@pytest.mark.parametrize("class_conditional", [False, True])
def test_probabilities_of_all_images_sum_to_one(steps, class_conditional):
    method, state = trained(stripes(), steps, width=24, class_conditional=class_conditional)
    params = perturbed(state.ema) if steps == 0 else state.ema
    images = all_images(BITS)
    for label in (None, jnp.ones(len(images), jnp.int32)) if class_conditional else (None,):
        log_p = method.log_prob(params, jax.random.key(0), images, label=label)
        np.testing.assert_allclose(jnp.sum(jnp.exp(log_p)), 1, rtol=1e-5)
        assert float(jnp.std(log_p)) > 0.1


def test_draws_have_the_probabilities_of_the_model():
    dataset, num = stripes(4), 8000
    method, state = trained(dataset, 20, width=16)
    expected = np.exp(method.log_prob(state.ema, jax.random.key(0), all_images(4))).astype(np.float64) * num
    drawn = dataset.scaling.to_data(method.sample(state.ema, jax.random.key(1), num)).reshape(num, 4)
    counts = np.bincount(np.asarray(drawn, int) @ (2 ** np.arange(4)), minlength=16)
    assert stats.chisquare(counts, expected * num / expected.sum()).pvalue > 1e-3
    assert stats.chisquare(counts, np.full(16, num / 16)).pvalue < 1e-3


def test_drawn_bits_are_those_of_one_pass_over_the_drawn_image():
    method, state = trained(stripes(), 0, width=24)
    params, keys = perturbed(state.ema), example_keys(jax.random.key(3), 50)
    images = method.sample(params, keys, 50)
    for d in range(BITS):
        p_one = _probability_of_one(method, params, images, d)
        uniform = jax.vmap(lambda key, d=d: jax.random.uniform(jax.random.fold_in(key, d)))(keys)
        clear = np.abs(uniform - p_one) > 1e-4
        np.testing.assert_array_equal((uniform < p_one)[clear], (images[:, 0, d, 0] > 0)[clear])


def _probability_of_one(method, params, images, d):
    """`p(x_d = 1 | x_<d)`, from the sum of p over all images that share the first bits."""
    every = all_images(BITS)
    log_p = np.asarray(method.log_prob(params, jax.random.key(0), every), np.float64)
    before = np.all(np.asarray(every[None, :, 0, :d, 0]) == np.asarray(images[:, None, 0, :d, 0]), axis=2)
    one = np.asarray(every[:, 0, d, 0] > 0)
    p = np.exp(log_p)[None] * before
    return (p * one[None]).sum(axis=1) / p.sum(axis=1)


def grid():
    """Points of a box that holds all but 1e-4 of a hardly trained model, whose second coordinate has long tails."""
    first, second = np.linspace(-9, 9, 300), np.linspace(-30, 30, 1600)
    points = np.stack(np.meshgrid(first, second, indexing="ij"), axis=-1).reshape(-1, 2)
    return jnp.asarray(points, jnp.float32), (first[1] - first[0]) * (second[1] - second[0])


@pytest.mark.parametrize("class_conditional", [False, True])
def test_the_density_of_points_integrates_to_one_and_draws_have_its_entropy(class_conditional):
    dataset = data.load("moons")
    method, state = trained(dataset, 40, width=24, components=4, class_conditional=class_conditional)
    points, cell = grid()
    log_p = np.asarray(method.log_prob(state.ema, jax.random.key(0), points), np.float64)
    np.testing.assert_allclose(np.exp(log_p).sum() * cell, 1, atol=2e-3)
    entropy = -(np.exp(log_p) * log_p).sum() * cell
    samples = method.sample(state.ema, jax.random.key(1), 4000)
    surprise = -np.asarray(method.log_prob(state.ema, jax.random.key(0), samples))
    assert np.mean(surprise) == pytest.approx(entropy, abs=4 * np.std(surprise) / np.sqrt(4000))


@pytest.mark.parametrize(("name", "class_conditional"), [("moons", True), ("stripes", False)])
def test_a_draw_is_its_keys_alone_and_training_resumes_bit_for_bit(name, class_conditional):
    dataset = stripes() if name == "stripes" else data.load(name)
    config = dict(width=16, components=3, class_conditional=class_conditional)
    states = {}

    def keep(state, step, metrics):
        states[step] = jax.tree.map(jnp.copy, state)

    method, whole = trained(dataset, 10, on_dispatch=keep, **config)
    resumed = loop.fit(method, dataset, 0, steps=10, state=states[5], **OPTIONS)
    for left, right in zip(jax.tree.leaves(resumed), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(left, right)
    keys = example_keys(jax.random.key(0), 6)
    samples = method.sample(whole.ema, keys, 6)
    assert samples.shape == (6, *dataset.examples.event_shape)
    np.testing.assert_allclose(samples[2:4], method.sample(whole.ema, keys[2:4], 2), atol=1e-5)
    metrics = method.evaluate(whole.ema, jax.random.key(0), loop.example_batch(dataset, 8))
    assert set(metrics) == ({"loss", "bits_per_dim"} if name == "stripes" else {"loss"})
    if name == "stripes":
        np.testing.assert_allclose(metrics["bits_per_dim"], metrics["loss"] / (BITS * np.log(2)), rtol=1e-6)
    assert method.network_calls() == np.prod(dataset.examples.event_shape)


def test_a_class_conditional_model_draws_the_class_it_is_asked_for():
    """The label of a stripe is its first bit."""
    method, state = trained(stripes(), 40, width=24, class_conditional=True)
    for label in (0, 1):
        images = method.sample(state.ema, jax.random.key(0), 200, label=jnp.full(200, label))
        assert np.mean(images[:, 0, 0, 0] > 0) == pytest.approx(label, abs=0.15)
    either = method.sample(state.ema, jax.random.key(0), 400)
    assert np.mean(either[:, 0, 0, 0] > 0) == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize(
    ("options", "examples", "told"),
    [
        ({"width": 0}, Examples((2,)), "--width is 0; expected at least 1"),
        ({"depth": 0}, Examples((2,)), "--depth is 0"),
        ({"components": 0}, Examples((2,)), "--components is 0"),
        ({"class_conditional": True}, Examples((2,)), "--class-conditional needs labels"),
        ({}, Examples((8, 8, 1), 10, 17), "images of 17 levels use --binarise or pixelcnn"),
        ({}, Examples((8, 8, 1), 10), "images of floats use --binarise or pixelcnn"),
    ],
)
def test_what_cannot_work_is_refused(options, examples, told):
    with pytest.raises(UsageError, match=told):
        made.resolve(made.Config(**options), examples)


def test_labels_for_a_model_without_classes_are_refused():
    method, state = trained(stripes(), 0, width=8)
    label = jnp.zeros(2, jnp.int32)
    with pytest.raises(UsageError, match="without --class-conditional"):
        method.sample(state.ema, jax.random.key(0), 2, label=label)
    with pytest.raises(UsageError, match="without --class-conditional"):
        method.log_prob(state.ema, jax.random.key(0), all_images(BITS)[:2], label=label)


def test_it_learns_two_modes_to_their_entropy():
    """Held-out nats in data units come within 0.02 of the entropy of the data, 1.571."""
    dataset = data.load("mixture1d")
    method = jitted(made.build(made.Config(), adamw(1e-2, 600), dataset.examples))
    state = loop.fit(method, dataset, 0, steps=600, batch_size=256, steps_per_dispatch=100, progress=False)
    held_out = dataset.scaling.to_model(dataset.test.data)
    assert method.sample(state.ema, jax.random.key(1), 3).shape == (3, 1)
    nats = -np.mean(method.log_prob(state.ema, jax.random.key(2), held_out)) + np.log(dataset.scaling.scale[0])
    assert nats == pytest.approx(1.571, abs=0.02)


def test_a_binarised_run_is_restored_in_its_two_levels_and_is_no_run_without_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli, "use_compilation_cache", lambda: None)
    run = str(tmp_path / "run")
    command = ["made", "--data", "digits", "--width", "16", "--steps", "20", "--evaluations", "1", "--out", run]
    assert cli.run(cli_train.main, [*command, "--binarise"]) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["training"]["binarise"] is True
    assert config["data"]["levels"] == 2
    assert cli.run(cli_sample.main, [run, "--num", "9"]) == 0
    samples = np.load(tmp_path / "run" / "samples" / "samples.npz")["samples"]
    np.testing.assert_array_equal(np.unique(samples), [0, 1])
    capsys.readouterr()
    assert cli.run(cli_sample.main, [str(tmp_path / "run"), "--log-prob", "--num", "50"]) == 0
    assert "50 held-out images" in capsys.readouterr().out
    for given, told in ((command, "--binarise or pixelcnn"), (["made", "--data", "moons", "--binarise"], "are points")):
        assert cli.run(cli_train.main, given) == 2
        error = capsys.readouterr().err.strip()
        assert told in error
        assert "\n" not in error
