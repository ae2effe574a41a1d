"""Euler-Maruyama and the weak error of every stochastic sampler."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import oracles, paths, times
from genjax.samplers import (
    SAMPLERS,
    ancestral,
    churned,
    ddim,
    dpm_solver_pp,
    dpm_solver_singlestep,
    euler,
    euler_maruyama,
    heun,
    restarting,
    sample,
)
from genjax.typing import Knot, Path, Prediction

PATHS = {"linear": paths.linear(), "cosine": paths.cosine(), "vp": paths.vp(), "sub_vp": paths.sub_vp()}
MEAN, STD = 0.7, 0.5


def gaussian(x, knot):
    """The exact denoiser of data N(MEAN, STD^2)."""
    deviation = (x - knot.alpha * MEAN) / (knot.alpha**2 * STD**2 + knot.sigma**2)
    return Prediction(MEAN + knot.alpha * STD**2 * deviation, knot.sigma * deviation)


def _affine_steps(sampler, path, steps):
    """`x_then = slope x + offset + std z` of every step: exact for Gaussian data, whose denoiser is affine in x."""
    x, z = jnp.asarray([[0.0], [1.0], [0.0]]), jnp.asarray([[[0.0], [0.0], [1.0]]])

    @jax.jit
    def run():
        knots = paths.knots(path, times.uniform(path, steps))
        intervals = Knot(*(jnp.stack([values[:-1], values[1:]], axis=1) for values in knots))
        return knots, jax.vmap(lambda knots: sample(sampler, gaussian, z, x, knots)[:, 0])(intervals)

    knots, ends = run()
    offset, at_one, at_noise = np.asarray(ends).T
    return knots, zip(at_one - offset, offset, at_noise - offset, strict=True)


def _errors_of_moments(sampler, path, steps):
    """Of the mean and variance at the data end, from an exact start, without any sampling error."""
    knots, affine_steps = _affine_steps(sampler, path, steps)
    alpha, sigma = float(knots.alpha[0]), float(knots.sigma[0])
    mean, variance = alpha * MEAN, alpha**2 * STD**2 + sigma**2
    for slope, offset, std in affine_steps:
        mean, variance = slope * mean + offset, slope**2 * variance + std**2
    return abs(mean - MEAN), abs(variance - STD**2)


STOCHASTIC = {
    **{name: lambda path, name=name: SAMPLERS[name](path) for name in ("ddpm", "ddpm-large", "euler-maruyama")},
    "ddim(0.5)": lambda path: ddim(0.5),
    "twice the noise": lambda path: euler_maruyama(path, noise_rate=2.0),
}


@pytest.mark.parametrize(
    ("name", "path"),
    [*((name, path) for name in STOCHASTIC for path in ("linear", "vp")), ("a third of the noise", "vp")],
)
def test_the_weak_error_is_of_first_order(float64, name, path):
    """Less noise than that of the SDE forgets the singular start, alpha = 0 of linear, less quickly: vp has none."""
    third = euler_maruyama(PATHS[path], noise_rate=1 / 3)
    sampler = third if name == "a third of the noise" else STOCHASTIC[name](PATHS[path])
    coarse, fine = (_errors_of_moments(sampler, PATHS[path], steps) for steps in (512, 2048))
    orders = np.log2(np.divide(coarse, np.maximum(fine, 1e-16))) / 2
    print(f"{name} on {path}: mean {coarse[0]:.1e} -> {fine[0]:.1e}, variance {coarse[1]:.1e} -> {fine[1]:.1e}", orders)
    assert np.all(np.less(coarse, 0.01))
    assert fine[0] < 1e-12 or orders[0] > 0.9
    assert orders[1] > 0.9


MODES = oracles.mixture([0.3, 0.7], [[-1.0], [1.0]], [0.1, 0.2])


def _errors_on_two_modes(sampler, path, steps):
    """Of the first mode's weight, the mean and the variance, by the density carried along on a grid: no sampling error.

    A step draws `mean(x) + std z`; the run ends at t = 0.2, before its noise is finer than the grid.
    """
    x = np.linspace(-6, 6, 1201)
    knots = paths.knots(path, times.uniform(path, steps, end=0.2))
    intervals = Knot(*(jnp.stack([values[:-1], values[1:]], axis=1) for values in knots))
    z = jnp.stack([jnp.zeros((1, len(x), 1)), jnp.ones((1, len(x), 1))])

    @jax.jit
    def step_of_all(knots):
        run = lambda z: sample(sampler, oracles.denoiser(MODES), z, jnp.asarray(x)[:, None], knots)[:, 0]  # noqa: E731
        return jax.vmap(run)(z)

    step_of_all_knots = jax.jit(jax.vmap(step_of_all))
    at_zero, at_one = np.asarray(step_of_all_knots(intervals)).transpose(1, 0, 2)
    density = np.exp(oracles.log_density(MODES, x[:, None], alpha=knots.alpha[0], sigma=knots.sigma[0]))
    for mean, std in zip(at_zero, (at_one - at_zero)[:, 0], strict=True):
        kernel = np.exp(-0.5 * ((x[:, None] - mean[None]) / std) ** 2) / (std * np.sqrt(2 * np.pi))
        density = kernel @ density * (x[1] - x[0])
    exact = np.exp(oracles.log_density(MODES, x[:, None], alpha=knots.alpha[-1], sigma=knots.sigma[-1]))
    moments = [np.trapezoid(values * density, x) for values in (x < 0, x, x**2)]
    expected = [np.trapezoid(values * exact, x) for values in (x < 0, x, x**2)]
    return np.abs(np.subtract(moments, expected))


@pytest.mark.parametrize(
    ("name", "order"),
    [("ddpm", 1), ("ddpm-large", 1), ("euler-maruyama", 1), ("ddim(0.5)", 1), ("dpm-2-ancestral", 2)],
)
def test_the_weights_of_modes_converge_at_the_weak_order(float64, name, order):
    """So do the mean and the second moment. DPM2 ancestral is of weak order 2: its noise is exact, its way of order 2."""
    make = STOCHASTIC.get(name) or SAMPLERS[name]
    coarse, fine = (
        _errors_on_two_modes(make(PATHS["vp"]), PATHS["vp"], steps) for steps in (64 // order, 256 // order)
    )
    orders = np.log2(coarse / fine) / 2
    print(f"{name}: weight, mean, second moment {coarse} -> {fine}", orders)
    assert np.all(np.less(coarse, (0.01, 0.01, 0.05)))
    assert orders.min() > 0.85 * order


@pytest.mark.parametrize("name", PATHS)
def test_a_step_is_euler_maruyama_on_the_reverse_sde(float64, name):
    path = PATHS[name]
    t = path.t_noise + np.array([0.5, 0.52]) * (path.t_data - path.t_noise)
    x = np.linspace(-2.0, 2.0, 8)[:, None]

    @jax.jit
    def run(x):
        knots = paths.knots(path, t)
        ends = [sample(euler_maruyama(path), gaussian, jnp.full((1, 8, 1), z), x, knots) for z in (0.0, 1.0)]
        return *ends, knots, paths.drift_and_diffusion(path, t[0])

    mean, end, knots, (drift, diffusion) = run(jnp.asarray(x))
    alpha, sigma, h = float(knots.alpha[0]), float(knots.sigma[0]), t[1] - t[0]
    score = -(x - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)
    np.testing.assert_allclose(mean, x + h * float(drift) * x + abs(h) * float(diffusion) ** 2 * score, atol=1e-12)
    np.testing.assert_allclose(end - mean, np.full((8, 1), float(diffusion) * abs(h) ** 0.5), atol=1e-12)


def test_the_direction_of_the_clock_does_not_matter(float64):
    backward = Path(alpha=lambda t: 1 - t, sigma=lambda t: t, t_data=0.0, t_noise=1.0)

    @jax.jit
    def run():
        noise = jnp.ones((5, 4, 1))
        return [
            sample(euler_maruyama(path), gaussian, noise, noise[0], paths.knots(path, times.uniform(path, 5)))
            for path in (paths.linear(), backward)
        ]

    np.testing.assert_allclose(*run(), atol=1e-12)


@pytest.mark.parametrize("name", PATHS)
def test_the_ends_draw_from_the_estimate_of_the_data(name):
    path, x = PATHS[name], jnp.linspace(-2.0, 2.0, 8)[:, None]
    t = np.linspace(path.t_noise, path.t_data, 4, dtype=np.float32)

    @jax.jit
    def run(x):
        first, last = (paths.knots(path, ends) for ends in (t[:2], t[2:]))
        ends = [sample(euler_maruyama(path), gaussian, jnp.ones((1, 8, 1)), x, knots) for knots in (first, last)]
        return first, *ends, gaussian(x, Knot(*(value[0] for value in last))).data

    first, started, landed, estimate = run(x)
    np.testing.assert_allclose(landed, estimate, atol=1e-6)
    assert np.all(np.isfinite(started))
    if first.alpha[0] == 0:
        np.testing.assert_allclose(started, np.full((8, 1), first.alpha[1] * MEAN + first.sigma[1]), atol=1e-6)


def test_twenty_steps_leave_no_noise_on_a_point():
    """The scheme alone would overshoot in its last step by the noise that is left there, 1/20 on linear."""
    point = np.array([[0.3, -0.4]], np.float32)
    mix = oracles.mixture([1.0], point, [1e-8])

    @jax.jit
    def run(knots):
        noise = np.random.default_rng(0).standard_normal((21, 64, 2)).astype(np.float32)
        return sample(euler_maruyama(paths.linear()), oracles.denoiser(mix), jnp.asarray(noise[1:]), noise[0], knots)

    knots = paths.knots(paths.linear(), times.uniform(paths.linear(), 20))
    assert np.abs(run(knots) - point).max() < 1e-3


EDM = paths.edm(80.0)


def _churned_step(noise_level, end, **options):
    """`x_end = slope x + offset + std z` of a step from a noise level, in float64."""
    knots = paths.knots(EDM, jnp.asarray([noise_level, end]))
    x, z = jnp.asarray([[0.0], [1.0], [0.0]]), jnp.asarray([[[0.0], [0.0], [1.0]]])
    ends = sample(churned(heun(EDM), EDM, **options), gaussian, z, x, knots)[:, 0]
    return ends[1] - ends[0], ends[0], ends[2] - ends[0]


def test_churn_adds_noise_and_then_takes_the_deterministic_step(float64):
    """Algorithm 2 of EDM by hand: up to t (1 + gamma), and Heun from there."""
    slope, offset, std = _churned_step(2.0, 1.5, gamma=0.3, noise_scale=1.1)
    x = jnp.asarray([[0.0], [1.0]])
    from_there = sample(heun(EDM), gaussian, jax.random.key(0), x, paths.knots(EDM, jnp.asarray([2.6, 1.5])))[:, 0]
    np.testing.assert_allclose([slope, offset], [from_there[1] - from_there[0], from_there[0]], rtol=1e-12)
    np.testing.assert_allclose(std, 1.1 * np.sqrt(2.6**2 - 2.0**2) * slope, rtol=1e-12)


@pytest.mark.parametrize("options", [{"gamma": 0.0}, {"lowest": 2.1}, {"highest": 1.9}])
def test_without_churn_the_step_is_the_deterministic_one(float64, options):
    knots, x = paths.knots(EDM, jnp.asarray([2.0, 1.5])), jnp.asarray([[0.3], [1.0]])
    expected = sample(heun(EDM), gaussian, jax.random.key(0), x, knots)
    np.testing.assert_allclose(
        sample(churned(heun(EDM), EDM, **options), gaussian, jax.random.key(0), x, knots), expected
    )


@pytest.mark.parametrize("name", ["linear", "cosine", "sub_vp"])
def test_churn_keeps_the_marginals(float64, name):
    """With gamma = S_churn / steps the moments converge as by Heun's method without noise: to order 2."""
    path = PATHS[name]
    coarse, fine = (
        _errors_of_moments(churned(heun(path), path, gamma=10 / steps), path, steps) for steps in (256, 1024)
    )
    print(f"churn on {name}: mean {coarse[0]:.1e} -> {fine[0]:.1e}, variance {coarse[1]:.1e} -> {fine[1]:.1e}")
    assert np.all(np.less(fine, 1e-5))
    assert np.all(np.less(fine, 0.1 * np.asarray(coarse) + 1e-14))


def _gaussian_run(sampler, knots, key=7):
    x = jnp.linspace(-2.0, 2.0, 8)[:, None] * knots.sigma[0]
    return sample(sampler, gaussian, jax.random.key(key), x, knots)


@pytest.mark.parametrize("name", PATHS)
def test_without_noise_euler_maruyama_is_euler(float64, name):
    path = PATHS[name]
    between = path.t_noise + np.linspace(0.1, 0.9, 5) * (path.t_data - path.t_noise)
    knots = paths.knots(path, jnp.asarray(between))
    found = _gaussian_run(euler_maruyama(path, noise_rate=0.0), knots)
    np.testing.assert_allclose(found, _gaussian_run(euler(path), knots), atol=1e-12)


@pytest.mark.parametrize("name", ["linear", "cosine", "vp"])
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_ancestral_ddim_is_ddim_with_eta(float64, name, eta):
    """From noise to the data, alpha = 0 and sigma = 0 included."""
    path = PATHS[name]
    knots = paths.knots(path, times.uniform(path, 6))
    found = _gaussian_run(ancestral(ddim(), path, eta=eta), knots)
    np.testing.assert_allclose(found, _gaussian_run(ddim(eta), knots), atol=1e-9)


def test_ancestral_steps_of_order_two_go_down_and_back(float64):
    """k-diffusion's rule for DPM2 ancestral, by hand at alpha = 1."""
    sampler = dpm_solver_singlestep(EDM, order=2)
    x = jnp.asarray([[0.4], [1.0]])
    up = min(1.0, 1.0 * np.sqrt(1.0**2 * (2.0**2 - 1.0**2) / 2.0**2))
    down = np.sqrt(1.0 - up**2)
    there = sample(sampler, gaussian, jax.random.key(0), x, paths.knots(EDM, jnp.asarray([2.0, down])))
    found = sample(ancestral(sampler, EDM), gaussian, jnp.ones((1, 2, 1)), x, paths.knots(EDM, jnp.asarray([2.0, 1.0])))
    np.testing.assert_allclose(found, there + up, atol=1e-12)


def test_restarts_keep_the_marginals(float64):
    """Moments of Heun's method on a Gaussian, by impulses: as near with restarts as without, and to the same order."""
    path = EDM

    def error(steps, repeats):
        t = times.karras(path, steps, sigma_min=0.02, append_data=False)
        if repeats:
            t = times.restart(path, t, low=0.3, high=2.0, steps=steps // 2, repeats=repeats)
        knots = paths.knots(path, t)
        count = len(t) - 1
        impulses = jnp.eye(count + 1)
        first, last = (Knot(*(value[index] for value in knots)) for index in (0, -1))
        start = jnp.sqrt(STD**2 + first.sigma**2) * impulses[0][:, None]

        def centred(x, knot):
            at_mean = gaussian(x + MEAN, knot)
            return at_mean._replace(data=at_mean.data - MEAN)

        end = sample(restarting(heun(path)), centred, impulses[1:, :, None], start, knots)
        return abs(float(jnp.sum(end**2) / (STD**2 + last.sigma**2)) - 1)

    plain, restarted = ([error(steps, repeats) for steps in (32, 128)] for repeats in (0, 3))
    print(f"errors of the variance: plain {plain}, restarted {restarted}")
    assert restarted[1] < 2e-3
    assert restarted[1] < restarted[0] / 12


def test_a_restart_contracts_what_went_wrong_before_it(float64):
    """The difference between two starts shrinks by the share of the data in the noise, each time."""
    knots = paths.knots(EDM, jnp.asarray([2.0, 0.3, 2.0, 0.3, 2.0, 0.3]))
    x = jnp.asarray([[0.0], [1.0]])
    states = sample(restarting(ddim()), gaussian, jnp.zeros((5, 2, 1)), x, knots, trace=True)[1][:, :, 0]
    spread = states[:, 1] - states[:, 0]
    np.testing.assert_allclose(spread[2], spread[1], atol=1e-12)
    np.testing.assert_allclose(spread[3] / spread[1], spread[1] / spread[0], rtol=1e-9)


def test_what_cannot_take_noise():
    knots = paths.knots(EDM, jnp.asarray([2.0, 1.0, 0.5]))
    for wrap in (lambda s: churned(s, EDM), lambda s: ancestral(s, EDM), restarting):
        with pytest.raises(ValueError, match="not of multistep"):
            _gaussian_run(wrap(dpm_solver_pp(2)), knots)
    with pytest.raises(ValueError, match="eta is -1"):
        ancestral(ddim(), EDM, eta=-1.0)
    with pytest.raises(ValueError, match="noise_rate is -1"):
        euler_maruyama(EDM, noise_rate=-1.0)
