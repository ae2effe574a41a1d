"""A batch in equal parts on several devices, parameters on each: what lies where."""

from typing import Any, NamedTuple

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from genjax.typing import CompilerOptions, Method, Params


class StepShardings(NamedTuple):
    """Where training steps have things: `whole` their state and data set, `split` chunks `[K, B, ...]`; None is as they come."""

    whole: NamedSharding | None
    split: NamedSharding | None


def over_devices(params: Params, *of_examples: Any) -> tuple[Any, ...]:
    """What a jitted function is given, for a call that all devices share: `params` on each, `[B, ...]` in equal parts.

    With one device, or a number of examples that they do not divide, all is as it was.
    """
    if not _devices_divide(jax.tree.leaves(of_examples)[0].shape[0]):
        return params, *of_examples
    whole, split = _on_all(), _on_all("examples")
    return jax.device_put(params, whole), *(jax.device_put(values, split) for values in of_examples)


def of_steps(method: Method, batch_size: int) -> StepShardings:
    """How devices share steps of `batch_size` examples: not at all, if they do not divide it, or on CPU if it does not pay.

    There it pays where `method.training_options` says so, and other methods step on one device.
    """
    pays = method.training_options is not None or jax.default_backend() != "cpu"
    if not (pays and _devices_divide(batch_size)):
        return StepShardings(None, None)
    return StepShardings(_on_all(), _on_all(None, "examples"))


def step_options(method: Method, batch_size: int) -> CompilerOptions:
    """Compiler options for a `jit` with these shardings."""
    shared = of_steps(method, batch_size).whole is not None
    if not shared or method.training_options is None:
        return method.compiler_options
    return method.training_options(batch_size)


def _devices_divide(num: int) -> bool:
    count = jax.local_device_count()
    return count > 1 and num % count == 0


def _on_all(*axes: str | None) -> NamedSharding:
    devices = jax.local_devices()
    mesh = jax.make_mesh((len(devices),), ("examples",), (AxisType.Auto,), devices=devices)
    return NamedSharding(mesh, PartitionSpec(*axes))
