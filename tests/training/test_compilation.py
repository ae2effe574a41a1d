"""Compiler options and parts of a batch change the time and nothing else; options are left out where they were not measured or are
not known."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import pytest

from genjax.environment import SMALL_LOOPS
from genjax.methods import METHODS, network_options
from genjax.networks.unet import unet
from genjax.training import compilation, sharding
from genjax.training.steps import adamw
from genjax.typing import Batch, Examples, Net

on_cpu = pytest.mark.skipif(jax.default_backend() != "cpu", reason="the options are XLA:CPU's")


@pytest.fixture(autouse=True)
def _nothing_asked_of_xla(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)


@on_cpu
def test_a_jaxlib_that_was_not_measured_gets_no_options(monkeypatch):
    assert compilation.convolution_options()
    monkeypatch.setattr(jaxlib, "__version__", "0.99.1")
    assert compilation.convolution_options() is None


@on_cpu
def test_an_option_that_the_compiler_does_not_know_is_left_out(monkeypatch):
    monkeypatch.setattr(compilation, "WITHOUT_YNN", {"xla_cpu_no_such_option": ""})
    assert compilation.convolution_options() is None
    assert compilation.perceptron_sampling_options(compilation.MANY_POINTS) == compilation.WIDE_VECTORS
    monkeypatch.setattr(compilation, "WIDE_VECTORS", {"xla_cpu_prefer_vector_width": "wide"})
    assert compilation.perceptron_sampling_options(1) is None
    assert compilation.transformer_sampling_options(1) is None


@on_cpu
def test_many_points_are_sampled_without_the_library_and_few_in_one_kernel(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", SMALL_LOOPS)
    few, many = map(compilation.perceptron_sampling_options, (compilation.MANY_POINTS - 1, compilation.MANY_POINTS))
    assert few == compilation.WIDE_VECTORS
    assert many == compilation.WITHOUT_YNN | compilation.LOOPS_AS_THEY_COME | compilation.WIDE_VECTORS
    monkeypatch.setattr(jaxlib, "__version__", "0.99.1")
    assert compilation.perceptron_sampling_options(compilation.MANY_POINTS) is None


@on_cpu
@pytest.mark.parametrize(
    ("devices", "processors", "num", "kept"),
    [
        (2, 2, 16, True),
        (2, 2, 15, False),
        (1, 1, 16, False),
        (1, 2, 16, False),
        (2, 8, 16, False),
        (8, 8, 16, True),
        (2, 2, 1, True),
    ],
)
def test_convolutions_keep_the_library_where_each_processor_has_a_part_of_the_images_and_for_one_image(
    monkeypatch, devices, processors, num, kept
):
    monkeypatch.setenv("XLA_FLAGS", SMALL_LOOPS)
    monkeypatch.setattr(jax, "local_device_count", lambda: devices)
    monkeypatch.setattr(os, "cpu_count", lambda: processors)
    expected = compilation.LOOPS_AS_THEY_COME | compilation.WIDE_VECTORS | ({} if kept else compilation.WITHOUT_YNN)
    assert compilation.convolution_sampling_options(num) == expected


def test_options_change_neither_outputs_nor_gradients():
    net, x, t = (
        unet(base=8, multipliers=(1, 2), blocks=1),
        jax.random.normal(jax.random.key(0), (2, 8, 8, 1)),
        jnp.asarray([0.2, 0.7]),
    )
    params = jax.tree.map(lambda leaf: leaf + 0.1, net.init(jax.random.key(1), x, t))

    def loss(params):
        output = net.apply(params, x, t)
        return jnp.mean(output**2), output

    gradient = jax.grad(loss, has_aux=True)
    default, chosen = (
        jax.jit(gradient, compiler_options=options)(params) for options in (None, compilation.convolution_options())
    )
    for one, other in zip(jax.tree.leaves(default), jax.tree.leaves(chosen), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


PROGRAM = """
import re
import jax
import numpy as np
jax.config.update("jax_num_cpu_devices", 2)
from tests.training.test_compilation import in_parts_on_devices
text, outputs, expected, shard = in_parts_on_devices()
assert "while" in text
assert not re.search("all-gather|all-to-all|collective|all-reduce", text)
assert shard == 12
np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5)
"""


def recorded(seen):
    """`x` turned by a convolution, plus t and label; `seen` gets the shapes of each call."""

    def apply(params, x, t, label):
        seen.append((x.shape, t.shape, label.shape))
        turned = jax.lax.conv_general_dilated(x, params, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return turned + (t + 10 * label)[:, None, None, None]

    return Net(lambda key: jnp.eye(3)[None, None], apply)


def images(num):
    x = jax.random.normal(jax.random.key(0), (num, 8, 4, 3))
    return x, jnp.arange(num) / num, jnp.arange(num) % 7


@on_cpu
@pytest.mark.parametrize(
    ("devices", "cores", "num", "sizes"),
    [
        (1, 1, 8, [8]),
        (1, 1, 9, [3]),
        (1, 1, 24, [8]),
        (1, 2, 24, [12]),
        (2, 2, 24, [12]),
        (2, 2, 25, [25]),
        (2, 2, 27, [9]),
        (2, 2, 26, [26]),
        (2, 8, 25, [25]),
        (8, 2, 64, [64]),
        (8, 2, 72, [24]),
        (2, 2, 1, [1]),
    ],
)
@pytest.mark.parametrize("patch", [1, 4])
def test_parts_are_what_a_core_s_cache_holds_and_rows_stay_in_their_order(
    monkeypatch, devices, cores, num, sizes, patch
):
    monkeypatch.setattr(jax, "local_device_count", lambda: devices)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    seen = []
    net = recorded(seen)
    params, inputs = net.init(None), images(num)
    outputs = compilation.in_parts(net, 8 * 32 // patch**2, patch=patch).apply(params, *inputs)
    assert [shapes[0][0] for shapes in seen] == sizes
    assert all(len({shape[0] for shape in shapes}) == 1 for shapes in seen)
    np.testing.assert_allclose(outputs, net.apply(params, *inputs), rtol=1e-5, atol=1e-5)


def in_parts_on_devices():
    """The program of 24 images in parts, its outputs, those of all at once, and how many of them are on each device."""
    net = recorded([])
    params, inputs = net.init(None), images(24)
    given = sharding.over_devices(params, *inputs)
    compiled = jax.jit(compilation.in_parts(net, 8 * 32).apply).lower(*given).compile()
    outputs = compiled(*given)
    shard = outputs.sharding.shard_shape(outputs.shape)[0]
    return compiled.as_text(), np.asarray(outputs), np.asarray(net.apply(params, *inputs)), shard


@on_cpu
def test_devices_exchange_nothing_for_the_parts_of_a_batch_that_they_share():
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    command, root = [sys.executable, "-c", PROGRAM], Path(__file__).parents[2]
    finished = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize("name", ["ddpm", "edm", "ncsn", "score-sde", "flow-matching", "rectified-flow", "consistency"])
@pytest.mark.parametrize(
    ("options", "parts"),
    [(dict(network="unet"), [(compilation.CACHED_PIXELS, 1)]), (dict(network="dit"), [(compilation.CACHED_TOKENS, 2)])],
    ids=["unet", "dit"],
)
def test_images_are_sampled_in_parts_and_trained_on_all_at_once(monkeypatch, name, options, parts):
    asked, called = [], []

    def watched(net, positions, *, patch=1):
        asked.append((positions, patch))
        return Net(net.init, lambda *inputs: called.append(len(inputs)) or net.apply(*inputs))

    monkeypatch.setattr(network_options, "in_parts", watched)
    config = METHODS[name].Config(network=network_options.NetworkOptions(**options, width=16, depth=1))
    method = METHODS[name].build(config, adamw(1e-3, 4), Examples((8, 8, 1)))
    batch = Batch(jnp.zeros((4, 8, 8, 1)))
    state = jax.eval_shape(method.init, jax.random.key(0), batch)
    jax.eval_shape(method.step, state, batch)
    assert not called
    jax.eval_shape(lambda params: method.sample(params, jax.random.key(0), 4, steps=2), state.ema)
    assert called
    assert asked == parts


def test_points_are_sampled_all_at_once():
    net = recorded([])
    assert network_options.sampling_net(network_options.NetworkOptions("mlp"), net) is net
