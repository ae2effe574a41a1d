"""Samplers: each a pair of pure functions `(init, step)`, all run by the one scan of `sample`.

`SAMPLERS` names them for the scripts: `SAMPLERS[name](path, first_order_end=None)` is the sampler with its default
options; `first_order_end` (see `genjax.samplers.ode`) matters only to those that call the network where they land.
"""

from collections.abc import Callable

from genjax.samplers.adaptive import Adaptive, sample_adaptively
from genjax.samplers.ancestral import ddim, ddpm
from genjax.samplers.brownian import brownian_noise
from genjax.samplers.consistency import consistency_sample
from genjax.samplers.guidance import autoguided, classifier_free, classifier_guided, thresholded, within
from genjax.samplers.inverse_problems import given_measurement, inpainting
from genjax.samplers.langevin_dynamics import annealed_langevin, dwell, langevin, mala, predictor_corrector
from genjax.samplers.loop import Sampler, calls_per_step, sample
from genjax.samplers.multistep import deis, dpm_solver, dpm_solver_pp, lms, plms, unipc
from genjax.samplers.ode import euler, heun, midpoint, rk4
from genjax.samplers.pndm import pndm, pndm_times
from genjax.samplers.resampling import importance_resample
from genjax.samplers.singlestep import dpm_solver_pp_singlestep, dpm_solver_singlestep
from genjax.samplers.stochastic import ancestral, churned, euler_maruyama, restarting

SAMPLERS: dict[str, Callable[..., Sampler]] = {
    "euler": lambda path, **_: euler(path),
    "heun": heun,
    "midpoint": lambda path, **_: midpoint(path),
    "rk4": rk4,
    "ddim": lambda path, **_: ddim(),
    "ddpm": lambda path, **_: ddpm(),
    "ddpm-large": lambda path, **_: ddpm("large"),
    "heun-churn": lambda path, **options: churned(
        heun(path, **options), path, lowest=0.05, highest=50.0, noise_scale=1.003
    ),
    "dpm-2": lambda path, **_: dpm_solver_singlestep(path, order=2),
    "dpm-3": lambda path, **_: dpm_solver_singlestep(path, order=3),
    "dpm-2-ancestral": lambda path, **_: ancestral(dpm_solver_singlestep(path, order=2), path),
    "dpmpp-2s": lambda path, **_: dpm_solver_pp_singlestep(path, order=2),
    "dpmpp-2m": lambda path, **_: dpm_solver_pp(2),
    "dpmpp-3m": lambda path, **_: dpm_solver_pp(3),
    "dpmpp-2m-sde": lambda path, **_: dpm_solver_pp(2, eta=1.0),
    "unipc": lambda path, **_: unipc(3),
    "deis": lambda path, **_: deis(path),
    "lms": lambda path, **_: lms(),
    "plms": lambda path, **_: plms(),
    "euler-maruyama": lambda path, **_: euler_maruyama(path),
    "predictor-corrector": lambda path, **_: predictor_corrector(euler_maruyama(path)),
    "annealed-langevin": lambda path, **_: annealed_langevin(),
}

__all__ = [
    "SAMPLERS",
    "Adaptive",
    "Sampler",
    "ancestral",
    "annealed_langevin",
    "autoguided",
    "brownian_noise",
    "calls_per_step",
    "churned",
    "classifier_free",
    "classifier_guided",
    "consistency_sample",
    "ddim",
    "ddpm",
    "deis",
    "dpm_solver",
    "dpm_solver_pp",
    "dpm_solver_pp_singlestep",
    "dpm_solver_singlestep",
    "dwell",
    "euler",
    "euler_maruyama",
    "given_measurement",
    "heun",
    "importance_resample",
    "inpainting",
    "langevin",
    "lms",
    "mala",
    "midpoint",
    "plms",
    "pndm",
    "pndm_times",
    "predictor_corrector",
    "restarting",
    "rk4",
    "sample",
    "sample_adaptively",
    "thresholded",
    "unipc",
    "within",
]
