"""Compiler options by kind of network: the one place where they are chosen."""

import functools

import jax

_WITHOUT_YNN_CONVOLUTIONS = {"xla_cpu_experimental_ynn_fusion_type": ""}


def convolution_options() -> dict[str, str] | None:
    """Options for a `jit` dominated by convolutions on this backend; None where the defaults are best.

    XLA:CPU of jaxlib 0.10 sends convolutions to a library that runs mostly on one core; without it a U-Net's
    training step takes about 0.6 of the time. A jaxlib that does not know the option gets none.
    """
    if jax.default_backend() == "cpu" and _accepted("xla_cpu_experimental_ynn_fusion_type"):
        return dict(_WITHOUT_YNN_CONVOLUTIONS)
    return None


@functools.cache
def _accepted(name: str) -> bool:
    try:
        with jax.ensure_compile_time_eval():
            jax.jit(lambda x: x + 1, compiler_options={name: ""})(0.0)
    except Exception:  # an unknown option is an error of the compiler, of a type that differs by version
        return False
    return True
