"""What a backend needs to be fast, by kind of network: the one place where it is chosen.

XLA:CPU of jaxlib 0.10 runs the weight gradient of a convolution about 25 times slower inside a loop than outside
(measured on 8x8 images): the layout of its operands cannot be changed within a loop body, which rules out the fast
kernels (jax-ml/jax issue 12868). There, training dispatches one step at a time. Sampling, which has no weight
gradient, is as fast inside its scan as outside.
"""

import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib

from genjax.environment import SMALL_LOOPS
from genjax.typing import Array

WITHOUT_YNN = {"xla_cpu_experimental_ynn_fusion_type": ""}
"""XLA:CPU without the library that it sends fused convolutions and products to."""

LOOPS_AS_THEY_COME = {"xla_backend_extra_options": ""}
"""XLA:CPU without `environment.use_one_kernel_for_small_loops`."""

_CONVOLUTIONS_WANT_IT = ("0.10",)
"""Versions of jaxlib for which `python -m benchmarks.options` found convolutions faster so, and other networks not."""


def convolution_options() -> dict[str, str] | None:
    """Options for a `jit` dominated by convolutions on this backend; None where the defaults are best.

    XLA:CPU of jaxlib 0.10 sends convolutions to a library that runs mostly on one core; without it a U-Net's
    training step takes about 0.6 of the time. A jaxlib for which this was not measured, or that does not know the
    option, does not get it. Small loops are not compiled into one kernel, within which a convolution takes ten times as long.
    """
    if jax.default_backend() != "cpu":
        return None
    version = ".".join(jaxlib.__version__.split(".")[:2])
    options = LOOPS_AS_THEY_COME if SMALL_LOOPS in os.environ.get("XLA_FLAGS", "") else {}
    if version in _CONVOLUTIONS_WANT_IT and all(map(_accepted, WITHOUT_YNN)):
        options = options | WITHOUT_YNN
    return options or None


def convolution_steps_per_dispatch() -> int:
    """How many training steps of a convolutional network to compile into one call on this backend."""
    return 1 if jax.default_backend() == "cpu" else 10


def convolution_cond(predicate: Array, true: Callable[[], Any], false: Callable[[], Any]) -> Any:
    """`lax.cond` for branches with gradients of convolutions.

    A branch on CPU is as slow as a loop's body: there both are computed and one is kept.
    """
    if jax.default_backend() != "cpu":
        return jax.lax.cond(predicate, true, false)
    return jax.tree.map(lambda one, other: jnp.where(predicate, one, other), true(), false())


@functools.cache
def _accepted(name: str) -> bool:
    try:
        with jax.ensure_compile_time_eval():
            jax.jit(lambda x: x + 1, compiler_options={name: ""})(0.0)
    except Exception:  # an unknown option is an error of the compiler, of a type that differs by version
        return False
    return True
