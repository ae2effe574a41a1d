"""The scan that parts a step: the same as `jax.lax.scan`, and less within the loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import paths, predictions, samplers
from genjax.networks.dit import dit
from genjax.networks.mlp import mlp
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
    assert "random_bits" in small  # draws stay where they are needed, keys and all
    assert "random_fold_in" in small
    assert "random_bits" in large
    assert "tanh" in small
    assert "tanh" in large


def test_what_no_interval_changes_is_not_repeated_for_each():
    table = jnp.arange(1000.0)

    def step(x, t):
        return x + jnp.sum(jnp.sin(table)) * t, None

    jaxpr = jax.make_jaxpr(lambda x: invariants.scan(step, x, intervals()["t"]))(1.0)
    greatest = max(variable.aval.size for equation in jaxpr.jaxpr.eqns for variable in equation.outvars)
    assert greatest == 1000


def test_what_is_of_constants_alone_and_no_larger_is_computed_once():
    weight = jax.random.normal(jax.random.key(0), (64, 3))

    def step(x, t):
        half = weight.astype(jnp.bfloat16)
        hidden = x.astype(jnp.bfloat16) @ half.T
        return x + t * (hidden @ half) / jnp.sum(jnp.square(weight)), None

    def run(scan):
        return lambda x: scan(step, x, intervals()["t"])[0]

    x = jnp.ones((2, 3))
    body = loop_of(run(invariants.scan), x)
    assert all(name in loop_of(run(jax.lax.scan), x) for name in ("transpose[", "square ", "reduce_sum["))
    assert not any(name in body for name in ("transpose[", "square ", "reduce_sum[", "bf16[64,3] = convert"))
    np.testing.assert_allclose(jax.jit(run(invariants.scan))(x), jax.jit(run(jax.lax.scan))(x), rtol=1e-6)


def test_the_loop_is_handed_the_weights_of_a_bfloat16_network_in_bfloat16():
    path, net, x = paths.cosine(), mlp((32, 32), dtype=jnp.bfloat16), jnp.ones((2, 3))
    params = net.init(jax.random.key(0), x, jnp.ones(2))
    knots = paths.knots(path, jnp.linspace(1.0, 0.0, STEPS + 1))

    def run(x):
        denoise = predictions.denoiser(net.bind(params), path, predictions.noise)
        return samplers.sample(samplers.ddim(), denoise, jax.random.key(0), x, knots)

    handed = loop_of(run, x).split(". let")[0]
    assert "bf16[32,32]" in handed
    assert "f32[32,32]" not in handed


def test_what_is_of_constants_alone_and_larger_stays():
    row = jnp.arange(30.0)

    def step(x, t):
        return x * t + jnp.tile(row, (64, 1)), None

    body = loop_of(lambda x: invariants.scan(step, x, intervals()["t"]), jnp.ones((64, 30)))
    assert "f32[64,30] = tile[" in body


def test_what_is_told_is_told_at_every_step():
    told = []

    def step(x, t):
        jax.debug.callback(lambda t: told.append(float(t)), t, ordered=True)
        return x + t, None

    jax.block_until_ready(jax.jit(lambda x: invariants.scan(step, x, intervals()["t"]))(0.0))
    jax.effects_barrier()
    np.testing.assert_allclose(told, intervals()["t"])


def test_a_truth_of_the_interval_is_handed_to_the_loop_as_a_number():
    def step(x, t):
        return jnp.where(t > 0.5, x, -x) * t, t > 0.5

    t = intervals()["t"]
    body = loop_of(lambda x: invariants.scan(step, x, t), jnp.ones(3))
    assert "bool[" not in body.split(". let")[0]
    ours, theirs = (
        jax.jit(lambda x, scan=scan: scan(step, x, t))(jnp.ones(3)) for scan in (invariants.scan, jax.lax.scan)
    )
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert ours[1].dtype == bool
    assert 0 < np.sum(ours[1]) < STEPS


WIDE = 1024  # a matrix of as many rows and columns is large enough


def step_of_products(matrix):
    """Its state meets two products of the interval, one made of the other, and one that is of the state."""

    def step(x, t):
        hidden = jnp.tanh(jnp.full((1, WIDE), t) @ matrix)
        scale = jnp.sin(hidden @ matrix)
        return jnp.tanh(x * scale + 0.5 * x @ matrix), (jnp.sum(hidden), t)

    return step


def loops_in(jaxpr, reading=(WIDE, WIDE)):
    """Of a jaxpr, how often each loop runs and how many products with such a matrix stand in it, from without to within."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            inner = equation.params["jaxpr"].jaxpr
            products = [e for e in inner.eqns if e.primitive.name == "dot_general"]
            found.append((equation.params["length"], sum(e.invars[1].aval.shape == reading for e in products)))
            found.extend(loops_in(inner, reading))
    return found


@pytest.mark.parametrize(
    ("steps", "loops"),
    [
        (8, [(2, 2), (4, 1)]),
        (50, [(10, 2), (5, 1)]),
        (34, [(17, 2), (2, 1)]),
        (7, [(7, 3)]),  # no equal blocks
        (37, [(37, 3)]),
        (1, [(1, 3)]),
    ],
)
def test_products_of_the_interval_with_large_matrices_are_made_for_a_block_at_once(steps, loops):
    matrix = jax.random.normal(jax.random.key(0), (WIDE, WIDE)) / WIDE**0.5
    t, x = jnp.linspace(0.1, 1.0, steps), jnp.ones((1, WIDE))
    run = {
        scan: lambda x, t, scan=scan: scan(step_of_products(matrix), x, t) for scan in (invariants.scan, jax.lax.scan)
    }
    ours, theirs = (jax.jit(run[scan])(x, t) for scan in (invariants.scan, jax.lax.scan))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), ours, theirs)
    assert loops_in(jax.make_jaxpr(run[invariants.scan])(x, t).jaxpr) == loops


@pytest.mark.parametrize("steps", [8, 50])
def test_the_gradient_passes_through_blocks(steps):
    matrix = jax.random.normal(jax.random.key(0), (WIDE, WIDE)) / WIDE**0.5
    t, x = jnp.linspace(0.1, 1.0, steps), jnp.ones((1, WIDE))

    def loss(scan):
        def of(matrix, x, t):
            last, (sums, _) = scan(step_of_products(matrix), x, t)
            return jnp.sum(jnp.square(last)) + jnp.mean(sums)

        return jax.jit(jax.grad(of, argnums=(0, 1, 2)))

    ours, theirs = (loss(scan)(matrix, x, t) for scan in (invariants.scan, jax.lax.scan))
    for a, b in zip(ours, theirs, strict=True):
        assert np.abs(b).max() > 0
        np.testing.assert_allclose(a, b, atol=2e-3 * np.abs(b).max())


@pytest.mark.parametrize(("width", "rows"), [(WIDE // 2 + 4, 1), (WIDE, 256)])
def test_products_with_small_matrices_or_of_many_rows_stay(width, rows):
    matrix = jnp.ones((width, width)) / width

    def step(x, t):
        return x * (jnp.full((rows, width), t) @ matrix), None

    jaxpr = jax.make_jaxpr(lambda x: invariants.scan(step, x, jnp.linspace(0.1, 1.0, 8)))(jnp.ones((rows, width)))
    assert loops_in(jaxpr.jaxpr, reading=(width, width)) == [(8, 1)]


def test_a_transformer_reads_its_modulations_once_a_block(monkeypatch):
    net, path, x = dit(patch=4, width=256, depth=3), paths.cosine(), jnp.ones((1, 8, 8, 1))
    leaves, structure = jax.tree.flatten(net.init(jax.random.key(0), x, jnp.ones(1)))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    leaves = [leaf + 0.05 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    params = jax.tree.unflatten(structure, leaves)
    knots = paths.knots(path, jnp.linspace(0.99, 0.0, 41))

    def run(params, x):
        denoise = predictions.denoiser(net.bind(params), path, predictions.velocity)
        return samplers.sample(samplers.ddim(), denoise, jax.random.key(0), x, knots)

    modulation = (256, 6 * 256)
    assert loops_in(jax.make_jaxpr(run)(params, x).jaxpr, reading=modulation) == [(8, 3), (5, 0)]
    ours = jax.jit(run)(params, x)
    monkeypatch.setattr(invariants, "scan", jax.lax.scan)
    assert loops_in(jax.make_jaxpr(lambda *a: run(*a))(params, x).jaxpr, reading=modulation) == [(40, 3)]
    np.testing.assert_allclose(ours, jax.jit(lambda *a: run(*a))(params, x), rtol=1e-4, atol=1e-4)
