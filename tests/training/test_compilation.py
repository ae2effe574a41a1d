"""Compiler options change the time and nothing else, and are left out where they were not measured or are not known."""

import os

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import pytest

from genjax.environment import SMALL_LOOPS
from genjax.networks.unet import unet
from genjax.training import compilation

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
