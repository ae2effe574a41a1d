"""Samples drawn over several devices are those of one."""

import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import jax
import numpy as np
import pytest

from genjax import cli
from genjax.arrays import example_keys, normal
from genjax.drawing import draw, jitted_sample
from genjax.training.sharding import over_devices
from genjax.typing import Method

NUM, DEVICES = 11, 4

PROGRAM = """
import sys
import jax, numpy as np
jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
from tests.test_drawing import drawn, parts
np.savez(sys.argv[2], parts=parts(), samples=[drawn(batch_size) for batch_size in (8, 11)])
"""


def method():
    def sample(params, key, num, *, label=None, guidance=1.0):
        return guidance * params["weight"] * normal(key, (num, 3)) + label[:, None]

    return Method(lambda *_: None, lambda *_: None, sample)


def drawn(batch_size):
    params, label = {"weight": np.float32(2)}, np.arange(NUM, dtype=np.int32)
    options = dict(batch_size=batch_size, label=label, guidance=0.5)
    return draw(jitted_sample(method(), options["batch_size"]), params, jax.random.key(0), NUM, **options)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the options are XLA:CPU's")
def test_options_of_sampling_are_those_of_the_number_of_examples():
    def given_for(num):
        return {"xla_cpu_no_such_option": ""} if num == 5 else None

    for num, refused in ((4, False), (5, True)):
        sample = jitted_sample(method()._replace(sampling_options=given_for), num)
        with pytest.raises(jax.errors.JaxRuntimeError, match="no_such_option") if refused else nullcontext():
            sample({"weight": np.float32(2)}, example_keys(jax.random.key(0), num), np.zeros(num), None)


def parts():
    """How many devices have a part of 8 and of 11 examples."""
    placed = [over_devices({"weight": np.ones(3)}, example_keys(jax.random.key(0), num)) for num in (8, 11)]
    return [len(keys.devices()) for _, keys in placed]


@pytest.mark.parametrize("devices", [1, DEVICES])
def test_samples_do_not_depend_on_the_number_of_devices(tmp_path, devices):
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_NUMPY_RANK_PROMOTION": "allow"}
    command = [sys.executable, "-c", PROGRAM, str(devices), str(tmp_path / "drawn.npz")]
    root = Path(__file__).parents[1]
    finished = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    with np.load(tmp_path / "drawn.npz") as found:
        assert found["parts"].tolist() == [devices, 1]
        for samples in found["samples"]:
            np.testing.assert_allclose(samples, drawn(NUM), atol=1e-6)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ({}, min(2, os.cpu_count() or 1)),
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=3"}, 3),
        ({"JAX_NUM_CPU_DEVICES": "3"}, 3),
        ({"JAX_NUM_CPU_DEVICES": "1"}, 1),
    ],
)
def test_a_cpu_has_two_devices_unless_the_environment_says_otherwise(setting, expected):
    program = "import jax; from genjax import cli; cli.use_two_devices_of_a_cpu(); print(len(jax.devices()))"
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", **setting}
    command = [sys.executable, "-c", program]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert int(finished.stdout) == expected


def test_a_process_that_computes_already_keeps_its_devices():
    before = jax.devices()
    cli.use_two_devices_of_a_cpu()
    assert jax.devices() == before
