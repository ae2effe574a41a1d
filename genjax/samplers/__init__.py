"""Samplers: each a pair of pure functions `(init, step)`, all run by the one scan of `sample`.

`SAMPLERS` names them for the scripts: `SAMPLERS[name](path)` is the sampler with its default options.
"""

from collections.abc import Callable

from genjax.samplers.ancestral import ddim, ddpm
from genjax.samplers.guidance import classifier_free
from genjax.samplers.loop import Sampler, calls_per_step, sample
from genjax.samplers.ode import euler, heun, midpoint, rk4
from genjax.samplers.stochastic import euler_maruyama
from genjax.typing import Path

SAMPLERS: dict[str, Callable[[Path], Sampler]] = {
    "euler": euler,
    "heun": heun,
    "midpoint": midpoint,
    "rk4": rk4,
    "ddim": lambda path: ddim(),
    "ddpm": lambda path: ddpm(),
    "ddpm-large": lambda path: ddpm("large"),
    "euler-maruyama": euler_maruyama,
}

__all__ = [
    "SAMPLERS",
    "Sampler",
    "calls_per_step",
    "classifier_free",
    "ddim",
    "ddpm",
    "euler",
    "euler_maruyama",
    "heun",
    "midpoint",
    "rk4",
    "sample",
]
