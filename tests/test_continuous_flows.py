"""Continuous flows: on linear fields all is the matrix exponential's, estimates agree with what they estimate, failures show."""

import itertools
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.linalg

from genjax import oracles, paths, predictions
from genjax.continuous_flows import Solver, flow, flow_and_log_det, flow_and_steps, log_density
from genjax.vector_fields import draw_probes, hutchinson_divergence, jacobian_moments

SOLVERS = {
    "adaptive": Solver(1e-9),
    "fixed": Solver(steps=64),
    "backsolve": Solver(1e-9, adjoint="backsolve"),
}
every_solver = pytest.mark.parametrize("solver", SOLVERS)
MATRIX = np.random.default_rng(0).standard_normal((3, 3))
START, STOP = 1.0, 0.25


def draws(*shape, seed=1):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def linear(matrix):
    return lambda x, t: x @ matrix.T


def bent(x, t):
    """A field whose Jacobian is full, differs between examples and changes with time."""
    return jnp.tanh(x @ draws(3, 3, seed=2) + t[:, None]) @ draws(3, 3, seed=3)


@cache
def solved_and_gradient(name):
    """On the linear field, in one compilation: the solution, `flow`'s, and the gradient of a sum of it by matrix and x."""

    def solved(matrix, x):
        end = flow_and_log_det(linear(matrix), x, start=START, stop=STOP, solver=SOLVERS[name])
        return jnp.sum(end.x**3) + jnp.sum(end.log_det) + jnp.sum(end.jacobian), end

    @jax.jit
    def everything(matrix, x):
        gradient, end = jax.grad(solved, (0, 1), has_aux=True)(matrix, x)
        return end, flow(linear(matrix), x, start=START, stop=STOP, solver=SOLVERS[name]), gradient

    return everything(jnp.asarray(MATRIX), draws(5, 3))


@cache
def exact_gradient():
    def exact(matrix, x):
        h = STOP - START
        end = x @ jax.scipy.linalg.expm(matrix * h).T
        return jnp.sum(end**3) + len(x) * (h * jnp.trace(matrix) + abs(h) * jnp.sum(matrix**2))

    return jax.jit(jax.grad(exact, (0, 1)))(jnp.asarray(MATRIX), draws(5, 3))


@every_solver
def test_on_a_linear_field_all_is_the_matrix_exponentials(float64, solver):
    """x = exp(A h) x, log det = h tr A, Jacobian = |h| ||A||^2, kinetic energy = the integral of |A exp(A t) x|^2."""
    x, h = np.asarray(draws(5, 3)), STOP - START
    found, end_of_flow, _ = solved_and_gradient(solver)
    np.testing.assert_allclose(found.x, x @ scipy.linalg.expm(MATRIX * h).T, atol=1e-8)
    np.testing.assert_allclose(found.log_det, h * np.trace(MATRIX), atol=1e-8)
    np.testing.assert_allclose(found.jacobian, abs(h) * np.sum(MATRIX**2), atol=1e-8)
    speed = lambda t: np.sum((x @ scipy.linalg.expm(MATRIX * t).T @ MATRIX.T) ** 2, axis=1)  # noqa: E731
    energy, _ = scipy.integrate.quad_vec(speed, h, 0)
    np.testing.assert_allclose(found.kinetic, energy, rtol=1e-7)
    np.testing.assert_allclose(end_of_flow, found.x, atol=1e-8)


@every_solver
def test_its_gradient_is_that_of_the_matrix_exponential(float64, solver):
    """By the field's parameters, which it closes over, and by x: of the density and of both regularisers."""
    for found, expected in zip(solved_and_gradient(solver)[2], exact_gradient(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@cache
def solved_bent(solver):
    solve = lambda x: flow_and_log_det(bent, x, start=0.0, stop=1.0, solver=solver)  # noqa: E731
    return jax.tree.map(np.asarray, jax.jit(solve)(draws(4, 3)))


def test_the_log_determinant_is_that_of_the_flows_jacobian_and_back_undoes_it(float64):
    x, there = draws(4, 3), solved_bent(Solver(1e-9))
    one = lambda x: flow(bent, x[None], start=0.0, stop=1.0, solver=Solver(steps=64))[0]  # noqa: E731
    _, expected = np.linalg.slogdet(jax.jit(jax.vmap(jax.jacrev(one)))(x))
    np.testing.assert_allclose(there.log_det, expected, atol=1e-7)
    turn = lambda x: flow_and_log_det(bent, x, start=1.0, stop=0.0, solver=Solver(1e-9))  # noqa: E731
    back = jax.jit(turn)(there.x)
    np.testing.assert_allclose(back.x, x, atol=1e-7)
    np.testing.assert_allclose(back.log_det, -there.log_det, atol=1e-7)
    np.testing.assert_allclose(back.kinetic, there.kinetic, atol=1e-7)


def test_steps_of_equal_length_have_at_least_the_order_of_the_solver(float64):
    exact = solved_bent(Solver(1e-12)).log_det
    coarse, fine = (solved_bent(Solver(steps=steps)) for steps in (16, 64))
    assert (coarse.steps, fine.steps) == (16, 64)
    errors = [np.abs(one.log_det - exact).max() for one in (coarse, fine)]
    assert np.log(errors[0] / errors[1]) / np.log(4) > 4.7


def test_a_lower_tolerance_takes_more_steps_to_a_smaller_error(float64):
    exact = solved_bent(Solver(1e-12)).x
    found = [solved_bent(Solver(tolerance)) for tolerance in (1e-3, 1e-6, 1e-9)]
    errors = [np.abs(one.x - exact).max() for one in found]
    assert found[0].steps < found[1].steps < found[2].steps
    assert errors[0] > 100 * errors[1] > 10000 * errors[2]
    assert errors[2] < 1e-7


def test_hutchinson_over_all_signs_is_exact_and_over_draws_within_its_error_bar(float64):
    """The mean over all 2^D Rademacher probes is the exact log-density; that over draws is so within their standard error."""
    x = draws(4, 3)
    exact = jax.jit(lambda x: log_density(bent, x, solver=Solver(1e-9)))(x)
    estimate = jax.jit(
        jax.vmap(
            lambda probe: log_density(
                bent, x, divergence=partial(hutchinson_divergence, probe=probe), solver=Solver(1e-9)
            )
        )
    )
    signs = jnp.asarray(list(itertools.product([-1.0, 1.0], repeat=3)))[:, None]
    drawn = jax.vmap(lambda key: draw_probes(key, x))(jax.random.split(jax.random.key(0), 400))
    estimates = np.asarray(estimate(jnp.concatenate([jnp.broadcast_to(signs, (8, 4, 3)), drawn])))
    over_all, drawn = estimates[:8], estimates[8:]
    np.testing.assert_allclose(over_all.mean(axis=0), exact, atol=1e-7)
    assert over_all.std(axis=0).min() > 0.01
    error_bar = drawn.std(axis=0) / 400**0.5
    assert np.all(np.abs(drawn.mean(axis=0) - exact) < 4 * error_bar)
    np.testing.assert_allclose(error_bar, over_all.std(axis=0) / 400**0.5, rtol=0.15)


def test_the_moments_of_a_jacobian(float64):
    """Exactly its trace and Frobenius norm, for events of any shape; over all signs the estimates have both as their mean."""
    x = draws(4, 3, 1)
    field = lambda x: bent(x[..., 0], jnp.zeros(len(x)))[..., None]  # noqa: E731
    signs = np.asarray(list(itertools.product([-1.0, 1.0], repeat=3)))[:, None, :, None]

    @jax.jit
    def run(x):
        matrices = jax.vmap(jax.jacfwd(lambda one: field(one[None])[0, :, 0]))(x)[..., 0]
        estimate = lambda sign: jacobian_moments(field, x, probe=jnp.broadcast_to(sign, x.shape))[1:]  # noqa: E731
        return jacobian_moments(field, x), field(x), matrices, jax.vmap(estimate)(signs)

    (value, trace, norm), expected, matrices, estimates = jax.tree.map(np.asarray, run(x))
    np.testing.assert_allclose(value, expected, atol=1e-12)
    np.testing.assert_allclose(trace, np.trace(matrices, axis1=1, axis2=2), atol=1e-12)
    np.testing.assert_allclose(norm, np.sum(matrices**2, axis=(1, 2)), atol=1e-12)
    np.testing.assert_allclose(np.mean(estimates, axis=1), [trace, norm], atol=1e-12)
    with pytest.raises(ValueError, match="must agree"):
        jacobian_moments(lambda x: x[..., 0], x)


def test_the_velocity_of_a_mixture_has_the_mixtures_density(float64):
    """Noise carried along the exact velocity of a path to the data has their exact density."""
    mix = oracles.mixture([0.3, 0.7], [[-1.0, 0.5], [1.0, 0.0]], [0.2, 0.1])
    model = oracles.model(mix, paths.linear(), predictions.velocity)
    data = oracles.sample(mix, jax.random.key(0), 64)
    found = jax.jit(lambda data: log_density(model, data, solver=Solver(1e-8)))(data)
    np.testing.assert_allclose(found, oracles.log_density(mix, data), atol=1e-5)


def test_each_example_alone_when_mapped_over_batches_of_one(float64):
    """A neighbour that needs small steps gives them to its batch, and not where each example is an ODE."""
    field = lambda x, t: -30.0 * x**3  # noqa: E731
    x = jnp.asarray([[0.1], [3.0]])
    solve = jax.jit(lambda x: flow_and_steps(field, x, start=0.0, stop=1.0))
    (each, steps), (together, _), (alone, _) = jax.jit(jax.vmap(lambda x: solve(x[None])))(x), solve(x), solve(x[:1])
    assert np.abs(each[0] - alone).max() < 1e-14
    assert np.abs(together[0] - alone[0]).max() > 1e-10
    assert steps[0] < steps[1]


FAILING = {
    "too many steps": lambda x, t: 50 * jnp.sin(200 * t[:, None]) * jnp.ones_like(x),
    "a field of NaN": lambda x, t: x * jnp.nan,
    "a solution that leaves in finite time": lambda x, t: x**2,
}


@jax.jit
def solve_one_that_fails(index):
    model = lambda x, t: jax.lax.switch(index, list(FAILING.values()), x, t)  # noqa: E731
    x, solver = jnp.ones((2, 1)), Solver(1e-6, max_steps=12)
    return [solve(model, x, start=0.0, stop=1.5, solver=solver) for solve in (flow, flow_and_log_det)]


@pytest.mark.parametrize("name", FAILING)
def test_a_solve_that_fails_is_nan_all_of_it(name):
    """Never a partial result."""
    x, end = solve_one_that_fails(list(FAILING).index(name))
    assert np.isnan(x).all()
    assert np.isnan(np.stack([end.x[:, 0], end.log_det, end.kinetic, end.jacobian])).all()


def test_a_backward_solve_that_fails_raises():
    """What contracts forwards grows backwards, where it needs more steps."""

    def loss(rate):
        solver = Solver(max_steps=100, adjoint="backsolve")
        return flow(lambda x, t: -rate * x, jnp.ones((1, 1)), start=0.0, stop=1.0, solver=solver).sum()

    assert np.isfinite(jax.jit(loss)(100.0))
    with pytest.raises(RuntimeError, match="maximum number of solver steps"):
        jax.block_until_ready(jax.jit(jax.grad(loss))(100.0))


def test_a_field_of_zeros_has_a_gradient():
    """Its error is 0, and the root of a mean of zeros has no slope. By the scale of f = s x: D (|x|^2 / D - 1)."""
    x = jnp.asarray([[1.0, 1.0, 2.0]])
    gradient = jax.jit(jax.grad(lambda scale: log_density(lambda x, t: scale * x, x).sum()))(0.0)
    np.testing.assert_allclose(gradient, 6.0 - 3.0, atol=1e-4)


@pytest.mark.parametrize(
    ("solver", "told"),
    [
        (Solver(0.0), "tolerance above 0"),
        (Solver(float("nan")), "tolerance above 0"),
        (Solver(steps=0), "at least 1 step"),
        (Solver(max_steps=0), "at least 1 step"),
        (Solver(adjoint="magic"), "expected checkpoints or backsolve"),
        (Solver(steps=3, adjoint="backsolve"), "takes no number of steps"),
    ],
)
def test_solvers_that_are_none(solver, told):
    with pytest.raises(ValueError, match=told):
        flow(linear(jnp.eye(2)), jnp.ones((1, 2)), start=0.0, stop=1.0, solver=solver)
