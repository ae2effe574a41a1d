"""The adaptive sampler: exact where the flow is known, on every path; calls as counted; failures raised, never returned."""

from functools import partial

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import oracles, paths, predictions
from genjax.continuous_flows import Solver
from genjax.samplers import sample_adaptively
from genjax.typing import Prediction

STD = 0.6
PATHS = {  # with the prediction and the times between which it is nowhere singular
    "linear": (paths.linear(), predictions.velocity, 0.0, 1.0),
    "cosine": (paths.cosine(), predictions.noise, 0.999, 0.0),
    "vp": (paths.vp(), predictions.v, 1.0, 0.0),
    "edm": (paths.edm(), predictions.data, 80.0, 1e-3),
}


def gaussian():
    return oracles.mixture([1.0], [[0.0, 0.0]], [STD**2])


@pytest.mark.parametrize("name", PATHS)
def test_a_gaussian_is_carried_as_its_flow_carries_it(float64, name):
    """By the factor sqrt of the variances' ratio, alpha^2 STD^2 + sigma^2 where it ends over where it starts."""
    path, kind, start, stop = PATHS[name]
    denoise = predictions.denoiser(oracles.model(gaussian(), path, kind), path, kind)
    x = path.sigma(jnp.asarray(start)) * jax.random.normal(jax.random.key(0), (4, 2))
    solve = partial(sample_adaptively, denoise, path=path, start=start, stop=stop, solver=Solver(1e-8))
    first, last = (jnp.sqrt((path.alpha(t) * STD) ** 2 + path.sigma(t) ** 2) for t in jnp.asarray([start, stop]))
    np.testing.assert_allclose(jax.jit(solve)(x).x, last / first * x, rtol=1e-6)


@pytest.mark.parametrize(
    "method",
    [None, diffrax.Heun(), diffrax.Dopri8(), diffrax.ReversibleHeun()],
    ids=["default", "heun", "dopri8", "reversible heun"],
)
def test_the_calls_are_those_that_were_made(method):
    made, exact = [], oracles.denoiser(gaussian())

    def counting(x, knot):
        jax.debug.callback(lambda: made.append(1))
        return exact(x, knot)

    solve = partial(sample_adaptively, counting, path=paths.cosine(), solver=Solver(1e-3, method=method))
    found = jax.jit(solve)(jnp.ones((3, 2)))
    jax.block_until_ready(found)
    jax.effects_barrier()
    assert int(found.calls) == len(made) > 10


def test_an_implicit_method_solves_it_too_and_its_calls_are_not_told(float64):
    x = jnp.asarray([[1.0, -0.5]])
    solve = partial(sample_adaptively, oracles.denoiser(gaussian()), path=paths.cosine())
    found = jax.jit(partial(solve, solver=Solver(1e-6, method=diffrax.Kvaerno5())))(x)
    assert found.calls is None
    np.testing.assert_allclose(found.x, jax.jit(partial(solve, solver=Solver(1e-8)))(x).x, rtol=1e-4)


@pytest.mark.parametrize(
    ("denoise", "solver"),
    [
        (oracles.denoiser(gaussian()), Solver(1e-6, max_steps=3)),
        (lambda x, knot: Prediction(x, jnp.full_like(x, jnp.nan)), Solver(max_steps=30)),
    ],
    ids=["too many steps", "NaN"],
)
def test_a_failure_is_raised_within_jit_too(denoise, solver):
    solve = jax.jit(partial(sample_adaptively, denoise, path=paths.cosine(), solver=solver))
    with pytest.raises(RuntimeError, match="the adaptive solver failed"):
        jax.block_until_ready(solve(jnp.ones((1, 2))))


def test_mapped_over_batches_of_one_no_example_depends_on_another():
    mix = oracles.mixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], [0.01, 0.3])
    each = jax.jit(jax.vmap(lambda x: sample_adaptively(oracles.denoiser(mix), x[None], path=paths.cosine())))
    x = jax.random.normal(jax.random.key(0), (9, 2))
    together, others = each(x[:6]), each(x[3:])
    np.testing.assert_allclose(together.x[3:], others.x[:3], atol=1e-6)
    assert len(np.unique(together.calls)) > 1
