"""Langevin samplers: stationary moments of theory, exactness of MALA, mixtures recovered, randomness, compilation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import oracles, paths, times
from genjax.arrays import example_keys, fold_each, normal
from genjax.samplers import (
    annealed_langevin,
    calls_per_step,
    ddim,
    dwell,
    heun,
    langevin,
    mala,
    predictor_corrector,
    sample,
)
from genjax.samplers.langevin_dynamics import score_of
from genjax.samplers.loop import Sampler
from genjax.typing import Knot, Prediction

WEIGHTS, MEANS, VARIANCES = np.array([0.3, 0.7]), np.array([[-1.5, 0.0], [1.5, 0.5]]), np.array([0.1, 0.2])
MEAN = WEIGHTS @ MEANS
COVARIANCE = (WEIGHTS @ VARIANCES) * np.eye(2) + np.einsum("k,ki,kj->ij", WEIGHTS, MEANS - MEAN, MEANS - MEAN)
NUM = 4096


def two_modes():
    return oracles.mixture(WEIGHTS, MEANS, VARIANCES)


def component_moments(x):
    """Weight, mean and variance of each mode, from the points nearest to it: the modes are 4.6 deviations or more apart."""
    nearest = np.argmin(np.sum((np.asarray(x)[:, None] - MEANS) ** 2, axis=-1), axis=1)
    own = [np.asarray(x, np.float64)[nearest == k] for k in range(len(WEIGHTS))]
    return [(len(points) / len(x), points.mean(axis=0), points.var(axis=0)) for points in own]


def assert_on_the_mixture(x, *, ratios=(1.0, 1.0), bias=0.0):
    """Weights, means and variances (`ratios` times those of the modes) within 4 standard errors and a relative bias."""
    for weight, mean, variance, (found_weight, found_mean, found_variance) in zip(
        WEIGHTS, MEANS, VARIANCES * np.asarray(ratios), component_moments(x), strict=True
    ):
        num = weight * len(x)
        print(f"weight {found_weight:.3f} of {weight}, mean {found_mean}, variance ratio {found_variance / variance}")
        assert abs(found_weight - weight) < bias * weight + 4 * (weight * (1 - weight) / len(x)) ** 0.5
        assert np.all(np.abs(found_mean - mean) < bias * variance**0.5 + 4 * (variance / num) ** 0.5)
        assert np.all(np.abs(found_variance / variance - 1) < bias + 4 * (2 / num) ** 0.5)


# On a Gaussian

STD = 0.8


def _variance_and_error(x):
    x = np.asarray(x, np.float64).ravel()
    return np.mean(x**2), np.mean(x**2) * (2 / x.size) ** 0.5


@jax.jit
def _unadjusted(step_size):
    start = jnp.zeros((NUM, 8))
    return langevin(lambda x: -x / STD**2, jax.random.key(0), start, step_size=step_size, num_steps=60)


@pytest.mark.parametrize("step_size", [0.1, 0.5])
def test_unadjusted_langevin_settles_at_the_variance_of_theory(step_size):
    variance, error = _variance_and_error(_unadjusted(step_size))
    expected = STD**2 / (1 - step_size / (2 * STD**2))
    print(f"h = {step_size}: {variance:.4f} +- {error:.4f}, theory {expected:.4f}, target {STD**2:.4f}")
    assert abs(variance - expected) < 4 * error
    assert expected - STD**2 > 8 * error


@jax.jit
def _adjusted(step_size):
    log_density = lambda x: -0.5 * jnp.sum(x**2, axis=1) / STD**2  # noqa: E731
    return mala(log_density, jax.random.key(0), jnp.zeros((NUM, 4)), step_size=step_size, num_steps=80)


@pytest.mark.parametrize("step_size", [0.1, 0.5])
def test_mala_settles_at_the_variance_itself(step_size):
    x, acceptance = _adjusted(step_size)
    variance, error = _variance_and_error(x)
    print(f"h = {step_size}: {variance:.4f} +- {error:.4f}, target {STD**2:.4f}, accepted {acceptance.mean():.3f}")
    assert abs(variance - STD**2) < 4 * error
    assert STD**2 / (1 - step_size / (2 * STD**2)) - STD**2 > 4 * error
    assert acceptance.shape == (NUM,)
    assert 0.5 < acceptance.mean() < 1


def test_a_step_of_its_own_for_each_example():
    """Of size 0 where there is none: that example stays."""
    sizes, x = jnp.asarray([0.0, 0.3]), jnp.ones((2, 3, 1))
    run = lambda x: langevin(lambda x: -x, jax.random.key(0), x, step_size=sizes, num_steps=3)  # noqa: E731
    moved = jax.jit(run)(x)
    np.testing.assert_array_equal(moved[0], x[0])
    noise = [normal(fold_each(example_keys(jax.random.key(0), 2), step), x.shape)[1] for step in range(3)]
    expected = functools.reduce(lambda x, z: x - 0.3 * x + 0.6**0.5 * z, noise, x[1])
    np.testing.assert_allclose(moved[1], expected, rtol=1e-6)


# On a mixture


def test_mala_keeps_an_exact_start():
    """At a step with which the unadjusted chain leaves it: modes are kept too, between which hardly any step goes."""
    mix, step_size = two_modes(), 0.08

    @jax.jit
    def run(key):
        start = oracles.sample(mix, key, NUM)
        options = {"step_size": step_size, "num_steps": 100}
        adjusted = mala(functools.partial(oracles.log_density, mix), jax.random.key(1), start, **options)
        return start, *adjusted, langevin(functools.partial(oracles.score, mix), jax.random.key(1), start, **options)

    start, x, acceptance, unadjusted = run(jax.random.key(0))
    assert_on_the_mixture(x)
    assert np.mean(np.all(start == x, axis=1)) < 0.01
    assert 0.5 < acceptance.mean() < 0.95
    with pytest.raises(AssertionError):
        assert_on_the_mixture(unadjusted)


def test_mala_never_leaves_the_support():
    """The exponential density on x > 0: proposals below 0 have log-density -inf, or NaN, and are rejected."""

    @jax.jit
    def run(outside):
        log_density = lambda x: jnp.sum(jnp.where(x > 0, -x, outside), axis=1)  # noqa: E731
        start = jax.random.exponential(jax.random.key(0), (NUM, 1))
        return mala(log_density, jax.random.key(1), start, step_size=0.5, num_steps=50)[0]

    for outside in (-np.inf, np.nan):
        x = np.asarray(run(outside))
        assert np.all(x > 0)
        assert abs(x.mean() - 1) < 4 / NUM**0.5
        assert abs(np.mean(x**2) - 2) < 4 * (20 / NUM) ** 0.5


def falling(levels, high=8.0, low=0.05):
    """A grid of noise levels evenly spaced in their logarithm, then 0."""
    sigma = jnp.append(jnp.geomspace(high, low, levels), 0.0)
    return paths.knots(paths.edm(high), sigma)


def _annealed_variance(variance, sigmas, relative_step):
    """Of Gaussian data, whose score is linear: h = relative_step sigma^2 at each level, at last the estimate of the data."""
    now = sigmas[0] ** 2
    for sigma in sigmas[:-2]:
        step_size = relative_step * sigma**2
        now = (1 - step_size / (variance + sigma**2)) ** 2 * now + 2 * step_size
    return (variance / (variance + sigmas[-2] ** 2)) ** 2 * now


def test_annealed_langevin_finds_the_modes_and_their_weights():
    """From noise alone, which steps on the data's score could not weigh; variances as theory has them for each mode alone."""
    knots = dwell(falling(30), 20)
    assert knots.sigma.shape == (601,)

    @jax.jit
    def run(key, noise):
        return sample(annealed_langevin(0.1), oracles.denoiser(two_modes()), key, knots.sigma[0] * noise, knots)

    x = run(jax.random.key(1), jax.random.normal(jax.random.key(0), (NUM, 2)))
    ratios = [
        _annealed_variance(variance, np.asarray(knots.sigma, np.float64), 0.1) / variance for variance in VARIANCES
    ]
    assert np.all(np.greater(ratios, 1.05))
    assert_on_the_mixture(x, ratios=ratios, bias=0.04)


@pytest.mark.parametrize("path", ["linear", "vp", "edm"])
def test_predictor_corrector_lands_on_the_mixture(path):
    """Also where the predictor is deterministic, whose own samples it then corrects."""
    if path == "edm":
        knots = falling(60)
    else:
        one = {"linear": paths.linear(), "vp": paths.vp()}[path]
        knots = paths.knots(one, times.uniform(one, 100))
    sampler = predictor_corrector(ddim(0.0), corrector_steps=2)

    @jax.jit
    def run(key, noise):
        return sample(sampler, oracles.denoiser(two_modes()), key, knots.sigma[0] * noise, knots)

    x = run(jax.random.key(1), jax.random.normal(jax.random.key(0), (NUM, 2)))
    assert_on_the_mixture(x, bias=0.03)


# Levels of a path

LEVEL = Knot(jnp.float32(0.4), jnp.float32(0.6), jnp.float32(0.7))


def test_the_score_of_the_exact_denoiser_is_the_score():
    x = jax.random.normal(jax.random.key(0), (16, 2))

    @jax.jit
    def both(x):
        exact = oracles.score(two_modes(), x, alpha=LEVEL.alpha, sigma=LEVEL.sigma)
        return score_of(oracles.denoiser(two_modes()), x, LEVEL), exact

    np.testing.assert_allclose(*both(x), rtol=1e-4)


def bent(x, knot):
    """A denoiser that compiles quickly."""
    data = jnp.tanh(x)
    return Prediction(data, (x - knot.alpha * data) / knot.sigma)


def grid_of(*knots):
    return Knot(*(jnp.stack(values) for values in zip(*knots, strict=True)))


DATA_END = Knot(jnp.float32(1), jnp.float32(1), jnp.float32(0))
STAY = Sampler(lambda x, knots: jnp.zeros(()), lambda denoise, key, x, memory, now, then: (x, memory + 1))


def _moved(x, z, size):
    return x + size * score_of(bent, x, LEVEL) + jnp.sqrt(2 * size) * z


def test_an_annealed_step_is_a_langevin_step_of_relative_size():
    x, z = (jax.random.normal(jax.random.key(seed), (4, 3, 1)) for seed in (0, 1))
    next_level = Knot(jnp.float32(0.5), jnp.float32(0.7), jnp.float32(0.5))
    found = sample(annealed_langevin(0.3), bent, z[None], x, grid_of(LEVEL, next_level))
    np.testing.assert_allclose(found, _moved(x, z, 0.3 * 0.7**2), rtol=1e-5, atol=1e-6)
    landed = sample(annealed_langevin(0.3), bent, z[None], x, grid_of(LEVEL, DATA_END))
    np.testing.assert_array_equal(landed, bent(x, LEVEL).data)


def test_the_corrector_takes_langevin_steps_where_the_predictor_landed():
    key, x = jax.random.key(2), jax.random.normal(jax.random.key(0), (4, 3, 1))
    sampler = predictor_corrector(STAY, corrector_steps=2, signal_to_noise=0.3)
    start = Knot(jnp.float32(0.1), jnp.float32(0.3), jnp.float32(0.9))
    found = sample(sampler, bent, key, x, grid_of(start, LEVEL))
    keys = jax.vmap(lambda one: jax.random.split(one, 3))(fold_each(example_keys(key, 4), 0))
    for index in (1, 2):
        x = _moved(x, normal(keys[:, index], x.shape), 2 * 0.3**2 * 0.7**2)
    np.testing.assert_allclose(found, x, rtol=1e-5, atol=1e-6)


def test_nothing_is_corrected_where_there_is_no_noise():
    """Not even the gradient, by a network that predicts data, from which the noise there is 0 / 0."""
    x, key = jax.random.normal(jax.random.key(0), (4, 2)), jax.random.key(3)
    sampler, knots = predictor_corrector(ddim(0.0)), grid_of(LEVEL, DATA_END)
    end, gradient_of = jax.jit(lambda x: jax.vjp(lambda x: sample(sampler, bent, key, x, knots), x))(x)
    np.testing.assert_array_equal(end, bent(x, LEVEL).data)
    assert np.all(np.isfinite(*gradient_of(jnp.ones_like(x))))


def test_the_corrector_keeps_the_noisy_density():
    """In two dimensions, where steps sized by each example's own norms would settle near twice the variance."""
    variance = LEVEL.sigma**2 + LEVEL.alpha**2 * STD**2
    denoise = lambda x, knot: Prediction(x, knot.sigma * x / variance)  # noqa: E731
    start = variance**0.5 * jax.random.normal(jax.random.key(0), (4 * NUM, 2))
    sampler = predictor_corrector(STAY)
    run = lambda key: sample(sampler, denoise, key, start, grid_of(*[LEVEL] * 101))  # noqa: E731
    found, error = _variance_and_error(jax.jit(run)(jax.random.key(1)))
    size = 2 * 0.16**2 * LEVEL.sigma**2
    assert abs(found - variance / (1 - size / (2 * variance))) < 4 * error


def test_the_predictor_keeps_its_memory():
    sampler = predictor_corrector(STAY)
    x, key, knots = jnp.zeros((2, 1)), example_keys(jax.random.key(0), 2), grid_of(LEVEL, LEVEL)
    assert sampler.init(x, knots) == 0
    assert sampler.step(bent, key, x, sampler.init(x, knots), LEVEL, LEVEL)[1] == 1


# Randomness and compilation


@jax.jit
def _runs(key, x):
    """Every sampler of the module, on a batch `[B, 2]`."""
    log_density = lambda x: -jnp.sum(jnp.cosh(x), axis=1)  # noqa: E731
    knots, corrected = falling(4), heun(paths.edm(), first_order_end=True)
    return {
        "langevin": langevin(lambda x: -jnp.sinh(x), key, x, step_size=0.1, num_steps=5),
        "mala": mala(log_density, key, x, step_size=0.5, num_steps=5),
        "annealed_langevin": sample(annealed_langevin(), bent, key, x, knots),
        "predictor_corrector": sample(predictor_corrector(corrected), bent, key, x, knots),
    }


def test_example_i_depends_on_the_key_and_i_alone():
    key, x = jax.random.key(4), jax.random.normal(jax.random.key(0), (16, 2))
    together, others = _runs(key, x), _runs(jax.random.key(5), x)
    parts = [_runs(example_keys(key, 4, start), x[start : start + 4]) for start in range(0, 16, 4)]
    for name, whole in together.items():
        joined = jax.tree.map(lambda *values: np.concatenate(values), *[part[name] for part in parts])
        jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), whole, joined)
        samples, other = (run[name][0] if name == "mala" else run[name] for run in (together, others))
        assert np.all(np.isfinite(samples))
        assert np.abs(samples - other).max() > 0.01


def test_steps_receive_different_noise():
    still = lambda x: jnp.zeros_like(x)  # noqa: E731
    one, two = (
        langevin(still, jax.random.key(0), jnp.zeros((NUM, 1)), step_size=0.5, num_steps=steps) for steps in (1, 2)
    )
    assert abs(np.corrcoef(one[:, 0], (two - one)[:, 0])[0, 1]) < 4 / NUM**0.5


@pytest.mark.parametrize("make", [langevin, mala])
def test_the_number_of_traces_does_not_grow_with_the_steps(make):
    x = jnp.ones((4, 2))
    counts = []
    for num_steps in (2, 1000):
        calls = []
        subject = lambda x, calls=calls: calls.append(None) or (-x if make is langevin else -jnp.sum(x**2, axis=1))  # noqa: E731
        jaxpr = jax.make_jaxpr(
            lambda x, subject=subject, num_steps=num_steps: make(
                subject, jax.random.key(0), x, step_size=0.1, num_steps=num_steps
            )
        )(x)
        counts.append((len(calls), len(jaxpr.eqns)))
    assert counts[0] == counts[1]
    assert counts[0][0] == (1 if make is langevin else 2)


def test_a_corrected_step_calls_the_denoiser_once_more_for_each_correction():
    for corrections in (0, 1, 3):
        counts = []
        for steps in (2, 50):
            calls = []
            counting = lambda x, knot, calls=calls: calls.append(None) or bent(x, knot)  # noqa: E731
            sampler = predictor_corrector(heun(paths.edm()), corrector_steps=corrections)
            jax.eval_shape(
                lambda x, sampler=sampler, counting=counting, steps=steps: sample(
                    sampler, counting, jax.random.key(0), x, falling(steps)
                ),
                jnp.ones((4, 2)),
            )
            counts.append(len(calls))
        assert counts == [2 + corrections] * 2


def test_what_cannot_be_meant_raises():
    x = jnp.ones((4, 2))
    with pytest.raises(ValueError, match="num_steps is 0"):
        mala(lambda x: x[:, 0], jax.random.key(0), x, step_size=0.1, num_steps=0)
    for relative_step in (0.0, 2.0):
        with pytest.raises(ValueError, match="relative_step is"):
            annealed_langevin(relative_step)
    for options in ({"corrector_steps": -1}, {"signal_to_noise": -0.1}, {"signal_to_noise": 1.0}):
        with pytest.raises(ValueError, match="corrector_steps is"):
            predictor_corrector(STAY, **options)
    with pytest.raises(ValueError, match="a key instead of noise"):
        sample(predictor_corrector(STAY), bent, jnp.zeros((1, 4, 2)), x, grid_of(LEVEL, LEVEL))


def test_a_corrector_adds_its_calls_to_those_of_the_predictor():
    path = paths.cosine()
    made = [predictor_corrector(heun(path), corrector_steps=steps) for steps in (0, 1, 3)]
    assert [calls_per_step(sampler, (4, 2)) for sampler in made] == [2, 3, 5]
