"""Consistency models: the identity at the boundary, the flow map as the fixed point, training as distillation in the mean.

The consistency function of a Gaussian is known in closed form, that of a mixture by fine integration of its exact ODE.
Expectations are exact: Gauss-Hermite sums over pairs of data and noise on the line.
"""

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from genjax import oracles, paths, predictions, times
from genjax.arrays import normal
from genjax.losses import consistency
from genjax.losses.consistency import (
    boundary_scalings,
    consistency_distillation_error,
    consistency_distillation_loss,
    consistency_function,
    consistency_training_error,
    consistency_training_loss,
    euler_step,
    heun_step,
    inverse_gap,
    pseudo_huber,
    squared,
    uniform,
)
from genjax.losses.consistency_grids import (
    doubling_levels,
    growing_levels,
    karras_levels,
    lognormal_intervals,
    target_decay,
    uniform_intervals,
)

pytestmark = pytest.mark.usefixtures("float64")

REFERENCE = Path(__file__).parents[1] / "reference"
SIGMA_MIN = 0.05
GAPS = 0.5 ** np.arange(2.0, 7.0)  # between a level of 1 and its neighbour
SOLVERS = {"euler": (euler_step, 2), "heun": (heun_step, 3)}  # and the order of their local error
every_solver = pytest.mark.parametrize("name", SOLVERS)


def draws(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def slope(gaps, values):
    """Of log(values) against log(gaps)."""
    return np.polyfit(np.log(gaps), np.log(np.asarray(values)), 1)[0]


# The function


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize(("data_std", "sigma_min"), [(0.5, 0.002), (1.0, 0.002), (0.3, 0.07)])
def test_the_boundary_is_exact_for_any_network(dtype, data_std, sigma_min):
    """Bit for bit, and so is its gradient: x passes, the network gets nothing."""

    def function(scale, x, t):
        network = lambda x, time: scale * jnp.sin(7 * x) + time[:, None, None]  # noqa: E731
        return consistency_function(network, data_std=data_std, sigma_min=sigma_min)(x, t)

    x, t = draws(16, 3, 1).astype(dtype), jnp.full(16, sigma_min, dtype)
    scale = jnp.asarray(1e3, dtype)
    for run in (function, jax.jit(function)):
        found = run(scale, x, t)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, x)
        of_network, of_x = jax.grad(lambda scale, x, run=run: jnp.sum(run(scale, x, t)), argnums=(0, 1))(scale, x)
        assert of_network == 0
        np.testing.assert_array_equal(of_x, jnp.ones_like(x))
        assert np.all(run(scale, x, 2 * t) != x)


@pytest.mark.parametrize(("x64", "tolerance"), [(True, 1e-12), (False, 1e-6)])
def test_scalings_agree_with_the_authors_code(x64, tolerance):
    """Numbers of openai/consistency_models (e32b69e), KarrasDenoiser(sigma_data=0.5, sigma_min=0.002, sigma_max=80, rho=7)."""
    numbers = np.load(REFERENCE / "consistency_scalings.npz")
    told = []
    with jax.enable_x64(x64):
        sigma = jnp.asarray(numbers["sigma"])
        of_sigma_min = {
            "boundary_": boundary_scalings(sigma, data_std=0.5),
            "": boundary_scalings(sigma, data_std=0.5, sigma_min=0.0),
        }
        consistency_function(lambda x, time: told.append(time) or x, data_std=0.5)(jnp.ones((len(sigma), 1)), sigma)
    for prefix, scalings in of_sigma_min.items():
        for name, value in zip(("skip", "out", "in"), scalings, strict=True):
            scale = numbers[f"c_{name}"]  # EDM's own: near sigma_min the other c_out is a small difference
            assert (np.abs(np.asarray(value) - numbers[f"{prefix}c_{name}"]) / scale).max() < tolerance
    # their network is told 250 log(sigma)
    np.testing.assert_allclose(1000 * np.asarray(told[0]), numbers["network_time"], rtol=tolerance)


def test_with_the_boundary_at_0_it_is_the_preconditioned_denoiser_of_edm():
    x, t = draws(5, 2), jnp.asarray([0.01, 0.1, 1.0, 10.0, 80.0])
    into = 1 / jnp.sqrt(t**2 + 0.7**2)[:, None]
    network = lambda x, time: jnp.tanh(x) + time[:, None]  # noqa: E731
    found = consistency_function(network, data_std=0.7, sigma_min=0.0)(x, t)
    prediction = network(into * x, jnp.log(t) / 4)
    pair = predictions.to_pair(predictions.edm(0.7), paths.edm(), prediction, x, t)
    np.testing.assert_allclose(found, pair.data, rtol=1e-10)


def test_a_network_of_low_precision_is_combined_in_that_of_x():
    x, t = draws(4, 2).astype(jnp.float32), jnp.full(4, 3.0, jnp.float32)
    f = consistency_function(lambda x, time: jnp.sin(x).astype(jnp.bfloat16), data_std=0.5, clock=lambda t: t)
    assert f(x, t).dtype == jnp.float32


# Distillation: the flow map is the fixed point

MEAN, VARIANCES = np.asarray([[0.5, -1.0]]), np.asarray([[0.3, 1.5]])


def gaussian():
    return oracles.mixture([1.0], MEAN, np.diag(VARIANCES[0])[None])


def two_modes(dimension=2):
    means = np.array([[-1.0, 0.5], [1.2, -0.3]])[:, :dimension]
    return oracles.mixture([0.3, 0.7], means, [0.2, 0.1])


def teacher_of(mix):
    return oracles.model(mix, paths.edm(), predictions.velocity)


def gaussian_flow_map(x, t):
    """From level t to SIGMA_MIN along the ODE of `gaussian()`."""
    return MEAN + jnp.sqrt((VARIANCES + SIGMA_MIN**2) / (VARIANCES + t[:, None] ** 2)) * (x - MEAN)


def flow_map(mix, steps=200):
    """The same of any mixture, by the classical Runge-Kutta method in log t."""
    velocity = teacher_of(mix)

    def integrate(x, t):
        rate = jnp.log(SIGMA_MIN / t)

        def slope_at(x, u):
            level = t * jnp.exp(rate * u)
            return (rate * level)[:, None] * velocity(x, level)

        def advance(x, index):
            u, h = index / steps, 1 / steps
            k1 = slope_at(x, u)
            k2 = slope_at(x + h / 2 * k1, u + h / 2)
            k3 = slope_at(x + h / 2 * k2, u + h / 2)
            k4 = slope_at(x + h * k3, u + h)
            return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), None

        return jax.lax.scan(advance, x, jnp.arange(steps))[0]

    return integrate


EXACT = {"gaussian": (gaussian, lambda mix: gaussian_flow_map), "mixture": (two_modes, flow_map)}
every_oracle = pytest.mark.parametrize("oracle", EXACT)


def test_integration_agrees_with_the_closed_form():
    x, t = draws(32, 2), jnp.linspace(SIGMA_MIN, 5.0, 32)
    np.testing.assert_allclose(flow_map(gaussian())(x, t), gaussian_flow_map(x, t), rtol=1e-8, atol=1e-8)


def bent(function, theta):
    """`function` at theta = 0, and away from it something else that keeps the boundary."""
    return lambda x, t: function(x, t) + theta * (t[:, None] - SIGMA_MIN) * jnp.tanh(x)


def distil(oracle, solver, theta, gap, *, num=64):
    """The mean distillation error between the levels 1 and 1 - gap of the exact function, bent by theta."""
    make, exact = EXACT[oracle]
    mix = make()
    data, noise = oracles.sample(mix, jax.random.key(0), num), draws(num, 2)
    f, ones = bent(exact(mix), theta), jnp.ones(num)
    return jnp.mean(
        consistency_distillation_error(f, data, noise, ones, (1 - gap) * ones, teacher=teacher_of(mix), solver=solver)
    )


@every_solver
@every_oracle
def test_the_exact_function_errs_by_the_solvers_local_error(oracle, name):
    solver, order = SOLVERS[name]
    errors = jax.jit(lambda gaps: jax.lax.map(lambda gap: distil(oracle, solver, 0.0, gap), gaps))(GAPS)
    found = slope(GAPS[1:], errors[1:] ** 0.5)
    print(f"{oracle}, {name}: slope {found:.3f}, errors {errors}")
    assert abs(found - order) < 0.15
    assert errors[-1] < 1e-5 * (1 if name == "euler" else 0.01)


@every_solver
@every_oracle
def test_the_exact_function_is_a_fixed_point(oracle, name):
    """Its gradient falls with the solver's local error; that of another function with the gap alone."""
    solver, order = SOLVERS[name]

    @jax.jit
    def gradients(theta):
        return jax.lax.map(lambda gap: jax.grad(lambda theta: distil(oracle, solver, theta, gap))(theta), GAPS)

    at_exact, elsewhere = (np.abs(gradients(theta)) for theta in (0.0, 0.5))
    print(f"{oracle}, {name}: {slope(GAPS[1:], at_exact[1:]):.3f} and {slope(GAPS[1:], elsewhere[1:]):.3f}")
    assert abs(slope(GAPS[1:], at_exact[1:]) - order) < 0.25
    assert abs(slope(GAPS[1:], elsewhere[1:]) - 1) < 0.15
    assert at_exact[-1] < 0.02 * elsewhere[-1]


@every_solver
def test_the_minimiser_on_a_grid_is_the_solvers_own_flow_map(name):
    """The function that takes every step of the grid that is left has no error on it, and one of another solver has."""
    levels, mix = karras_levels(6, sigma_min=SIGMA_MIN, sigma_max=3.0), two_modes()
    velocity = teacher_of(mix)

    def function(solver):
        def descend(x, t):
            for then, now in reversed(list(itertools.pairwise(levels))):
                ones = jnp.ones_like(t)
                x = jnp.where((t >= now)[:, None], solver(velocity, x, now * ones, then * ones), x)
            return x

        return descend

    data, noise = oracles.sample(mix, jax.random.key(1), 10), draws(10, 2)
    index = jnp.arange(10) % 5
    for other, (solver, _) in SOLVERS.items():
        error = consistency_distillation_error(
            function(solver), data, noise, levels[index + 1], levels[index], teacher=velocity, solver=SOLVERS[name][0]
        )
        assert np.all(error < 1e-25) if other == name else np.all(error > 1e-9)


# Training: distillation in the mean


def pairs(mix, nodes=60):
    """Data and noise `[n, 1]` and their weights `[n]`, by which sums over them are expectations."""
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    weights = weights / weights.sum()
    means, stds = np.asarray(mix.means)[:, 0], np.sqrt(np.asarray(mix.eigenvalues)[:, 0])
    data = means[:, None, None] + stds[:, None, None] * points[None, :, None]
    joint = np.exp(np.asarray(mix.log_weights))[:, None, None] * weights[None, :, None] * weights[None, None, :]
    grids = np.broadcast_arrays(data, points[None, None, :], joint)
    data, noise, joint = (jnp.asarray(grid.reshape(-1)) for grid in grids)
    return data[:, None], noise[:, None], joint


def curved(theta):
    """A consistency function that fits nothing; `theta [3]`."""
    network = lambda x, time: jnp.tanh(theta[0] * x + theta[1]) + theta[2] * time[:, None]  # noqa: E731
    return consistency_function(network, data_std=0.7, sigma_min=SIGMA_MIN)


def straight(theta):
    """One that is affine in x."""
    network = lambda x, time: theta[0] * x + theta[1] + theta[2] * time[:, None]  # noqa: E731
    return consistency_function(network, data_std=0.7, sigma_min=SIGMA_MIN)


THETA, AVERAGE = np.asarray([0.8, -0.4, 0.3]), np.asarray([0.7, -0.2, 0.1])


def mean_gradients(mix, make, gap, **options):
    """`(training's, distillation's)` over theta, in expectation, at the levels 1 and 1 - gap."""
    data, noise, weights = pairs(mix)
    levels = jnp.ones_like(weights), (1 - gap) * jnp.ones_like(weights)

    def training(theta):
        return weights @ consistency_training_error(make(theta), data, noise, *levels, **options)

    def distillation(theta):
        options_here = {"teacher": teacher_of(mix), "solver": euler_step, **options}
        return weights @ consistency_distillation_error(make(theta), data, noise, *levels, **options_here)

    return jax.grad(training)(THETA), jax.grad(distillation)(THETA)


@pytest.mark.parametrize("distance", [squared, pseudo_huber(0.5)], ids=["squared", "pseudo-huber"])
def test_trainings_gradient_is_distillations_as_the_grid_gets_finer(distance):
    """They differ by the square of the gap, and are of the order of the gap themselves (theorem 2)."""
    mix = two_modes(1)
    run = lambda gap: mean_gradients(mix, curved, gap, distance=distance, weighting=uniform)  # noqa: E731
    gaps = GAPS / 8
    training, distillation = jax.jit(lambda gaps: jax.lax.map(run, gaps))(gaps)
    difference, size = (np.linalg.norm(value, axis=1) for value in (training - distillation, distillation))
    print(f"slopes {slope(gaps, difference):.3f} and {slope(gaps, size):.3f}")
    assert abs(slope(gaps, difference) - 2) < 0.2
    assert abs(slope(gaps, size) - 1) < 0.2
    assert difference[-1] < 0.05 * size[-1]


@pytest.mark.parametrize("weighting", [uniform, inverse_gap])
def test_of_an_affine_function_the_gradients_agree_on_every_grid(weighting):
    """Also where the target is another function."""
    for target in (None, straight(AVERAGE)):
        options = {"distance": squared, "weighting": weighting, "target": target}
        training, distillation = mean_gradients(two_modes(1), straight, 0.5, **options)
        assert np.linalg.norm(training) > 0.05
        np.testing.assert_allclose(training, distillation, rtol=1e-6)


# Targets, distances, weightings


def every_error(model, data, noise, t_noisier, t_cleaner, **options):
    yield consistency_training_error(model, data, noise, t_noisier, t_cleaner, **options)
    options["teacher"] = teacher_of(two_modes(1))
    yield consistency_distillation_error(model, data, noise, t_noisier, t_cleaner, **options)


def test_no_gradient_passes_through_the_target():
    data, noise, high, low = draws(8, 1), draws(8, 1, seed=1), jnp.full(8, 0.9), jnp.full(8, 0.6)

    def total(theta, average):
        target = None if average is None else curved(average)
        errors = every_error(curved(theta), data, noise, high, low, target=target)
        return sum(jnp.sum(error) for error in errors)

    of_model, of_target = jax.grad(total, argnums=(0, 1))(THETA, AVERAGE)
    assert np.all(np.abs(of_model) > 1e-6)
    np.testing.assert_array_equal(of_target, jnp.zeros(3))
    np.testing.assert_array_equal(jax.grad(total)(THETA, None), jax.grad(total)(THETA, THETA))
    assert total(THETA, AVERAGE) != total(THETA, THETA)


def test_values_by_hand():
    data, noise = jnp.asarray([[1.0, 2.0], [0.0, 0.0]]), jnp.asarray([[1.0, -1.0], [2.0, 0.0]])
    high, low = jnp.asarray([2.0, 1.0]), jnp.asarray([1.0, 0.5])
    model, target = (lambda x, t: x * t[:, None]), (lambda x, t: x + t[:, None])
    # model: 2 (3, 0) and (2, 0); target: (2, 1) + 1 and (1, 0) + 1/2
    apart = np.asarray([[6 - 3, 0 - 2], [2 - 1.5, 0 - 0.5]])
    options = {"target": target, "distance": squared}
    found = consistency_training_error(model, data, noise, high, low, weighting=uniform, **options)
    np.testing.assert_allclose(found, np.mean(apart**2, axis=1))
    found = consistency_training_error(model, data, noise, high, low, **options)
    np.testing.assert_allclose(found, np.mean(apart**2, axis=1) / np.asarray([1.0, 0.5]))
    found = consistency_training_error(model, data, noise, high, low, target=target)
    c = 0.00054 * 2**0.5
    np.testing.assert_allclose(found, (np.sqrt(np.sum(apart**2, axis=1) + c**2) - c) / np.asarray([1.0, 0.5]))
    # velocity x: Euler takes (3, 0) to 0 and (2, 0) to (1, 0), Heun (3, 0) to 3/2 (1, 0) and (2, 0) to (5/4, 0)
    for solver, x in ((euler_step, [[0.0, 0.0], [1.0, 0.0]]), (heun_step, [[1.5, 0.0], [1.25, 0.0]])):
        apart = np.asarray([[6.0, 0.0], [2.0, 0.0]]) - (np.asarray(x) + np.asarray(low)[:, None])
        found = consistency_distillation_error(
            model, data, noise, high, low, teacher=lambda x, t: x, target=target, solver=solver
        )
        np.testing.assert_allclose(found, np.mean(apart**2, axis=1))


def test_pseudo_huber_is_quadratic_below_c_and_linear_above():
    values, target = draws(16, 3, 2), draws(16, 3, 2, seed=1)
    square = jnp.sum((values - target) ** 2, axis=(1, 2))
    np.testing.assert_allclose(pseudo_huber(1e4)(values, target), square / 2e4, rtol=1e-6)
    np.testing.assert_allclose(pseudo_huber(1e-9)(values, target), jnp.sqrt(square), rtol=1e-6)
    np.testing.assert_allclose(pseudo_huber(2.0)(values, target), jnp.sqrt(square + 4) - 2, rtol=1e-12)
    np.testing.assert_allclose(pseudo_huber()(values, target), pseudo_huber(0.00054 * 6**0.5)(values, target))


def test_pseudo_huber_keeps_its_digits_near_0():
    values = jnp.asarray([[0.0], [1e-6]], jnp.float32)
    distance = lambda values: pseudo_huber(1.0)(values, jnp.zeros_like(values))  # noqa: E731
    np.testing.assert_allclose(distance(values), [0.0, 0.5e-12], rtol=1e-6)
    gradient = jax.grad(lambda values: jnp.sum(distance(values)))(values)
    np.testing.assert_allclose(gradient, [[0.0], [1e-6]], rtol=1e-6)


# Grids and draws of their intervals


def test_the_grid_agrees_with_the_authors_code_and_with_that_of_sampling():
    numbers = np.load(REFERENCE / "consistency_scalings.npz")
    np.testing.assert_allclose(karras_levels(18)[::-1], numbers["train_times_n18"], rtol=1e-12)  # theirs fall
    with jax.enable_x64(False):
        np.testing.assert_allclose(karras_levels(18)[::-1], numbers["train_times_n18"], rtol=1e-6)
    path, options = paths.edm(), {"sigma_min": 0.1, "sigma_max": 30.0, "rho": 5.0}
    of_sampling = times.karras(path, 20, append_data=False, **options)
    np.testing.assert_allclose(karras_levels(21, **options)[::-1], of_sampling, rtol=1e-10)


@pytest.mark.parametrize("num", [2, 3, 18, 1281])
def test_a_grid_rises_strictly_between_exact_ends_and_is_padded_by_the_last(num):
    with jax.enable_x64(False):
        levels = karras_levels(num)
        assert levels.dtype == jnp.float32
        assert levels.shape == (num,)
        assert np.all(np.diff(levels) > 0)
        assert (levels[0], levels[-1]) == (np.float32(0.002), np.float32(80.0))
        padded = karras_levels(num, capacity=1300)
        np.testing.assert_array_equal(padded[:num], levels)
        np.testing.assert_array_equal(padded[num:], np.full(1300 - num, 80.0, np.float32))
        traced = jax.jit(lambda num: karras_levels(num, capacity=1300))(num)
        np.testing.assert_allclose(traced, padded, rtol=1e-5)
        assert traced[0] == levels[0]


def assert_frequencies(found, probabilities):
    """Counts `[n]` within 4 standard errors of what a multinomial has."""
    total = found.sum()
    errors = np.sqrt(total * probabilities * (1 - probabilities))
    assert np.all(np.abs(found - total * probabilities) < 4 * np.maximum(errors, 1))


@pytest.mark.parametrize("capacity", [12, 40])
@pytest.mark.parametrize(("mean", "std"), [(-1.1, 2.0), (0.5, 1.0)])
def test_lognormal_intervals_have_the_papers_probabilities(mean, std, capacity):
    levels = karras_levels(12, capacity=capacity)
    index = np.asarray(lognormal_intervals(mean, std)(jax.random.key(0), levels, 40_000))
    assert index.shape == (40_000,)
    edges = erf((np.log(np.asarray(levels[:12])) - mean) / (2**0.5 * std))
    assert_frequencies(np.bincount(index, minlength=11), np.diff(edges) / (edges[-1] - edges[0]))


@pytest.mark.parametrize("capacity", [12, 40])
def test_uniform_intervals_are_uniform(capacity):
    index = np.asarray(uniform_intervals(jax.random.key(0), karras_levels(12, capacity=capacity), 40_000))
    assert_frequencies(np.bincount(index, minlength=11), np.full(11, 1 / 11))


def test_no_draw_leaves_the_grid_even_where_a_density_has_no_mass():
    levels = karras_levels(5, capacity=9)
    for mean in (-40.0, 40.0):
        index = lognormal_intervals(mean, 0.5)(jax.random.key(0), levels, 100)
        assert np.all((index >= 0) & (index < 4))


# Drawing losses

LOSSES = {
    "training": (consistency_training_loss, consistency_training_error, {}),
    "distillation": (consistency_distillation_loss, consistency_distillation_error, {"solver": euler_step}),
}


@pytest.mark.parametrize("name", LOSSES)
def test_drawing_losses_are_the_errors_at_their_draws(name):
    loss, error, options = LOSSES[name]
    levels, key, data = karras_levels(7, sigma_min=SIGMA_MIN), jax.random.key(3), draws(6, 2, 2, 1)
    options = {**options, "target": lambda x, t: jnp.cos(x), "distance": pseudo_huber(0.1), "weighting": inverse_gap}
    if name == "distillation":
        options["teacher"] = lambda x, t: jnp.tanh(x)
    model = consistency_function(lambda x, time: jnp.sin(x), data_std=0.5, sigma_min=SIGMA_MIN)
    interval_key, noise_key = jax.random.split(key)
    for intervals in (uniform_intervals, lognormal_intervals(0.0, 1.0)):
        index = intervals(interval_key, levels, 6)
        noise = normal(noise_key, data.shape, data.dtype)
        found = loss(model, key, data, levels=levels, intervals=intervals, **options)
        assert found.shape == (6,)
        np.testing.assert_allclose(
            found, error(model, data, noise, levels[index + 1], levels[index], **options), rtol=1e-12
        )


def test_default_draws_are_those_of_the_recipes():
    levels, key, data = karras_levels(40), jax.random.key(3), draws(64, 2)
    seen = lambda x, t: jnp.broadcast_to(t[:, None], x.shape)  # noqa: E731
    options = {"levels": levels, "target": lambda x, t: jnp.zeros_like(x), "distance": squared, "weighting": uniform}
    training = {
        one: consistency_training_loss(seen, key, data, intervals=intervals, **options)
        for one, intervals in {"default": None, "lognormal": lognormal_intervals(-1.1, 2.0)}.items()
    }
    np.testing.assert_array_equal(training["default"], training["lognormal"])
    options = {"teacher": lambda x, t: x, **options}
    default = consistency_distillation_loss(seen, key, data, **options)
    np.testing.assert_array_equal(
        default, consistency_distillation_loss(seen, key, data, intervals=uniform_intervals, **options)
    )
    assert np.any(default != training["default"])


def test_a_grid_that_grows_in_training_does_not_recompile():
    traces = []

    @jax.jit
    def loss(key, step, data):
        traces.append(None)
        levels = karras_levels(doubling_levels(step, 80), capacity=1281)
        model = consistency_function(lambda x, time: jnp.sin(x), data_std=0.5)
        return jnp.mean(consistency_training_loss(model, key, data, levels=levels))

    found = [loss(jax.random.key(0), step, draws(32, 2)) for step in (0, 10, 40, 79)]
    assert len(traces) == 1
    assert np.all(np.isfinite(found))
    assert len(set(map(float, found))) == 4


# Schedules


def test_growing_levels_are_the_papers():
    total, steps = 1000, np.arange(1001)
    expected = np.ceil(np.sqrt(steps / total * (151**2 - 2**2) + 2**2) - 1) + 1
    found = np.asarray(growing_levels(steps, total))
    np.testing.assert_array_equal(found, expected)
    assert (found[0], found[-1]) == (2, 151)
    assert growing_levels(5000, total) == 151
    other = growing_levels(jnp.asarray([0, total]), total, start=3, end=200)
    assert other.tolist() == [3, 201]


def test_doubling_levels_are_the_papers():
    """Eight numbers of levels, each for as long."""
    steps = np.arange(800)
    found = np.asarray(doubling_levels(steps, 800))
    np.testing.assert_array_equal(found, np.repeat(10 * 2 ** np.arange(8), 100) + 1)
    assert (found[0], found[-1]) == (11, 1281)
    assert doubling_levels(10**9, 800) == 1281
    uneven = np.asarray(doubling_levels(steps, 800, start=3, end=50))  # floor(50 / 3) = 16: five of them, K' = 160
    np.testing.assert_array_equal(uneven, np.repeat([4, 7, 13, 25, 49], 160))
    assert doubling_levels(10**6, 800, start=3, end=50) == 51
    assert doubling_levels(np.arange(4), 4).tolist() == [11, 21, 41, 81]  # fewer steps than doublings


def test_target_decay_is_the_papers():
    assert float(target_decay(2)) == pytest.approx(0.9)
    np.testing.assert_allclose(target_decay(jnp.asarray([2, 151])), [0.9, np.exp(2 * np.log(0.9) / 151)])
    assert float(target_decay(10, start=5, decay=0.95)) == pytest.approx(0.95**0.5)


def test_schedules_are_traced_once():
    traces = []

    @jax.jit
    def run(step):
        traces.append(step)
        return growing_levels(step, 100), doubling_levels(step, 100), target_decay(step)

    assert [value.dtype for value in run(3)] == [jnp.int32, jnp.int32, jnp.float64]
    run(50)
    assert len(traces) == 1


# What cannot be meant


def test_what_cannot_be_meant_raises():
    data, t = jnp.ones((4, 2)), jnp.ones(4)
    for arguments in (
        (data, jnp.ones((4, 1)), t, t),
        (data, data, jnp.ones(()), t),
        (data, data, t, jnp.ones(3)),
    ):
        with pytest.raises(ValueError, match="must agree, and t_noisier"):
            consistency_training_error(lambda x, t: x, *arguments)
        with pytest.raises(ValueError, match="must agree, and t_noisier"):
            consistency_distillation_error(lambda x, t: x, *arguments, teacher=lambda x, t: x)
    with pytest.raises(ValueError, match="they must agree"):
        consistency_training_error(lambda x, t: x[:, :1], data, data, t, t / 2, target=lambda x, t: x)
    with pytest.raises(ValueError, match="they must agree"):
        consistency_training_error(lambda x, t: x, data, data, t, t / 2, target=lambda x, t: x[:, :1])
    for num_levels, capacity in ((1, None), (5, 4)):
        with pytest.raises(ValueError, match="num_levels is"):
            karras_levels(num_levels, capacity=capacity)
    with pytest.raises(ValueError, match="needs a capacity"):
        karras_levels(jnp.asarray(4))
    for make, value in ((pseudo_huber, 0.0), (lambda std: lognormal_intervals(0.0, std), 0.0)):
        with pytest.raises(ValueError, match="expected more than 0"):
            make(value)
    for schedule, start in ((growing_levels, 1), (doubling_levels, 0)):
        for options in ({"start": start}, {"start": 20, "end": 10}):
            with pytest.raises(ValueError, match="start"):
                schedule(0, 100, **options)
        with pytest.raises(ValueError, match="total_steps is 0"):
            schedule(0, 0)
    for decay in (0.0, 1.0):
        with pytest.raises(ValueError, match="decay is"):
            target_decay(2, decay=decay)


def test_the_module_names_the_recipes_it_has():
    for name in ("growing_levels", "target_decay", "lognormal_intervals", "doubling_levels"):
        assert f"`{name}`" in consistency.__doc__
