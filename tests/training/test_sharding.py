"""Training over several devices learns what one device learns, on those where it pays, and resumes bit for bit."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.methods import METHODS
from genjax.methods.network_options import NetworkOptions
from genjax.training import data, loop, sharding
from genjax.training.checkpoint import Checkpoints
from genjax.training.compilation import FEW_PIXELS, WITHOUT_YNN, convolution_training_options
from genjax.training.steps import adamw
from genjax.typing import Batch, Method

BATCH, STEPS, PER_DISPATCH = 8, 4, 2
CASES = {
    "unet": ("flow-matching", dict(network=NetworkOptions("unet", width=8, depth=1, resolutions=2))),
    "dit": ("flow-matching", dict(network=NetworkOptions("dit", width=16, depth=1, patch=4))),
    "optimal pairs": (
        "flow-matching",
        dict(network=NetworkOptions("unet", width=8, depth=1, resolutions=2), coupling="optimal"),
    ),
    "pixelcnn": ("pixelcnn", {}),
}
PROGRAM = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
from tests.training.test_sharding import report
report(sys.argv[2], sys.argv[3])
"""


@functools.cache
def trained(name, steps=STEPS, on_the_host=False, **options):
    method, dataset = built(name)
    with pytest.MonkeyPatch.context() as patch:
        if on_the_host:
            patch.setattr(loop, "DEVICE_BYTES", 0)
        given = dict(batch_size=BATCH, steps_per_dispatch=PER_DISPATCH, progress=False)
        return loop.fit(method, dataset, 3, steps=steps, **given, **options)


@functools.cache
def built(name):
    method_name, options = CASES[name]
    dataset = data.load("digits")
    config = METHODS[method_name].Config(**options)
    return METHODS[method_name].build(config, adamw(1e-3, STEPS, clip_norm=1.0), dataset.examples), dataset


def evaluated(name, params):
    evaluate = loop.make_evaluate(*built(name), max_examples=32, batch_size=16)
    return evaluate(params, jax.random.key(1))["loss"]


def examples_of_a_device(name, state):
    """How many of a batch's examples the steps of this method have on each device."""
    method, dataset = built(name)
    reads_batch = method._replace(step=lambda state, batch: (state, {"loss": jnp.mean(batch.data**2)}))
    chunk = Batch(np.zeros((PER_DISPATCH, BATCH, *dataset.examples.event_shape), np.float32))
    dispatch = loop.make_dispatch(reads_batch, dataset.scaling, BATCH)
    (_, _, of_chunk), _ = dispatch.lower(state, None, chunk).compile().input_shardings
    return of_chunk.data.shard_shape(chunk.data.shape)[1]


def report(name, file):
    """What this process trains, in a file: on how many devices, the values, and those of a run that was cut."""
    state = trained(name)
    leaves = {"devices": len(state.step.devices()), "examples": examples_of_a_device(name, state)}
    leaves |= {f"params{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state.params))}
    leaves |= {f"host{i}": leaf for i, leaf in enumerate(jax.tree.leaves(trained(name, on_the_host=True).params))}
    checkpoints = Checkpoints(Path(file).parent / "checkpoints")
    checkpoints.save(trained(name, steps=PER_DISPATCH))
    method, dataset = built(name)
    template = jax.eval_shape(method.init, jax.random.key(0), loop.example_batch(dataset))
    resumed = trained.__wrapped__(name, state=checkpoints.restore(template))
    leaves |= {f"resumed{i}": leaf for i, leaf in enumerate(jax.tree.leaves(resumed.params))}
    np.savez(file, loss=evaluated(name, state.ema), **leaves)


@pytest.mark.parametrize(
    ("name", "devices"), [("unet", 2), ("unet", 4), ("dit", 2), ("optimal pairs", 2), ("pixelcnn", 2)]
)
def test_devices_learn_what_one_learns_and_resume_bit_for_bit(tmp_path, name, devices):
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_NUMPY_RANK_PROMOTION": "allow", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", PROGRAM, str(devices), name, str(tmp_path / "found.npz")]
    root = Path(__file__).parents[2]
    finished = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    alone = trained(name)
    with np.load(tmp_path / "found.npz") as found:
        used = 1 if name == "dit" else devices
        assert (found["devices"], found["examples"]) == (used, BATCH // used)
        for i, leaf in enumerate(jax.tree.leaves(alone.params)):
            np.testing.assert_allclose(found[f"params{i}"], leaf, atol=2e-5)
            np.testing.assert_array_equal(found[f"host{i}"], found[f"params{i}"])
            np.testing.assert_array_equal(found[f"resumed{i}"], found[f"params{i}"])
        np.testing.assert_allclose(found["loss"], evaluated(name, alone.ema), rtol=1e-4)


def some_method(**options):
    return Method(lambda *_: None, lambda *_: None, lambda *_: None, **options)


@pytest.mark.parametrize(
    ("backend", "devices", "batch_size", "asks", "shared"),
    [
        ("cpu", 2, 8, True, True),
        ("cpu", 2, 8, False, False),
        ("cpu", 2, 7, True, False),
        ("cpu", 1, 8, True, False),
        ("gpu", 4, 8, False, True),
        ("gpu", 4, 8, True, True),
        ("gpu", 4, 6, True, False),
        ("gpu", 1, 8, True, False),
    ],
)
def test_where_devices_share_steps(monkeypatch, backend, devices, batch_size, asks, shared):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax, "local_device_count", lambda: devices)
    on_one, on_all = {"on": "one"}, {"on": f"all, {batch_size}"}
    asked = (lambda size: {"on": f"all, {size}"}) if asks else None
    method = some_method(compiler_options=on_one, training_options=asked)
    whole, split = sharding.of_steps(method, batch_size)
    assert (whole is not None) == (split is not None) == shared
    assert sharding.step_options(method, batch_size) == (on_all if shared and asks else on_one)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the options are XLA:CPU's")
@pytest.mark.parametrize(
    ("batch_size", "devices", "kept"),
    [
        (FEW_PIXELS // 64 - 1, 2, True),
        (FEW_PIXELS // 64, 2, False),
        (8, 1, False),
    ],
)
def test_the_library_on_one_core_stays_where_pixels_are_few_and_each_core_is_a_device(
    monkeypatch, batch_size, devices, kept
):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(jax, "local_device_count", lambda: devices)
    chosen = convolution_training_options((8, 8, 1))(batch_size) or {}
    assert (not WITHOUT_YNN.keys() & chosen.keys()) == kept
