"""Log-densities of path models: those of the exact oracle, whatever the path and the prediction; errors that cover the error."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import likelihood, oracles, paths, predictions
from genjax.continuous_flows import Solver
from genjax.vector_fields import draw_probes, hutchinson_divergence

MIX = dict(
    weights=[0.3, 0.7], means=[[-1.0, 0.5], [1.0, 0.0]], covariances=[[[0.2, 0.1], [0.1, 0.3]], [[0.1, 0], [0, 0.2]]]
)
CASES = {  # path, kind, where the solve starts and ends
    "linear velocity": (paths.linear(), predictions.velocity, None, None),
    "linear data": (paths.linear(), predictions.data, 1 - 1e-4, None),
    "cosine v": (paths.cosine(), predictions.v, None, None),
    "vp noise": (paths.vp(0.1, 60.0), predictions.noise, None, None),
    "vp score": (paths.vp(0.1, 60.0), predictions.score, 1e-6, None),
    "sub-vp v": (paths.sub_vp(0.1, 60.0), predictions.v, None, None),
    "ve score": (paths.ve(1e-3, 1e4), predictions.score, None, None),
    "edm": (paths.edm(1e4), predictions.edm(0.5), 1e-3, None),
    "ddpm v": (paths.ddpm(paths.zero_terminal_snr(paths.linear_betas(1000))), predictions.v, None, None),
    "a path without a closed form": (paths.cosine()._replace(time_of_ratio=None), predictions.data, 1e-3, None),
}


@pytest.fixture(scope="module")
def mix_and_data():
    with jax.enable_x64(True):
        mix = oracles.mixture(**MIX)
        return mix, oracles.sample(mix, jax.random.key(0), 16)


@pytest.mark.parametrize("name", CASES)
def test_an_oracles_density_is_the_exact_one(float64, mix_and_data, name):
    """To 1e-4, on paths that end in noise: where a path's last alpha is not 0, sampling starts from a wrong distribution."""
    (path, kind, t_data, t_noise), (mix, data) = CASES[name], mix_and_data
    end = path.t_data if t_data is None else t_data
    alpha, sigma = path.alpha(jnp.asarray(end)), path.sigma(jnp.asarray(end))
    solve = partial(likelihood.log_density, oracles.model(mix, path, kind), path=path, predict=kind)
    found = jax.jit(partial(solve, t_data=t_data, t_noise=t_noise, solver=Solver(1e-6)))(data)
    exact = oracles.log_density(mix, data, sigma=sigma / alpha)
    np.testing.assert_allclose(found, exact, atol=1e-4)


def test_a_path_that_ends_short_of_noise_has_the_density_of_what_is_sampled(float64):
    """The data N(0, s^2) on a path that ends at ratio r, where sampling starts from N(0, r^2): N(0, s^2 r^2 / (s^2 + r^2))."""
    std, ratio = 0.7, 2.0
    path = paths.edm(ratio)
    mix = oracles.mixture([1.0], [[0.0, 0.0]], [std**2])
    data = oracles.sample(mix, jax.random.key(1), 8)
    model = oracles.model(mix, path, predictions.velocity)
    found = likelihood.log_density(model, data, path=path, predict=predictions.velocity, solver=Solver(1e-8))
    sampled = oracles.mixture([1.0], [[0.0, 0.0]], [std**2 * ratio**2 / (std**2 + ratio**2)])
    np.testing.assert_allclose(found, oracles.log_density(sampled, data), atol=1e-6)


def linear_flow(path, kind=predictions.v):
    """A Gaussian of full covariance in five dimensions, whose trace is not its estimate."""
    factor = np.random.default_rng(3).standard_normal((5, 5))
    mix = oracles.mixture([1.0], np.ones((1, 5)), (factor @ factor.T / 5 + 0.1 * np.eye(5))[None])
    return mix, oracles.model(mix, path, kind), oracles.sample(mix, jax.random.key(2), 6)


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
def test_the_standard_error_covers_the_estimators_error(float64, distribution):
    """Over 6 examples, each within 4.5 of its standard errors (64 probes), and the mean square of the ratio near 1."""
    path = paths.cosine()
    mix, model, data = linear_flow(path)
    solve = partial(likelihood.log_density_with_errors, path=path, predict=predictions.v, solver=Solver(1e-6))
    found = solve(model, jax.random.key(0), data, num_probes=64, distribution=distribution)
    ratios = np.asarray((found.log_density - oracles.log_density(mix, data)) / found.estimator_error)
    assert np.abs(ratios).max() < 4.5
    assert 0.2 < np.mean(ratios**2) < 3.5


@pytest.mark.parametrize("tolerance", [1e-2, 1e-4])
def test_the_solvers_error_is_less_than_it_is_said_to_be(float64, tolerance):
    path = paths.cosine()
    mix, model, data = linear_flow(path)
    solve = partial(likelihood.log_density_with_errors, path=path, predict=predictions.v, num_probes=None)
    found = solve(model, jax.random.key(0), data, solver=Solver(tolerance))
    assert np.all(found.estimator_error == 0)
    error = np.abs(found.log_density - oracles.log_density(mix, data))
    assert error.max() < found.solver_error.max() < 30 * tolerance


def test_estimates_of_several_probes_are_those_of_each(float64):
    path = paths.cosine()
    _, model, data = linear_flow(path)
    probes = jnp.stack([draw_probes(jax.random.key(index), data) for index in range(3)])
    solve = partial(likelihood.log_density, model, data, path=path, predict=predictions.v, solver=Solver(steps=20))
    together = solve(divergence=partial(hutchinson_divergence, probe=probes))
    each = [solve(divergence=partial(hutchinson_divergence, probe=probe)) for probe in probes]
    np.testing.assert_allclose(together, jnp.stack(each), atol=1e-9)


def test_what_is_refused():
    path, data = paths.cosine(), jnp.zeros((1, 2))
    solve = partial(
        likelihood.log_density_with_errors, lambda x, t: x, jax.random.key(0), data, path=path, predict=predictions.v
    )
    with pytest.raises(ValueError, match="at least 2, or None"):
        solve(num_probes=1)
    with pytest.raises(ValueError, match="a tolerance instead"):
        solve(solver=Solver(steps=10))
