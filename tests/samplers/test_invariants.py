"""The scan that parts a step: the same as `jax.lax.scan`, and less within the loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.samplers import invariants

STEPS = 5


def intervals():
    return {"t": jnp.linspace(0.1, 1.0, STEPS), "index": jnp.arange(STEPS), "rows": jnp.ones((STEPS, 3))}


def step_with(weight):
    def step(carry, interval):
        x, count = carry
        level = jnp.log(interval["t"]) + jnp.sum(weight)
        noise = jax.random.normal(jax.random.fold_in(jax.random.key(0), interval["index"]), x.shape)
        x = jnp.tanh(x * level + interval["rows"][None] + 0.1 * noise)
        return (x, count + interval["index"]), {"x": x, "level": level}

    return step


def loop_of(function, *arguments):
    (loop,) = (e for e in jax.make_jaxpr(function)(*arguments).jaxpr.eqns if e.primitive.name == "scan")
    return str(loop.params["jaxpr"])


@pytest.mark.parametrize("batch", [1, 64])
def test_it_is_a_scan(batch):
    carry, weight = (jnp.ones((batch, 3)), jnp.asarray(0)), jnp.full(4, 0.3)
    ours = jax.jit(lambda weight: invariants.scan(step_with(weight), carry, intervals()))(weight)
    theirs = jax.jit(lambda weight: jax.lax.scan(step_with(weight), carry, intervals()))(weight)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), ours, theirs)


def test_its_gradient_is_that_of_a_scan():
    def loss(scan):
        def of(weight, x, t):
            (x, _), outputs = scan(step_with(weight), (x, jnp.asarray(0)), {**intervals(), "t": t})
            return jnp.sum(x) + jnp.sum(jnp.square(outputs["level"]))

        return jax.jit(jax.grad(of, argnums=(0, 1, 2)))

    arguments = jnp.full(4, 0.3), jnp.ones((2, 3)), intervals()["t"]
    ours, theirs = loss(invariants.scan)(*arguments), loss(jax.lax.scan)(*arguments)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), ours, theirs)
    assert all(np.abs(value).max() > 0 for value in ours)


def test_what_is_of_the_interval_alone_and_small_leaves_the_loop():
    def run(x):
        return invariants.scan(step_with(jnp.ones(4)), (x, jnp.asarray(0)), intervals())

    small, large = loop_of(run, jnp.ones((1, 3))), loop_of(run, jnp.ones((64, 3)))
    assert " log " not in small
    assert " log " not in large
    assert "random_bits" not in small
    assert "random_bits" in large  # 192 numbers a step are drawn where they are needed
    assert "tanh" in small
    assert "tanh" in large


def test_what_no_interval_changes_is_not_repeated_for_each():
    table = jnp.arange(1000.0)

    def step(x, t):
        return x + jnp.sum(jnp.sin(table)) * t, None

    jaxpr = jax.make_jaxpr(lambda x: invariants.scan(step, x, intervals()["t"]))(1.0)
    greatest = max(variable.aval.size for equation in jaxpr.jaxpr.eqns for variable in equation.outvars)
    assert greatest == 1000


def test_what_is_told_is_told_at_every_step():
    told = []

    def step(x, t):
        jax.debug.callback(lambda t: told.append(float(t)), t, ordered=True)
        return x + t, None

    jax.block_until_ready(jax.jit(lambda x: invariants.scan(step, x, intervals()["t"]))(0.0))
    jax.effects_barrier()
    np.testing.assert_allclose(told, intervals()["t"])
