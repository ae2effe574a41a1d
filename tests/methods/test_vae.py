"""The variational autoencoder: what it refuses, its bounds in order, and that a sample is its key's alone."""

import jax
import numpy as np
import pytest

from genjax.arrays import example_keys
from genjax.errors import UsageError
from genjax.methods import vae
from genjax.training import data, loop
from genjax.training.steps import adamw
from genjax.typing import Examples

CONFIGS = {
    "moons": {},
    "moons, importance": {"importance_samples": 4},
    "digits": {"width": 4, "latent": 3, "kl_warmup": 2},
    "digits, bernoulli": {"width": 4, "latent": 3, "likelihood": "bernoulli"},
    "digits, gaussian": {"width": 4, "latent": 3, "likelihood": "gaussian", "free_bits": 0.1},
}


def trained(name, steps=4):
    dataset = data.load(name.split(",")[0])
    method = vae.build(vae.Config(**CONFIGS[name]), adamw(1e-3, steps), dataset.examples)
    per_dispatch = min(vae.recommended(dataset.examples).steps_per_dispatch, steps)
    options = dict(batch_size=16, steps_per_dispatch=per_dispatch, progress=False)
    return method, dataset, loop.fit(method, dataset, 0, steps=steps, **options)


@pytest.mark.parametrize("name", CONFIGS)
def test_trains_samples_reconstructs_and_bounds(name):
    method, dataset, state = trained(name)
    shape = dataset.examples.event_shape
    keys = example_keys(jax.random.key(0), 6)
    samples = method.sample(state.ema, keys, 6)
    assert samples.shape == (6, *shape)
    np.testing.assert_allclose(samples[2:4], method.sample(state.ema, keys[2:4], 2), atol=1e-5)
    batch = loop.example_batch(dataset, 6)
    assert method.reconstruct(state.ema, jax.random.key(0), batch.data).shape == batch.data.shape
    assert np.isfinite(method.evaluate(state.ema, jax.random.key(0), batch)["loss"])

    def bound(samples):
        keys = jax.random.split(jax.random.key(1), 20)
        return np.mean([method.log_prob(state.ema, key, batch.data, samples=samples) for key in keys])

    assert bound(1) < bound(64)


@pytest.mark.parametrize(
    ("options", "examples", "told"),
    [
        ({"latent": 0}, Examples((2,)), "--latent is 0; expected at least 1"),
        ({"importance_samples": 0}, Examples((2,)), "--importance-samples is 0"),
        ({"importance_samples": 5, "beta": 2.0}, Examples((2,)), "do not apply"),
        ({"likelihood": "discretized-logistic"}, Examples((2,)), "these data take gaussian"),
        ({"likelihood": "bernoulli"}, Examples((2,)), "points take gaussian"),
        ({}, Examples((30, 30, 1), levels=256), "multiple of 4"),
    ],
)
def test_what_cannot_work_is_refused(options, examples, told):
    with pytest.raises(UsageError, match=told):
        vae.resolve(vae.Config(**options), examples)


def test_the_defaults_follow_the_data():
    assert vae.resolve(vae.Config(), Examples((2,))).likelihood == "gaussian"
    assert vae.resolve(vae.Config(), Examples((8, 8, 1), levels=17)).likelihood == "discretized-logistic"
    assert vae.resolve(vae.Config(), Examples((8, 8, 1))).likelihood == "gaussian"


def test_it_learns_two_modes():
    """The bound comes within 0.1 nat of minus the entropy, 1.571, and does not exceed it by more than its error bar."""
    dataset = data.load("mixture1d")
    method = vae.build(vae.Config(importance_samples=16), adamw(1e-3, 1500), dataset.examples)
    state = loop.fit(method, dataset, 0, steps=1500, batch_size=128, steps_per_dispatch=100, progress=False)
    samples = np.asarray(dataset.scaling.to_data(method.sample(state.ema, jax.random.key(1), 4000)))[:, 0]
    assert np.mean(samples < 0) == pytest.approx(0.3, abs=0.08)
    held_out = dataset.scaling.to_model(dataset.test.data[:4000])
    log_prob = np.mean(method.log_prob(state.ema, jax.random.key(2), held_out)) - np.log(dataset.scaling.scale[0])
    assert -1.571 - 0.1 < log_prob < -1.571 + 0.05
