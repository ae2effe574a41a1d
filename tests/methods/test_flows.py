"""Normalizing flows: densities that are densities, draws that follow them, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from genjax.arrays import example_keys
from genjax.errors import UsageError
from genjax.methods import realnvp, spline_flow
from genjax.training import data, loop
from genjax.training.steps import adamw
from genjax.typing import Examples

METHODS = {"realnvp": realnvp, "spline-flow": spline_flow}
TINY = {"realnvp": {"depth": 2, "width": 16}, "spline-flow": {"depth": 2, "width": 16, "bins": 4}}
every_method = pytest.mark.parametrize("name", METHODS)
QUICKLY_COMPILED = {"xla_backend_optimization_level": 0}
jit = functools.partial(jax.jit, compiler_options=QUICKLY_COMPILED)


def tiny(name, data_name, steps=4):
    dataset, module = data.load(data_name), METHODS[name]
    options = TINY[name] if data_name == "moons" else {**TINY[name], "depth": 1, "width": 8}
    method = module.build(module.Config(**options), adamw(3e-3, steps), dataset.examples)
    return method._replace(compiler_options=QUICKLY_COMPILED), dataset


@functools.cache
def start(name, data_name):
    """A method with its functions jitted, its data and its first state."""
    method, dataset = tiny(name, data_name)
    method = jitted(method)
    return method, dataset, method.init(jax.random.key(0), loop.example_batch(dataset))


@functools.cache
def trained(name, data_name):
    steps, batch_size = (300, 128) if data_name == "moons" else (4, 16)
    method, dataset = tiny(name, data_name, steps)
    per_dispatch = min(METHODS[name].recommended(dataset.examples).steps_per_dispatch, steps)
    options = dict(batch_size=batch_size, steps_per_dispatch=per_dispatch, progress=False)
    method = jitted(method)
    return method, dataset, loop.fit(method, dataset, 0, steps=steps, **options)


def jitted(method):
    functions = {name: jit(getattr(method, name)) for name in ("init", "evaluate", "log_prob")}
    return method._replace(sample=jit(method.sample, static_argnums=2), **functions)


@every_method
@pytest.mark.parametrize("data_name", ["moons", "digits"])
def test_trains_samples_and_gives_densities(name, data_name):
    method, dataset, state = trained(name, data_name)
    keys = example_keys(jax.random.key(0), 64)
    samples = method.sample(state.ema, keys, 64)
    assert samples.shape == (64, *dataset.examples.event_shape)
    np.testing.assert_allclose(samples[2:4], method.sample(state.ema, keys[2:4], 2), atol=1e-4)
    batch = loop.example_batch(dataset, 256)
    log_prob = method.log_prob(state.ema, jax.random.key(0), batch.data)
    assert log_prob.shape == (256,)
    metrics = method.evaluate(state.ema, jax.random.key(0), batch)
    np.testing.assert_allclose(metrics["loss"], -np.mean(log_prob), rtol=1e-5)
    assert ("bits_per_dim" in metrics) == method.bounds_log_prob == (data_name == "digits")


@every_method
def test_starts_as_a_density_of_unit_spread(name):
    """Every layer starts as a rotation, so that the first density of points is N(0, I)."""
    method, dataset, state = start(name, "moons")
    batch = loop.example_batch(dataset, 8)
    normal = -0.5 * jnp.sum(batch.data**2 + jnp.log(2 * jnp.pi), axis=1)
    np.testing.assert_allclose(method.log_prob(state.params, jax.random.key(0), batch.data), normal, rtol=1e-4)


@every_method
def test_images_start_better_than_uniform(name):
    """The first batch sets the scales: before any training fewer bits than `log2 17`, those of equally likely levels."""
    method, dataset, state = start(name, "digits")
    bits = method.evaluate(state.params, jax.random.key(0), loop.example_batch(dataset, 256))["bits_per_dim"]
    assert 2 < bits < np.log2(17)


@every_method
def test_a_trained_density_integrates_to_one_and_its_draws_follow_it(name):
    method, _, state = trained(name, "moons")
    axis, cell = np.linspace(-6, 6, 601, retstep=True)
    grid = jnp.asarray(np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2), jnp.float32)
    density = np.exp(np.asarray(method.log_prob(state.ema, jax.random.key(0), grid), np.float64)) * cell**2
    assert density.sum() == pytest.approx(1, abs=2e-3)
    samples = np.asarray(method.sample(state.ema, jax.random.key(1), 20_000))
    for quantity in (lambda x: x[:, 0], lambda x: x[:, 1], lambda x: x[:, 0] * x[:, 1], lambda x: x[:, 1] > 0.5):
        exact, drawn = np.sum(density * quantity(np.asarray(grid))), quantity(samples)
        assert abs(drawn.mean() - exact) < 5 * drawn.std() / len(samples) ** 0.5 + 2e-3


@every_method
@pytest.mark.parametrize("data_name", ["moons", "digits"])
def test_labels_choose_draws_and_densities(name, data_name):
    """Each example by its own label; without labels the density is the mixture of all classes."""
    dataset, module = data.load(data_name), METHODS[name]
    config = module.Config(class_conditional=True, **{**TINY[name], "depth": 1})
    method = jitted(module.build(config, adamw(3e-3, 4), dataset.examples))
    state = method.init(jax.random.key(0), loop.example_batch(dataset, 16))
    params = _with_outputs(state.ema)
    batch, key = loop.example_batch(dataset, 6), jax.random.key(1)
    one, two = jnp.zeros(6, jnp.int32), jnp.ones(6, jnp.int32)
    log_one, log_two = (method.log_prob(params, key, batch.data, label=label) for label in (one, two))
    mixed = method.log_prob(params, key, batch.data, label=jnp.arange(6) % 2)
    np.testing.assert_allclose(mixed, np.where(np.arange(6) % 2, log_two, log_one), rtol=1e-5)
    assert np.abs(log_one - log_two).min() > 1e-3
    of_class = [
        method.log_prob(params, key, batch.data, label=jnp.full(6, k, jnp.int32)) for k in range(dataset.num_classes)
    ]
    np.testing.assert_allclose(
        method.log_prob(params, key, batch.data),
        scipy.special.logsumexp(of_class, axis=0) - np.log(dataset.num_classes),
        rtol=1e-5,
    )
    draws = [method.sample(params, key, 6, label=label) for label in (one, two)]
    assert np.abs(draws[0] - draws[1]).max() > 1e-2
    with pytest.raises(UsageError, match="--class-conditional"):
        tiny(name, data_name)[0].log_prob({}, key, batch.data, label=one)


def _with_outputs(params):
    """Conditioners start at 0, where no label says anything."""

    def changed(path, leaf):
        return leaf + 0.05 if any(getattr(part, "key", None) == "out" for part in path) else leaf

    return jax.tree_util.tree_map_with_path(changed, params)


@every_method
def test_the_temperature_is_the_deviation_of_the_noise(name):
    """An untrained flow of points is a rotation: half the noise gives half the point."""
    method, _, state = start(name, "moons")
    params = state.ema
    whole, half = (method.sample(params, jax.random.key(1), 50, temperature=t) for t in (1.0, 0.5))
    np.testing.assert_allclose(half, 0.5 * whole, atol=1e-5)
    np.testing.assert_allclose(whole, method.sample(params, jax.random.key(1), 50), atol=1e-6)


def test_a_spline_flow_learns_the_line():
    """On two Gaussians it comes within 0.02 nat of minus the entropy, 1.571."""
    dataset = data.load("mixture1d")
    method = spline_flow.build(spline_flow.Config(depth=2, width=16), adamw(1e-2, 400), dataset.examples)
    state = loop.fit(method, dataset, 0, steps=400, batch_size=512, steps_per_dispatch=100, progress=False)
    held_out = dataset.scaling.to_model(dataset.test.data)
    log_prob = np.asarray(jax.jit(method.log_prob)(state.ema, jax.random.key(0), held_out)) - np.log(
        dataset.scaling.scale[0]
    )
    exact = np.asarray(dataset.log_density(jnp.asarray(dataset.test.data)))
    difference = exact - log_prob
    assert -3 * difference.std() / len(difference) ** 0.5 < difference.mean() < 0.02


@every_method
def test_images_fill_the_interval_of_their_levels(name):
    method, dataset, state = trained(name, "digits")
    pixels = dataset.scaling.to_data(method.sample(state.ema, example_keys(jax.random.key(0), 64), 64))
    assert set(np.unique(pixels)) <= set(range(17))
    assert len(np.unique(pixels)) > 8


@pytest.mark.parametrize(
    ("module", "options", "examples", "told"),
    [
        (realnvp, {"class_conditional": True}, Examples((2,)), "--class-conditional needs labels"),
        (realnvp, {"depth": 0}, Examples((2,)), "--depth is 0; expected at least 1"),
        (realnvp, {"width": -1}, Examples((2,)), "--width is -1"),
        (realnvp, {}, Examples((1,)), "use spline-flow or made"),
        (realnvp, {}, Examples((30, 30, 1)), "multiple of 4"),
        (spline_flow, {"bins": 0}, Examples((2,)), "--bins is 0"),
        (spline_flow, {"bound": float("nan")}, Examples((2,)), "--bound is nan"),
        (spline_flow, {}, Examples((28, 30, 1)), "images of 28x30 cannot be halved 2 times"),
    ],
)
def test_what_cannot_work_is_refused(module, options, examples, told):
    with pytest.raises(UsageError, match=told):
        module.resolve(module.Config(**options), examples)
