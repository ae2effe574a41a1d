"""Latent diffusion: codes are standardised, the first stage stays, samples are decoded codes; what it refuses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.errors import UsageError
from genjax.methods import flow_matching, gan, latent_diffusion, vae
from genjax.methods.network_options import NetworkOptions
from genjax.training import data, loop
from genjax.training.steps import adamw
from genjax.typing import OtherRun

CODES = flow_matching.Config(class_conditional=True, network=NetworkOptions(width=16, depth=1))
MAPS = dataclasses.replace(CODES, network=NetworkOptions(width=8))


def first_stage(data_name="digits", module=vae, **options):
    dataset = data.load(data_name)
    method = module.build(module.Config(**options), adamw(1e-3, 1), dataset.examples)
    params = method.init(jax.random.key(1), loop.example_batch(dataset, 8)).ema
    return OtherRun(module.__name__.rpartition(".")[2], method, 0, lambda: params)


@pytest.fixture(scope="module", params=[{"latent": 3}, {"latent": 3, "spatial": True}], ids=["vector", "map"])
def built(request):
    dataset, first = data.load("digits"), first_stage(width=4, **request.param)
    codes = CODES if len(first.method.latent) == 1 else MAPS
    method = latent_diffusion.build(latent_diffusion.Config(codes=codes), adamw(1e-2, 10), dataset.examples, first)
    batch = loop.example_batch(dataset, 64)
    return method, first, batch, method.init(jax.random.key(0), batch), codes


def test_the_codes_of_the_first_batch_have_mean_0_and_deviation_1(built):
    _, first, batch, state, _ = built
    z = np.asarray(first.method.encode(first.params(), jax.random.fold_in(jax.random.key(0), 3), batch.data))
    scaled = (z - np.asarray(state.ema["mean"])) / np.asarray(state.ema["deviation"])
    channels = scaled.reshape(-1, 3)
    np.testing.assert_allclose(channels.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(channels.std(axis=0), 1, atol=1e-5)


def test_training_changes_the_model_and_not_the_first_stage(built):
    method, first, batch, state, _ = built
    after, metrics = jax.jit(method.step)(state, batch)
    assert np.isfinite(metrics["loss"])
    for name in ("first_stage", "mean", "deviation"):
        jax.tree.map(np.testing.assert_array_equal, after.ema[name], state.ema[name])
    jax.tree.map(np.testing.assert_array_equal, after.ema["first_stage"], first.params())
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), after.ema["model"], state.ema["model"])
    assert max(jax.tree.leaves(moved)) > 0
    assert np.isfinite(method.evaluate(after.ema, jax.random.key(0), batch)["loss"])


def test_samples_are_decoded_codes_and_so_is_the_trajectory(built):
    method, first, _, state, codes = built
    params, label = state.ema, jnp.asarray([1, 2, 3, 4])
    options = dict(steps=3, sampler="euler", label=label, guidance=2.0)
    samples, trajectory = method.sample(params, jax.random.key(0), 4, **options, trace=True)
    inner = flow_matching.build(codes, adamw(1e-2, 10), latent_diffusion._codes(data.load("digits").examples, first))
    z = inner.sample(params["model"], jax.random.key(0), 4, **options)
    mean, deviation = (np.asarray(params[name]) for name in ("mean", "deviation"))
    decoded = first.method.decode(first.params(), jnp.asarray(mean + deviation * np.asarray(z)))
    np.testing.assert_allclose(samples, decoded, atol=1e-5)
    assert samples.shape == (4, 8, 8, 1)
    assert trajectory.x.shape == (4, 4, 8, 8, 1)
    np.testing.assert_allclose(trajectory.x[-1], samples, atol=1e-6)
    assert method.network_calls(**options) == 6
    assert method.network_calls() == 50  # Heun's two calls at each of 25 steps
    held = loop.example_batch(data.load("digits"), 4).data
    again = method.reconstruct(params, jax.random.key(0), held)
    np.testing.assert_allclose(again, first.method.reconstruct(first.params(), jax.random.key(0), held), atol=1e-6)


@pytest.mark.parametrize(
    ("data_name", "other", "told"),
    [
        ("digits", None, "latent-diffusion needs --first-stage RUN_DIR, a run of vae on the same data"),
        ("moons", {"data_name": "moons"}, "latent-diffusion is for images; points take flow-matching"),
        ("digits", {"module": gan}, "is a run of gan, which has no encoder: train vae"),
    ],
)
def test_what_cannot_work_is_refused(data_name, other, told):
    first = None if other is None else first_stage(**other)
    with pytest.raises(UsageError, match=told):
        latent_diffusion.resolve(latent_diffusion.Config(), data.load(data_name).examples, first)
