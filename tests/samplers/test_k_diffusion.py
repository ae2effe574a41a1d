"""States of k-diffusion 0.1.1.post1 on a mixture of Gaussians, in double precision: ten steps of Karras's grid from 80 noise.

Its samplers run at alpha = 1 with the exact denoiser; `fresh` is the noise that its ancestral and SDE samplers were given, one
draw a step (none is used in the last one, to sigma = 0). Its churn is one number for the whole run, gamma = S_churn / steps; its
states there are those after the noise is added, so of `heun_churn` only the end is compared.
"""

from pathlib import Path as File

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import oracles, paths
from genjax.samplers import (
    ancestral,
    churned,
    ddim,
    dpm_solver_pp,
    dpm_solver_pp_singlestep,
    dpm_solver_singlestep,
    heun,
    lms,
    sample,
)

REFERENCE = File(__file__).parents[1] / "reference"
STATES = np.load(REFERENCE / "k_diffusion.npz")
PATH = paths.edm()
CASES = {
    "dpm_2": lambda: dpm_solver_singlestep(PATH, order=2),
    "dpm_solver_2": lambda: dpm_solver_singlestep(PATH, order=2),
    "dpm_solver_3": lambda: dpm_solver_singlestep(PATH, order=3),
    "dpm_2_ancestral": lambda: ancestral(dpm_solver_singlestep(PATH, order=2), PATH),
    "euler_ancestral": lambda: ddim(0.7),  # eta = 0.7
    "dpmpp_2s": lambda: dpm_solver_pp_singlestep(PATH, order=2),  # dpmpp_2s_ancestral with eta = 0
    "dpmpp_2s_ancestral": lambda: ancestral(dpm_solver_pp_singlestep(PATH, order=2), PATH),
    "lms": lambda: lms(4),
    "dpmpp_2m_sde": lambda: dpm_solver_pp(2, eta=1.0),
    "dpmpp_2m_sde_heun": lambda: dpm_solver_pp(2, eta=0.5, slope="exact"),  # solver_type heun
    "dpmpp_3m_sde": lambda: dpm_solver_pp(3, eta=0.5, slope="exact", half_quadratic=True),
    "heun_churn": lambda: churned(
        heun(PATH, first_order_end=True), PATH, gamma=0.3, lowest=0.05, highest=50.0, noise_scale=1.003
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_every_state_is_theirs(float64, name):
    mixture = np.load(REFERENCE / "gaussian_mixture.npz")
    mix = oracles.mixture(*(mixture[f"mixture_{part}"] for part in ("weights", "means", "covs")))
    knots = paths.knots(PATH, jnp.asarray(STATES["sigma"]))

    @jax.jit
    def states(fresh, start):
        return sample(CASES[name](), oracles.denoiser(mix), fresh, start, knots, trace=True)[1]

    expected = STATES[name]
    found = np.asarray(states(STATES["fresh"], STATES["start"]))[: len(expected)]
    if name == "heun_churn":
        found, expected = found[-1:], expected[-1:]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
