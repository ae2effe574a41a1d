"""The variational autoencoder: what it refuses, its bounds in order, and that a sample is its key's alone."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from genjax.arrays import example_keys
from genjax.errors import UsageError
from genjax.methods import vae
from genjax.training import data, loop
from genjax.training.steps import adamw
from genjax.typing import Batch, Examples

CONFIGS = {
    "moons": {},
    "moons, importance": {"importance_samples": 4},
    "digits": {"width": 4, "latent": 3, "kl_warmup": 2},
    "digits, map": {"width": 4, "spatial": True},
    "digits, bernoulli": {"width": 4, "latent": 3, "likelihood": "bernoulli"},
    "digits, gaussian": {"width": 4, "latent": 3, "likelihood": "gaussian", "free_bits": 0.1},
}

QUICKLY_COMPILED = {"xla_backend_optimization_level": 0}
jit = functools.partial(jax.jit, compiler_options=QUICKLY_COMPILED)


def trained(name, steps=4):
    dataset = data.load(name.split(",")[0])
    method = vae.build(vae.Config(**CONFIGS[name]), adamw(1e-3, steps), dataset.examples)
    method = method._replace(init=jit(method.init), compiler_options=QUICKLY_COMPILED)
    per_dispatch = min(vae.recommended(dataset.examples).steps_per_dispatch, steps)
    options = dict(batch_size=16, steps_per_dispatch=per_dispatch, progress=False)
    return method, dataset, loop.fit(method, dataset, 0, steps=steps, **options)


def zeros(method, data):
    """Parameters that are all 0."""
    params = jax.eval_shape(method.init, jax.random.key(0), Batch(data)).params
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), params)


@pytest.mark.parametrize("name", CONFIGS)
def test_trains_samples_reconstructs_and_bounds(name):
    method, dataset, state = trained(name)
    shape = dataset.examples.event_shape
    keys, batch = example_keys(jax.random.key(0), 6), loop.example_batch(dataset, 6)
    sample = jit(lambda params, keys: method.sample(params, keys, len(keys)))
    samples = sample(state.ema, keys)
    assert samples.shape == (6, *shape)
    np.testing.assert_allclose(samples[2:4], sample(state.ema, keys[2:4]), atol=1e-5)
    reconstruct, evaluate = jit(method.reconstruct), jit(method.evaluate)
    assert reconstruct(state.ema, jax.random.key(0), batch.data).shape == batch.data.shape
    assert np.isfinite(evaluate(state.ema, jax.random.key(0), batch)["loss"])
    if "bernoulli" in name:
        assert method.log_prob is None  # of 17 levels it is no likelihood
        return

    def bound(samples):
        log_prob = jit(functools.partial(method.log_prob, samples=samples))
        return np.mean([log_prob(state.ema, key, batch.data) for key in jax.random.split(jax.random.key(1), 20)])

    assert bound(1) < bound(16)


@pytest.mark.parametrize(
    ("options", "examples", "told"),
    [
        ({"latent": 0}, Examples((2,)), "--latent is 0; expected at least 1"),
        ({"importance_samples": 0}, Examples((2,)), "--importance-samples is 0"),
        ({"importance_samples": 5, "beta": 2.0}, Examples((2,)), "do not apply"),
        ({"likelihood": "discretized-logistic"}, Examples((2,)), "these data take gaussian"),
        ({"likelihood": "bernoulli"}, Examples((2,)), "points take gaussian"),
        ({"spatial": True}, Examples((2,)), "--spatial is for images"),
        ({}, Examples((30, 30, 1), levels=256), "multiple of 4"),
    ],
)
def test_what_cannot_work_is_refused(options, examples, told):
    with pytest.raises(UsageError, match=told):
        vae.resolve(vae.Config(**options), examples)


@pytest.mark.parametrize("levels", [0, 2, 17])
def test_bernoulli_knows_black_and_white(levels):
    """A decoder that is certain of every pixel gives the extremes of the data, and them a probability of 1."""
    examples = Examples((8, 8, 1), levels=levels)
    method = vae.build(vae.Config(likelihood="bernoulli", width=4, latent=2), adamw(1e-3, 1), examples)
    extreme = (levels - 1) / levels if levels else 1.0
    assert (method.log_prob is None) == (levels != 2)
    for sign in (-1, 1):
        white = jnp.full((3, 8, 8, 1), sign * extreme)
        params = zeros(method, white)
        params["decoder"]["out"]["bias"] += 30.0 * sign
        np.testing.assert_allclose(method.decode(params, jnp.zeros((3, 2))), white, atol=1e-6)
        np.testing.assert_allclose(method.reconstruct(params, jax.random.key(0), white), white, atol=1e-6)
        if method.log_prob:
            np.testing.assert_allclose(method.log_prob(params, jax.random.key(0), white), 0, atol=1e-4)


@pytest.mark.parametrize("likelihood", ["gaussian", "discretized-logistic", "bernoulli"])
def test_probabilities_of_integers_sum_to_what_the_density_has_within_their_bins(likelihood):
    """Of all 2^16 images of 4 x 4 bits, to which a network of zeros gives pixels alike: as many white ones, as likely."""
    examples = Examples((4, 4, 1), levels=2)
    method = vae.build(vae.Config(likelihood=likelihood, width=2, latent=1), adamw(1e-3, 1), examples)
    white = np.arange(16)[None, :] < np.arange(17)[:, None]
    data = jnp.asarray(white.reshape(17, 4, 4, 1) - 0.5, jnp.float32)
    params = zeros(method, data)
    log_prob = jax.jit(functools.partial(method.log_prob, samples=4000))(params, jax.random.key(1), data)
    total = sum(math.comb(16, k) * np.exp(log_prob[k]) for k in range(17))
    expected = (stats.norm.cdf(1) - stats.norm.cdf(-1)) ** 16 if likelihood == "gaussian" else 1
    np.testing.assert_allclose(total, expected, rtol=0.05)


def test_importance_samples_are_the_default_of_points_unless_the_kl_term_is_weighted():
    def samples(examples, **options):
        return vae.resolve(vae.Config(**options), examples).importance_samples

    assert samples(Examples((2,))) > 1
    assert samples(Examples((2,)), beta=4.0) == samples(Examples((2,)), kl_warmup=10) == 1
    assert samples(Examples((2,)), free_bits=0.1) == samples(Examples((8, 8, 1), levels=17)) == 1
    assert samples(Examples((2,)), importance_samples=3) == 3
    resolved = vae.resolve(vae.Config(beta=4.0), Examples((2,)))
    assert vae.resolve(resolved, Examples((2,))) == resolved


def test_the_defaults_follow_the_data():
    assert vae.resolve(vae.Config(), Examples((2,))).likelihood == "gaussian"
    assert vae.resolve(vae.Config(), Examples((8, 8, 1), levels=17)).likelihood == "discretized-logistic"
    assert vae.resolve(vae.Config(), Examples((8, 8, 1))).likelihood == "gaussian"


def test_the_code_of_an_image_is_a_map_if_asked():
    """Of a quarter of its sides; a place of the code is seen by the pixels about it and not by those far off."""
    examples = Examples((32, 32, 1), levels=256)
    method = vae.build(vae.Config(spatial=True, latent=3, width=4), adamw(1e-3, 1), examples)
    images = jax.random.uniform(jax.random.key(0), (2, 32, 32, 1), minval=-1)
    params = method.init(jax.random.key(1), Batch(images)).ema
    z = method.encode(params, jax.random.key(2), images)
    assert z.shape == (2, *method.latent) == (2, 8, 8, 3)
    changed = method.decode(params, z.at[:, 0, 0].add(1.0)) - method.decode(params, z)
    assert (np.abs(changed).max(axis=(0, 3))[:4, :4] > 0).all()
    assert not changed[:, 16:, 16:].any()


def test_it_learns_two_modes():
    """The bound comes within 0.1 nat of minus the entropy, 1.571, and does not exceed it by more than its error bar."""
    dataset = data.load("mixture1d")
    method = vae.build(vae.Config(importance_samples=8, width=32), adamw(2e-3, 1000), dataset.examples)
    state = loop.fit(method, dataset, 0, steps=1000, batch_size=128, steps_per_dispatch=100, progress=False)
    drawn = jax.jit(method.sample, static_argnums=2)(state.ema, jax.random.key(1), 4000)
    samples = np.asarray(dataset.scaling.to_data(drawn))[:, 0]
    assert np.mean(samples < 0) == pytest.approx(0.3, abs=0.08)
    held_out = dataset.scaling.to_model(dataset.test.data[:4000])
    log_prob = np.mean(jax.jit(method.log_prob)(state.ema, jax.random.key(2), held_out)) - np.log(
        dataset.scaling.scale[0]
    )
    assert -1.571 - 0.1 < log_prob < -1.571 + 0.05
