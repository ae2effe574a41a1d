"""What a backend needs to be fast, by kind of network: the one place where it is chosen.

XLA:CPU of jaxlib 0.10 runs the weight gradient of a convolution about 25 times slower inside a loop than outside
(measured on 8x8 images): the layout of its operands cannot be changed within a loop body, which rules out the fast
kernels (jax-ml/jax issue 12868). There, training dispatches one step at a time. Sampling, which has no weight
gradient, is as fast inside its scan as outside.
"""

import functools
import math
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib

from genjax.environment import small_loops_are_asked_for
from genjax.typing import Array, CompilerOptions, Net, Params

WITHOUT_YNN = {"xla_cpu_experimental_ynn_fusion_type": ""}
"""XLA:CPU without the library that it sends fused convolutions and products to."""

LOOPS_AS_THEY_COME = {"xla_backend_extra_options": ""}
"""XLA:CPU without `environment.use_one_kernel_for_small_loops`."""

WIDE_VECTORS = {"xla_cpu_prefer_vector_width": "512"}
"""XLA:CPU's own loops with vectors of 16 numbers, where the processor has them; it prefers 8."""

_MEASURED = ("0.10",)
"""Versions of jaxlib for which `python -m benchmarks.options` found these choices faster."""

FEW_PIXELS = 2**14
"""Of a batch in training, below which that library's convolutions are faster; their weight gradients become slow with more."""

MANY_POINTS = 1024
"""Of a call, from which on a perceptron is sampled without that library."""

CACHED_PIXELS = 2**13
"""Of a core's part of a batch in sampling, whose features in a U-Net a cache of 2 MiB holds: larger batches take 1.03 to 1.19 of
the time an image if called whole (`python -m benchmarks.parts`)."""

CACHED_TOKENS = 2**9
"""Of a core's part of a batch in sampling, whose features in a transformer such a cache holds, and enough for its products: larger
batches take 1.04 to 1.33 of the time an image."""


def convolution_options() -> CompilerOptions:
    """Options for a `jit` dominated by convolutions on this backend; None where the defaults are best.

    XLA:CPU of jaxlib 0.10 sends convolutions to a library that runs mostly on one core; without it a U-Net's
    training step takes about 0.6 of the time. A jaxlib for which this was not measured, or that does not know the
    option, does not get it. Small loops are not compiled into one kernel, within which a convolution takes ten times as long.
    """
    if jax.default_backend() != "cpu":
        return None
    options = LOOPS_AS_THEY_COME if small_loops_are_asked_for() else {}
    return options | _measured(WITHOUT_YNN) or None


def convolution_sampling_options(num: int) -> CompilerOptions:
    """Options for a `jit` dominated by convolutions that samples `num` examples a call over all devices of this backend.

    Where each processor is a device of its own, as `cli.use_two_devices_of_a_cpu` makes it of two, a library that keeps to
    one core loses nothing: with it a U-Net's sampling takes 0.8 of the time. It stays, so, where devices share the examples, and
    for one image, which takes 0.89 to 0.94 of the time with it. With wide vectors a U-Net takes 0.98 of the time, for one image
    0.95.
    """
    shared = num % jax.local_device_count() == 0 and _each_core_is_a_device()
    options = _with_ynn(convolution_options()) if shared or num == 1 else convolution_options()
    return (options or {}) | _wide_vectors() or None


def in_parts(net: Net, positions: int, *, patch: int = 1) -> Net:
    """`net`, for images `[B, H, W, C]` in sampling, which on CPU takes parts of a large batch in turn, as many as a cache holds.

    Of a batch that devices share, as `sharding.over_devices` splits it, each takes a part of its own part. Parts are equal; a batch
    that has none of half to all of that size, as a prime number of images, is taken whole. Not for training: the weight gradient
    of a convolution is slow in a loop.

    Args:
        net: of any inputs whose leading axis is B.
        positions: that a core takes at a time, `CACHED_PIXELS` or `CACHED_TOKENS`.
        patch: side of a position in pixels.
    """

    def apply(params: Params, x: Array, *of_images: Array) -> Array:
        of_an_image = max(math.prod(x.shape[1:3]) // patch**2, 1)
        parts, devices = _parts_and_devices(len(x), max(positions // of_an_image, 1))
        if parts == 1:
            return net.apply(params, x, *of_images)

        def split(values: Array) -> Array:
            return _exchanged(values, devices, parts).reshape(parts, -1, *values.shape[1:])

        outputs = jax.lax.map(lambda part: net.apply(params, *part), (split(x), *map(split, of_images)))
        return _exchanged(outputs.reshape(-1, *outputs.shape[2:]), parts, devices)

    return Net(net.init, apply)


def convolution_training_options(event_shape: tuple[int, ...]) -> Callable[[int], CompilerOptions]:
    """Options for a `jit` of steps dominated by convolutions, of the number of examples that all devices share.

    On two devices of two cores a U-Net's step takes 0.8 to 0.9 of the time on one, as do flows and PixelCNN, if the library that
    keeps to one core stays where pixels are few. (A GAN takes 1.1 to 1.3, a VAE 1.05: they have none.)

    Args:
        event_shape: `[H, W, C]` of an image.
    """
    pixels = math.prod(event_shape[:2])

    def options(batch_size: int) -> CompilerOptions:
        few = batch_size * pixels < FEW_PIXELS
        return _with_ynn(convolution_options()) if few and _each_core_is_a_device() else convolution_options()

    return options


def perceptron_sampling_options(num: int) -> CompilerOptions:
    """Options for a `jit` that samples `num` points a call from a perceptron; None where the defaults are best.

    XLA:CPU of jaxlib 0.10 takes 0.9 of the time for products of many rows without the library that it sends them to.
    A loop is not compiled into one kernel then, for products are slow within. Vectors are wide: 0.94 of the time with 1,024 points,
    0.82 with 16,384, and with one `samplers.row_products`.
    """
    options = convolution_options() or {}
    many = num >= MANY_POINTS and options.keys() >= WITHOUT_YNN.keys()
    return (options if many else {}) | _wide_vectors() or None


def transformer_sampling_options(num: int) -> CompilerOptions:
    """Options for a `jit` that samples any number of examples from a transformer: wide vectors, 0.98 to 0.99 of the time."""
    return _wide_vectors() or None


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


def _parts_and_devices(num: int, of_a_core: int) -> tuple[int, int]:
    """In how many equal parts a device takes its own part of `num` images, and how many devices share them."""
    count = jax.local_device_count()
    devices = count if num % count == 0 else 1
    own, cores = num // devices, max((os.cpu_count() or 1) // devices, 1)
    least = math.ceil(own / (cores * of_a_core))
    if jax.default_backend() != "cpu" or least == 1:
        return 1, devices
    return next((parts for parts in range(least, 2 * least) if own % parts == 0), 1), devices


def _exchanged(rows: Array, outer: int, inner: int) -> Array:
    """Rows `[outer * inner * k, ...]` in the order `[inner * outer * k, ...]`."""
    tail = rows.shape[1:]
    return rows.reshape(outer, inner, -1, *tail).swapaxes(0, 1).reshape(-1, *tail)


def _each_core_is_a_device() -> bool:
    return jax.local_device_count() >= max(os.cpu_count() or 1, 2)


def _with_ynn(options: CompilerOptions) -> CompilerOptions:
    return {name: value for name, value in (options or {}).items() if name not in WITHOUT_YNN} or None


def _wide_vectors() -> dict[str, Any]:
    return _measured(WIDE_VECTORS) if jax.default_backend() == "cpu" else {}


def _measured(options: dict[str, Any]) -> dict[str, Any]:
    """The options, if they were measured for this jaxlib and it knows them; else none."""
    version = ".".join(jaxlib.__version__.split(".")[:2])
    return options if version in _MEASURED and all(_accepted(*option) for option in options.items()) else {}


@functools.cache
def _accepted(name: str, value: Any) -> bool:
    try:
        with jax.ensure_compile_time_eval():
            jax.jit(lambda x: x + 1, compiler_options={name: value})(0.0)
    except Exception:  # an unknown option is an error of the compiler, of a type that differs by version
        return False
    return True
