"""DPM-Solver and DPM-Solver++ single step: orders, the steps by hand, singular ends."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import oracles, paths
from genjax.samplers import ddim, dpm_solver_pp_singlestep, dpm_solver_singlestep, rk4, sample
from genjax.samplers.exponential import exponential_moments, log_ratio
from genjax.typing import Path, Prediction

MIXTURE = ([0.3, 0.7], np.array([[1.0, -0.5], [-1.0, 0.4]]), np.array([0.2, 0.1])[:, None, None] * np.eye(2))
PATHS = {
    "linear": (paths.linear(), 0.01, 0.9),
    "cosine": (paths.cosine(), 0.99, 0.1),
    "vp": (paths.vp(), 1.0, 0.1),
    "edm": (paths.edm(), 80.0, 0.1),
}
SOLVERS = {"noise": dpm_solver_singlestep, "data": dpm_solver_pp_singlestep}


def run(sampler, knots):
    """Jitted: outside of a jit it compiles operation by operation."""

    @jax.jit
    def solve(knots):
        start = knots.sigma[0] * jnp.asarray(np.random.default_rng(0).standard_normal((32, 2)), knots.sigma.dtype)
        return sample(sampler, oracles.denoiser(oracles.mixture(*MIXTURE)), jax.random.key(0), start, knots)

    return solve(knots)


def on_all_paths(make, step_counts):
    """Ends `[path, step count, 32, 2]` on grids even in log SNR: of one compilation, of the path at a traced index."""

    def one(index, t):
        def at_index(field):
            return jnp.asarray([getattr(path, field) for path, _, _ in PATHS.values()])[index]

        def choose(field):
            return lambda t: jax.lax.switch(index, [getattr(path, field) for path, _, _ in PATHS.values()], t)

        ends = at_index("t_data"), at_index("t_noise")
        path = Path(choose("alpha"), choose("sigma"), *ends, choose("time_of_ratio"))
        return run(make(path), paths.knots(path, t))

    def even(path, start, end, steps):
        ends = paths.log_snr(path, jnp.asarray([start, end]))
        u = jnp.minimum(jnp.arange(max(step_counts) + 1) / steps, 1.0)
        return paths.time_of_log_snr(path, ends[0] + u * (ends[1] - ends[0]))

    grids = jax.jit(lambda: jnp.asarray([[even(*ends, steps) for steps in step_counts] for ends in PATHS.values()]))()
    return np.asarray(jax.jit(jax.vmap(jax.vmap(one, in_axes=(None, 0))))(jnp.arange(len(PATHS)), grids))


@functools.cache
def fine_solutions():
    return on_all_paths(lambda path: rk4(path, first_order_end=False), (1000,))


@pytest.mark.parametrize(("estimate", "order"), [("noise", 2), ("noise", 3), ("data", 2), ("data", 3)])
def test_order_of_convergence(float64, estimate, order):
    ends = on_all_paths(lambda path: SOLVERS[estimate](path, order=order), (64, 128))
    coarse, fine = np.sqrt(np.mean((ends - fine_solutions()) ** 2, axis=(2, 3))).T
    print(f"{estimate} {order} on {list(PATHS)}: errors {fine}, orders {np.log2(coarse / fine)}")
    assert np.all(fine < 3e-3)
    assert np.all(np.log2(coarse / fine) > order - 0.1)


@pytest.mark.parametrize("estimate", SOLVERS)
def test_of_order_one_they_are_ddim(float64, estimate):
    knots = paths.knots(paths.vp(), jnp.asarray([0.9, 0.5, 0.2]))
    np.testing.assert_allclose(run(SOLVERS[estimate](paths.vp(), order=1), knots), run(ddim(), knots), atol=1e-12)


def test_dpm_solver_2_by_hand(float64):
    """k-diffusion's DPM2: Euler to the geometric middle of the noise levels, and the whole step by the slope there."""
    path = paths.edm()
    denoise = jax.jit(oracles.denoiser(oracles.mixture(*MIXTURE)))
    x = jnp.asarray([[3.0, -1.0], [0.5, 2.0]])
    now, middle, then = (paths.knots(path, jnp.asarray(t)) for t in (4.0, 2.0, 1.0))
    halfway = x + (middle.t - now.t) * denoise(x, now).noise
    expected = x + (then.t - now.t) * denoise(halfway, middle).noise
    knots = paths.knots(path, jnp.asarray([4.0, 1.0]))
    solve = jax.jit(lambda x: sample(dpm_solver_singlestep(path, order=2), denoise, jax.random.key(0), x, knots))
    np.testing.assert_allclose(solve(x), expected, atol=1e-12)


@pytest.mark.parametrize("estimate", SOLVERS)
@pytest.mark.parametrize("order", [2, 3])
def test_singular_ends_are_steps_of_ddim(estimate, order):
    def bent(x, knot):
        data = jnp.tanh(x)
        return Prediction(data, (x - knot.alpha * data) / knot.sigma)

    path, x = paths.cosine(), jnp.asarray([[0.4, -2.0]])
    samplers = SOLVERS[estimate](path, order=order), ddim()

    @jax.jit
    def both(knots):
        return [sample(sampler, bent, jax.random.key(0), x, knots) for sampler in samplers]

    for ends in ([1.0, 0.6], [0.3, 0.0]):
        np.testing.assert_allclose(*both(paths.knots(path, jnp.asarray(ends))), atol=1e-6)


def test_repeated_knots_leave_x_where_it_is(float64):
    knots = paths.knots(paths.linear(), jnp.asarray([0.3, 0.3]))
    start = knots.sigma[0] * np.random.default_rng(0).standard_normal((32, 2))
    for make in SOLVERS.values():
        np.testing.assert_allclose(run(make(paths.linear(), order=3), knots), start, atol=1e-12)


@pytest.mark.parametrize(
    "options", [{"order": 0}, {"order": 4}, {"r1": 0.0}, {"order": 3, "r1": 0.7, "r2": 0.5}, {"order": 3, "r2": 1.5}]
)
def test_what_is_refused(options):
    with pytest.raises(ValueError, match="expected"):
        dpm_solver_singlestep(paths.linear(), **options)


# What the exponential integrators share


@pytest.mark.parametrize("k", [-30.0, -2.0, -0.9, -1e-6, 1e-9, 0.5, 0.999, 1.001, 3.0, 40.0])
def test_moments_are_the_integrals(float64, k):
    u, weights = np.polynomial.legendre.leggauss(80)
    u = (u + 1) / 2
    expected = [np.sum(weights / 2 * k * np.exp(k * (u - 1)) * u**n) for n in range(4)]
    found = exponential_moments(jnp.asarray(k), 4)
    np.testing.assert_allclose(found, expected, rtol=1e-11)


def test_log_ratio_at_the_ends_and_its_gradient():
    path = paths.cosine()
    knots = paths.knots(path, jnp.asarray([1.0, 0.5, 0.0]))
    assert log_ratio(knots).tolist() == [-np.inf, pytest.approx(0.0, abs=1e-6), np.inf]
    gradient = jax.grad(
        lambda sigma: jnp.sum(jnp.where(jnp.arange(3) == 1, log_ratio(knots._replace(sigma=sigma)), 0.0))
    )
    assert np.all(np.isfinite(gradient(knots.sigma)))
