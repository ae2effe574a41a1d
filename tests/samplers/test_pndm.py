"""PNDM: diffusers' states, the order of convergence, what it is to its multistep part, what is refused."""

from pathlib import Path as File

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import oracles, paths, times
from genjax.samplers import heun, plms, pndm, pndm_times, rk4, sample
from genjax.typing import Knot, Prediction

REFERENCE = File(__file__).parents[1] / "reference"
MIXTURE = np.load(REFERENCE / "dpmpp_2m.npz")
DIFFUSERS = np.load(REFERENCE / "diffusers_pndm.npz")
"""States of diffusers 0.42.1's PNDMScheduler, its tables in double precision, on linear betas and an exact noise prediction."""


def oracle():
    return oracles.mixture(*(MIXTURE[f"mixture_{name}"] for name in ("weights", "means", "covs")))


def states_on(sampler, knots, start):
    solve = lambda knots, start: sample(  # noqa: E731
        sampler, oracles.denoiser(oracle()), jax.random.key(0), start, knots, trace=True
    )[1]
    return np.asarray(jax.jit(solve)(knots, start))


@pytest.mark.parametrize("start", ["runge-kutta", "two-call"])
def test_parity_with_diffusers(float64, start):
    alphas_cumprod = jnp.asarray(DIFFUSERS[f"{start}_alphas_cumprod"])
    t = jnp.asarray(DIFFUSERS[f"{start}_index"], jnp.float64)
    knots = Knot(t, jnp.sqrt(alphas_cumprod), jnp.sqrt(1 - alphas_cumprod))
    expected = DIFFUSERS[f"{start}_x"]
    states = states_on(pndm(start), knots, jnp.asarray(expected[0]))
    print(f"{start}: {np.max(np.abs(states - expected)):.1e}")
    np.testing.assert_allclose(states, expected, atol=1e-10)


def test_the_times_of_the_calls_are_those_of_diffusers(float64):
    grid = jnp.append(jnp.arange(950, -1, -50.0), 0.0)
    for start in ("two-call", "runge-kutta"):
        np.testing.assert_allclose(pndm_times(grid, start), DIFFUSERS[f"{start}_index"])


@pytest.mark.parametrize("start", ["runge-kutta", "two-call"])
@pytest.mark.parametrize("path", [paths.linear(), paths.cosine(), paths.vp()], ids=["linear", "cosine", "vp"])
def test_order_of_convergence(float64, start, path):
    noise = jnp.asarray(MIXTURE["noise"], jnp.float64)

    def end(sampler, knots):
        return states_on(sampler, knots, knots.sigma[0] * noise)[-1]

    grid = lambda steps: jnp.linspace(0.98, 0.1, steps + 1)  # noqa: E731
    exact = end(rk4(path, first_order_end=False), paths.knots(path, grid(2000)))
    errors = [
        np.sqrt(np.mean((end(pndm(start), paths.knots(path, pndm_times(grid(n), start))) - exact) ** 2))
        for n in (128, 256, 512)
    ]
    slopes = np.log2(np.divide(errors[:-1], errors[1:]))
    print(start, errors, slopes)
    assert slopes[-1] > 1.9


def test_on_noise_linear_in_the_ratio_a_start_of_two_calls_is_heun(float64):
    """At alpha = 1 with the time as sigma, the transfer is Euler's step and two calls are Heun's."""
    path = paths.edm()
    knots = paths.knots(path, pndm_times(jnp.array([5.0, 4.0, 3.0]), "two-call"))
    x = jnp.asarray(MIXTURE["noise"], jnp.float64) * 5.0
    of_heun = states_on(heun(path, first_order_end=False), paths.knots(path, jnp.array([5.0, 4.0])), x)
    np.testing.assert_allclose(states_on(pndm("two-call"), knots, x)[2], of_heun[1], atol=1e-12)


def test_on_noise_linear_in_the_ratio_the_other_start_is_the_runge_kutta_method(float64):
    path, grid = paths.edm(), jnp.array([5.0, 4.0, 3.0, 2.0])
    x = jnp.asarray(MIXTURE["noise"], jnp.float64) * 5.0
    states = states_on(pndm(), paths.knots(path, pndm_times(grid)), x)
    of_rk4 = states_on(rk4(path, first_order_end=False), paths.knots(path, grid), x)
    np.testing.assert_allclose(states[[4, 8, 12]], of_rk4[1:], atol=1e-12)


def test_a_constant_noise_is_carried_exactly_and_as_by_plms(float64):
    path = paths.vp()
    grid = times.uniform(path, 8)[:-1]

    def denoise(x, knot):
        noise = jnp.full_like(x, 0.7)
        return Prediction((x - knot.sigma * noise) / knot.alpha, noise)

    x = jnp.ones((1, 1))
    ends = [
        sample(sampler, denoise, jax.random.key(0), x, paths.knots(path, t))
        for sampler, t in (
            (plms(), grid),
            (pndm(), pndm_times(grid)),
            (pndm("two-call"), pndm_times(grid, "two-call")),
        )
    ]
    np.testing.assert_allclose(ends, jnp.broadcast_to(ends[0], (3, 1, 1)), rtol=1e-12)


@pytest.mark.parametrize("start", ["runge-kutta", "two-call"])
def test_from_alpha_0_to_sigma_0_in_single_precision(start):
    path = paths.cosine()
    knots = paths.knots(path, pndm_times(jnp.linspace(1.0, 0.0, 21), start))
    end = states_on(pndm(start), knots, jnp.asarray(MIXTURE["noise"], jnp.float32))[-1]
    assert end.dtype == np.float32
    assert np.all(np.isfinite(end))
    mean = MIXTURE["mixture_weights"] @ MIXTURE["mixture_means"]
    np.testing.assert_allclose(end.mean(axis=0), mean, atol=0.35)


def test_what_is_refused():
    with pytest.raises(ValueError, match="start is 'ddim'; expected 'runge-kutta' or 'two-call'"):
        pndm("ddim")
    with pytest.raises(ValueError, match="the grid has 2 steps; expected at least 3"):
        pndm_times(jnp.linspace(1.0, 0.0, 3))
    knots = paths.knots(paths.vp(), jnp.linspace(1.0, 0.0, 6))
    with pytest.raises(ValueError, match="the grid has 5 calls; expected at least 12: make it with pndm_times"):
        states_on(pndm(), knots, jnp.ones((1, 2)))
