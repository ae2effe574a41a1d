"""The product of one row: the ordinary product, its derivatives too, and one kernel on CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.samplers import invariants
from genjax.samplers.row_products import row_product

ROW, MATRIX = jax.random.normal(jax.random.key(0), (1, 64)), jax.random.normal(jax.random.key(1), (64, 96))


def products_in_loop(batch, matrix, **options):
    """How many products of the loop over `x @ matrix` are ordinary ones."""

    def step(x, t):
        return jnp.tanh(jnp.matmul(x, matrix, **options) + t).astype(x.dtype), None

    x = jnp.ones((batch, len(matrix)), matrix.dtype)
    jaxpr = jax.make_jaxpr(lambda x: invariants.scan(step, x, jnp.linspace(0.1, 1.0, 5))[0])(x)
    (loop,) = (e for e in jaxpr.jaxpr.eqns if e.primitive.name == "scan")
    return sum(e.primitive.name == "dot_general" for e in loop.params["jaxpr"].jaxpr.eqns)


@pytest.mark.parametrize("shape", [(64, 96), (32, 128), (256, 33), (512, 512)])
def test_it_is_the_product(shape):
    row = jax.random.normal(jax.random.key(0), (1, shape[0]))
    matrix = jax.random.normal(jax.random.key(1), shape)
    exact = np.asarray(row, np.float64) @ np.asarray(matrix, np.float64)
    np.testing.assert_allclose(jax.jit(row_product)(row, matrix), exact, atol=2e-6 * shape[0] ** 0.5)


def test_its_derivatives_are_those_of_the_product():
    tangents = jnp.cos(ROW), jnp.sin(MATRIX)
    ours, theirs = (jax.jvp(f, (ROW, MATRIX), tangents) for f in (row_product, jnp.matmul))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, theirs)
    ours, theirs = (
        jax.jit(jax.grad(lambda row, matrix, f=f: jnp.sum(jnp.sin(f(row, matrix))), argnums=(0, 1)))(ROW, MATRIX)
        for f in (row_product, jnp.matmul)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, theirs)


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)])
def test_mapped_it_is_the_ordinary_product(axes):
    arguments = [
        value if axis is None else jnp.stack([value, 2 * value, -value])
        for value, axis in zip((ROW, MATRIX), axes, strict=True)
    ]
    mapped = jax.vmap(row_product, axes)
    np.testing.assert_allclose(mapped(*arguments), jax.vmap(jnp.matmul, axes)(*arguments), rtol=1e-4, atol=1e-5)
    text = str(jax.make_jaxpr(mapped)(*arguments))
    assert "dot_general" in text
    assert "scan" not in text
    assert "while" not in text


def test_a_loop_has_it_in_the_place_of_products_of_one_row_alone():
    assert products_in_loop(1, jnp.eye(64)) == 0
    assert products_in_loop(2, jnp.eye(64)) == 1
    assert products_in_loop(1, jnp.eye(32)) == 1
    assert products_in_loop(1, jnp.eye(36)) == 1
    assert products_in_loop(1, jnp.eye(1024)) == 1
    assert products_in_loop(1, jnp.eye(64, dtype=jnp.bfloat16)) == 1
    assert products_in_loop(1, jnp.eye(64), precision="highest") == 1


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the mark is XLA:CPU's")
def test_on_cpu_it_is_one_kernel():
    text = jax.jit(row_product).lower(ROW, MATRIX).compile().as_text()
    entry = text[text.index("ENTRY") :]
    assert entry.count("xla_cpu_small_call") == 1
    assert " while(" not in entry
    assert " while(" in text
