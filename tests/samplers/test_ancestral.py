"""Ancestral and DDIM steps: parity with other implementations; identities with Euler, the posterior, one another."""

import functools
from pathlib import Path as File

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import oracles, paths, times
from genjax.samplers import ddim, ddpm, euler, sample
from genjax.typing import Knot, Prediction

REFERENCE = np.load(File(__file__).parents[1] / "reference" / "losses_samplers_trajectories.npz")
DDPM = np.load(File(__file__).parents[1] / "reference" / "ddpm_steps.npz")
KEY = jax.random.key(0)


def oracle():
    return oracles.mixture(*(REFERENCE[f"mixture_{name}"] for name in ("weights", "means", "covs")))


def noise(dtype=jnp.float32):
    return jnp.asarray(REFERENCE["noise"], dtype)


def thousand_steps():
    return paths.ddpm(paths.linear_betas(1000))


# Parity


def _check_ddim(steps, dtype, tolerance):
    """Every state of 10 steps, every fifth of 50; and the levels from which steps leave and to which they go."""
    path, denoise, start, peer = thousand_steps(), oracles.denoiser(oracle()), noise(dtype), f"ddim{steps}"
    subsets = {"leading": times.leading_indices(1000, steps), "trailing": times.trailing_indices(1000, steps)}

    @jax.jit
    def along_grid(t):
        knots = paths.knots(path, t)
        return knots, sample(ddim(), denoise, KEY, start, knots, trace=True)[1]

    @jax.jit
    def along_pairs(now, then):
        def step(x, pair):
            x, _ = ddim().step(denoise, KEY, x, (), *pair)
            return x, x

        return jnp.concatenate([start[None], jax.lax.scan(step, start, (now, then))[1]])

    def check(spacing, states):
        np.testing.assert_array_equal(subsets[spacing], REFERENCE[f"{peer}_{spacing}_timesteps"])
        difference = np.abs(states[:: steps // 10] - REFERENCE[f"{peer}_{spacing}_x"]).max()
        print(f"{peer} {spacing} {dtype.__name__}: {difference:.1e}")
        assert difference < tolerance

    for spacing, indices in subsets.items():
        knots, states = along_grid(times.discrete(indices, 1000).astype(dtype))
        check(spacing, states)
        for end, part in {"from": slice(-1), "to": slice(1, None)}.items():
            for name in ("alpha", "sigma"):
                levels = REFERENCE[f"{peer}_{spacing}_{name}_{end}"]
                np.testing.assert_allclose(getattr(knots, name)[part], levels, atol=tolerance / 10)

    subsets["linspace"] = times.linspace_indices(1000, steps)
    # there the peer goes 1000 // steps indices on, which is not the level that the next step leaves from
    check("linspace", along_pairs(*(_levels(f"{peer}_linspace", end, dtype) for end in ("from", "to"))))


def _levels(name, end, dtype):
    alpha, sigma = (REFERENCE[f"{name}_{quantity}_{end}"].astype(dtype) for quantity in ("alpha", "sigma"))
    return Knot(np.zeros_like(alpha), alpha, sigma)


def _mean_and_std(sampler, x_t, knots):
    """Of single steps from `x_t [steps, B, D]`, by handing in noise 0 and noise 1."""

    def draw(x, knots, z):
        return sample(sampler, oracles.denoiser(oracle()), jnp.full((1, *x.shape), z, x.dtype), x, knots)

    both = jax.vmap(jax.vmap(draw, in_axes=(0, 0, None)), in_axes=(None, None, 0))
    mean, end = np.asarray(jax.jit(both)(x_t, knots, np.arange(2.0)))
    return mean, end - mean


def _check_ddpm(dtype, tolerance):
    """Steps from index t of the peer to t - 1, and between the visited ones of a strided chain; ours is t + 1 of 1000."""
    single, strided = DDPM["timesteps"], DDPM["strided_timesteps"]
    levels = np.concatenate(
        [np.stack([single + 1, single], axis=1), np.stack([strided + 1, np.append(strided[1:] + 1, 0)], axis=1)]
    )
    expected = {
        name: np.concatenate([DDPM[name], DDPM[f"strided_{name}"]])
        for name in ("x_t", "mean", "variance_small", "variance_large")
    }
    knots = jax.jit(lambda: paths.knots(thousand_steps(), (levels / 1000).astype(dtype)))()
    for variance in ("small", "large"):
        mean, std = _mean_and_std(ddpm(variance), jnp.asarray(expected["x_t"], dtype), knots)
        mean_difference = np.abs(mean - expected["mean"]).max()
        variances = np.where(levels[:, 1] == 0, 0.0, expected[f"variance_{variance}"])  # no noise at the end
        variance_difference = np.abs(std**2 - variances[:, None, None]).max()
        print(f"ddpm {variance} {dtype.__name__}: mean {mean_difference:.1e}, variance {variance_difference:.1e}")
        assert mean_difference < tolerance
        assert variance_difference < tolerance


CHECKS = {
    "ddim10": (functools.partial(_check_ddim, 10), 1e-9, 1e-4),
    "ddim50": (functools.partial(_check_ddim, 50), 1e-9, 1e-4),
    "ddpm": (_check_ddpm, 1e-10, 1e-5),
}


@pytest.mark.parametrize("name", CHECKS)
def test_parity_in_float64(float64, name):
    check, tolerance, _ = CHECKS[name]
    check(jnp.float64, tolerance)


@pytest.mark.parametrize("name", CHECKS)
def test_parity_in_float32(name):
    check, _, tolerance = CHECKS[name]
    check(jnp.float32, tolerance)


# Identities


def bent(x, knot):
    """A denoiser that compiles quickly."""
    data = jnp.tanh(x)
    return Prediction(data, (x - knot.alpha * data) / knot.sigma)


def _results(path, grid, *samplers):
    start = noise(jnp.result_type(float))

    @jax.jit
    def run(start):
        knots = paths.knots(path, grid())
        return [sample(sampler, bent, KEY, start, knots) for sampler in samplers]

    return np.asarray(run(start))


def test_ddim_on_the_linear_path_is_euler():
    path = paths.linear()
    np.testing.assert_allclose(*_results(path, lambda: times.uniform(path, 10), ddim(), euler(path)), atol=1e-6)
    with jax.enable_x64(True):
        np.testing.assert_allclose(*_results(path, lambda: times.uniform(path, 50), ddim(), euler(path)), atol=1e-12)


def test_ddim_is_euler_between_neighbours_of_the_chain(float64):
    path = paths.ddpm(paths.cosine_betas(40))
    np.testing.assert_allclose(*_results(path, lambda: times.uniform(path, 40), ddim(), euler(path)), atol=1e-10)
    strided = _results(path, lambda: times.uniform(path, 10), ddim(), euler(path))
    assert np.abs(strided[0] - strided[1]).max() > 1e-3


def test_ddim_with_eta_one_is_ddpm_with_the_posterior_variance(float64):
    grid = lambda: times.discrete(times.trailing_indices(1000, 10), 1000)  # noqa: E731
    by_ddim, by_ddpm, by_default, other = _results(
        thousand_steps(), grid, ddim(1.0), ddpm("small"), ddpm(), ddpm("large")
    )
    np.testing.assert_allclose(by_ddim, by_ddpm, atol=1e-12)
    np.testing.assert_array_equal(by_ddpm, by_default)
    assert np.abs(by_ddpm - other).max() > 0.1


@pytest.mark.parametrize("path", [paths.linear(), paths.vp(), paths.edm(4.0)], ids=["linear", "vp", "edm"])
def test_ddpm_draws_the_posterior_given_the_estimate(float64, path):
    data, x_t = np.broadcast_to([0.3, -1.2], (16, 2)), noise(jnp.float64)
    t = np.array([path.t_noise + share * (path.t_data - path.t_noise) for share in (0.25, 0.75)])

    def known_data(x, knot):
        return Prediction(jnp.asarray(data), (x - knot.alpha * data) / knot.sigma)

    @jax.jit
    def run():
        knots = paths.knots(path, t)
        now, then = (Knot(*(value[i] for value in knots)) for i in (0, 1))
        steps = [
            [sample(ddpm(variance), known_data, jnp.full((1, 16, 2), z), x_t, knots) for z in (0.0, 1.0)]
            for variance in ("small", "large")
        ]
        return steps, paths.posterior(x_t, data, now, then), paths.transition(data, then, now)

    steps, posterior, transition = run()
    for (mean, end), variance in zip(steps, (posterior.variance, transition.variance), strict=True):
        np.testing.assert_allclose(mean, posterior.mean, atol=1e-12)
        np.testing.assert_allclose(np.square(end - mean), np.full((16, 2), variance), atol=1e-12)
    assert 0 < posterior.variance < transition.variance


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_every_eta_keeps_the_marginal_given_the_data(float64, eta):
    """x_then = alpha data + kept noise + std z with kept^2 + std^2 = sigma^2; eta scales the standard deviation."""
    pair = Prediction(jnp.asarray([[1.0], [0.0], [0.0]]), jnp.asarray([[0.0], [1.0], [0.0]]))
    z = np.array([[[0.0], [0.0], [1.0]]])
    alpha, sigma = np.cos(np.pi / 2 * np.array([0.8, 0.5])), np.sin(np.pi / 2 * np.array([0.8, 0.5]))
    knots = Knot(*(jnp.asarray(value) for value in (np.array([0.8, 0.5]), alpha, sigma)))
    of_data, kept, std = np.asarray(sample(ddim(eta), lambda x, knot: pair, jnp.asarray(z), jnp.zeros((3, 1)), knots))
    r = alpha[0] * sigma[1] / (alpha[1] * sigma[0])
    np.testing.assert_allclose(of_data, alpha[1], atol=1e-12)
    np.testing.assert_allclose(std, eta * sigma[1] * np.sqrt(1 - r**2), atol=1e-12)
    np.testing.assert_allclose(kept**2 + std**2, sigma[1] ** 2, atol=1e-12)


# The ends, and bad input


def test_from_alpha_zero_to_sigma_zero():
    """The first step forgets x but for its noise, the last one returns the estimate of the data."""
    path, x = paths.linear(), noise()

    @jax.jit
    def run(x):
        first, last = (paths.knots(path, np.array(t, np.float32)) for t in ([0.0, 0.5], [0.5, 1.0]))
        samplers = (ddim(), ddim(0.7), ddpm("small"), ddpm("large"))
        return [[sample(s, bent, jnp.ones((1, *x.shape)), x, knots) for s in samplers] for knots in (first, last)]

    started, landed = run(x)
    for end in started[1:]:
        assert np.all(np.isfinite(end))
        assert np.abs(end - started[0]).min() > 0.01
    for end in landed:
        np.testing.assert_allclose(end, np.tanh(x), atol=1e-6)


def test_bad_options_raise():
    with pytest.raises(ValueError, match=r"eta is -0\.1"):
        ddim(-0.1)
    with pytest.raises(ValueError, match="'small', 'large' or 'learned'"):
        ddpm("medium")
