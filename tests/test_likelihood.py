"""Log-densities of path models: those of the exact oracle, whatever the path and the prediction; errors that cover the error."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import likelihood, oracles, paths, predictions
from genjax.continuous_flows import Solver
from genjax.typing import Path
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


@jax.jit
def exact_density(mix, data, sigma):
    return oracles.log_density(mix, data, sigma=sigma)


def solve_of_oracle(path, kind, t_data, t_noise, mix, data):
    """The density, and sigma / alpha where the solve starts."""
    solve = partial(likelihood.log_density, oracles.model(mix, path, kind), path=path, predict=kind)
    ratio = path.sigma(t_data) / path.alpha(t_data)
    return solve(data, t_data=t_data, t_noise=t_noise, solver=Solver(1e-6)), ratio


@jax.jit
def solve_of_case(index, mix, data):
    """Of the case at a traced index, so that one compilation serves all that have a closed form."""
    cases = [case for case in CASES.values() if case[0].time_of_ratio]
    choose = lambda functions: lambda t: jax.lax.switch(index, list(functions), t)  # noqa: E731
    start, stop = jnp.asarray([ends_of(case) for case in cases])[index]
    of_path = [choose([getattr(path, field) for path, *_ in cases]) for field in ("alpha", "sigma", "time_of_ratio")]
    all_ends = [jnp.asarray([getattr(path, field) for path, *_ in cases])[index] for field in ("t_data", "t_noise")]
    path = Path(*of_path[:2], *all_ends, of_path[2])
    row = choose([partial(kind, path) for path, kind, *_ in cases])
    return solve_of_oracle(path, lambda path, t: row(t), start, stop, mix, data)


def ends_of(case):
    path, _, t_data, t_noise = case
    return path.t_data if t_data is None else t_data, path.t_noise if t_noise is None else t_noise


@pytest.mark.parametrize("name", CASES)
def test_an_oracles_density_is_the_exact_one(float64, mix_and_data, name):
    """To 1e-4, on paths that end in noise: where a path's last alpha is not 0, sampling starts from a wrong distribution."""
    path, kind, *_ = CASES[name]
    if path.time_of_ratio:
        found, ratio = solve_of_case(list(CASES).index(name), *mix_and_data)
    else:
        ends = map(jnp.asarray, ends_of(CASES[name]))
        found, ratio = jax.jit(partial(solve_of_oracle, path, kind, *ends))(*mix_and_data)
    np.testing.assert_allclose(found, exact_density(*mix_and_data, ratio), atol=1e-4)


def test_a_path_that_ends_short_of_noise_has_the_density_of_what_is_sampled(float64):
    """The data N(0, s^2) on a path that ends at ratio r, where sampling starts from N(0, r^2): N(0, s^2 r^2 / (s^2 + r^2))."""
    std, ratio = 0.7, 2.0
    path = paths.edm(ratio)
    mix = oracles.mixture([1.0], [[0.0, 0.0]], [std**2])
    data = oracles.sample(mix, jax.random.key(1), 8)
    model = oracles.model(mix, path, predictions.velocity)
    solve = partial(likelihood.log_density, model, path=path, predict=predictions.velocity, solver=Solver(1e-8))
    found = jax.jit(solve)(data)
    sampled = oracles.mixture([1.0], [[0.0, 0.0]], [std**2 * ratio**2 / (std**2 + ratio**2)])
    np.testing.assert_allclose(found, exact_density(sampled, data, 0.0), atol=1e-6)


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
    solve = jax.jit(partial(solve, model, num_probes=64, distribution=distribution))
    found = solve(jax.random.key(0), data)
    ratios = np.asarray((found.log_density - exact_density(mix, data, 0.0)) / found.estimator_error)
    assert np.abs(ratios).max() < 4.5
    assert 0.2 < np.mean(ratios**2) < 3.5


@pytest.mark.parametrize("tolerance", [1e-2, 1e-4])
def test_the_solvers_error_is_less_than_it_is_said_to_be(float64, tolerance):
    path = paths.cosine()
    mix, model, data = linear_flow(path)
    solve = partial(likelihood.log_density_with_errors, path=path, predict=predictions.v, num_probes=None)
    found = jax.jit(partial(solve, model, solver=Solver(tolerance)))(jax.random.key(0), data)
    assert np.all(found.estimator_error == 0)
    error = np.abs(found.log_density - exact_density(mix, data, 0.0))
    assert error.max() < found.solver_error.max() < 30 * tolerance


def test_estimates_of_several_probes_are_those_of_each(float64):
    path = paths.cosine()
    _, model, data = linear_flow(path)
    probes = jnp.stack([draw_probes(jax.random.key(index), data) for index in range(3)])
    solve = partial(likelihood.log_density, model, data, path=path, predict=predictions.v, solver=Solver(steps=20))
    solve = jax.jit(lambda probe, solve=solve: solve(divergence=partial(hutchinson_divergence, probe=probe)))
    np.testing.assert_allclose(solve(probes), np.stack([solve(probe) for probe in probes]), atol=1e-9)


def test_what_is_refused():
    path, data = paths.cosine(), jnp.zeros((1, 2))
    solve = partial(
        likelihood.log_density_with_errors, lambda x, t: x, jax.random.key(0), data, path=path, predict=predictions.v
    )
    with pytest.raises(ValueError, match="at least 2, or None"):
        solve(num_probes=1)
    with pytest.raises(ValueError, match="a tolerance instead"):
        solve(solver=Solver(steps=10))
