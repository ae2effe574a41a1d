"""Products of a few dozen rows in parts: the same numbers and derivatives, and the parts copied before the loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.samplers import invariants

pytestmark = pytest.mark.skipif(jax.default_backend() != "cpu", reason="products are parted for XLA:CPU alone")

STEPS = jnp.linspace(0.1, 1.0, 5)


def matrix_of(rows, columns, dtype=jnp.float32):
    return (jax.random.normal(jax.random.key(rows + columns), (rows, columns)) / rows**0.5).astype(dtype)


def step(matrix, x, t):
    """There by `matrix [D, F]` and back by its transpose."""
    back = matrix.T * (matrix.shape[0] / matrix.shape[1] / 2)
    return jnp.tanh(jnp.cos(x @ matrix) @ back + t).astype(x.dtype), None


def looped(matrix, x):
    return invariants.scan(lambda x, t: step(matrix, x, t), x, STEPS)[0]


def plain(matrix, x):
    return jax.lax.scan(lambda x, t: step(matrix, x, t), x, STEPS)[0]


def in_loop(f, *arguments):
    """The equations of the loop's body."""
    (loop,) = (e for e in jax.make_jaxpr(f)(*arguments).jaxpr.eqns if e.primitive.name == "scan")
    return loop.params["jaxpr"].jaxpr.eqns


def products_in_loop(f, *arguments):
    return [e for e in in_loop(f, *arguments) if e.primitive.name == "dot_general"]


@pytest.mark.parametrize(
    ("batch", "rows", "columns"), [(32, 256, 512), (49, 256, 768), (128, 512, 1536), (49, 64, 2048)]
)
def test_the_loop_computes_the_same(batch, rows, columns):
    matrix, x = matrix_of(rows, columns), jax.random.normal(jax.random.key(0), (batch, rows))
    assert len(products_in_loop(looped, matrix, x)) > 2
    np.testing.assert_allclose(jax.jit(looped)(matrix, x), jax.jit(plain)(matrix, x), atol=2e-6)


def test_so_are_its_derivatives_and_what_is_mapped():
    matrix, x = matrix_of(256, 1024), jax.random.normal(jax.random.key(0), (32, 256))

    def loss(f):
        return jax.jit(jax.grad(lambda matrix, x: jnp.sum(jnp.sin(f(matrix, x))), argnums=(0, 1)))

    for ours, theirs in zip(loss(looped)(matrix, x), loss(plain)(matrix, x), strict=True):
        largest = np.abs(theirs).max()
        assert largest > 0
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * largest)
    several = jnp.stack([x, -x])
    mapped = (jax.jit(jax.vmap(f, (None, 0)))(matrix, several) for f in (looped, plain))
    np.testing.assert_allclose(*mapped, atol=2e-6)


@pytest.mark.parametrize(
    ("batch", "rows", "columns", "parts"),
    [
        (32, 1024, 1024, 2),
        (128, 1024, 1024, 2),
        (49, 1024, 256, 2),
        (49, 256, 768, 2),
        (64, 512, 1536, 3),
        (64, 256, 2048, 4),
        (31, 1024, 1024, 1),
        (129, 1024, 1024, 1),
        (64, 256, 256, 1),
        (64, 512, 384, 1),
        (64, 512, 1280, 1),
    ],
)
def test_how_many_parts(batch, rows, columns, parts):
    there = matrix_of(rows, columns)

    def loop(matrix, x):
        return invariants.scan(lambda x, t: (jnp.sum(x @ matrix + t, axis=1, keepdims=True) + x, None), x, STEPS)[0]

    equations = in_loop(loop, there, jnp.ones((batch, rows)))
    products = [e for e in equations if e.primitive.name == "dot_general"]
    assert [e.invars[1].aval.shape for e in products] == parts * [(rows, columns // parts)]
    made = {variable for e in equations for variable in e.outvars}
    assert not any(e.invars[1] in made for e in products)


def test_only_products_of_float32_with_a_constant_matrix_are_parted():
    x, matrix = jnp.ones((64, 512)), matrix_of(512, 512)
    assert len(products_in_loop(looped, matrix, x)) == 3
    assert len(products_in_loop(looped, matrix.astype(jnp.bfloat16), x.astype(jnp.bfloat16))) == 2

    def of_state(matrix, x):
        return invariants.scan(lambda x, t: (x @ (matrix * x[0, 0]) + t, None), x, STEPS)[0]

    assert len(products_in_loop(of_state, matrix, x)) == 1


def test_the_precision_asked_for_stays():
    def loop(matrix, x):
        return invariants.scan(lambda x, t: (jnp.matmul(x, matrix, precision="highest") + t, None), x, STEPS)[0]

    products = products_in_loop(loop, matrix_of(512, 512), jnp.ones((64, 512)))
    assert len(products) == 2
    assert all(set(e.params["precision"]) == {jax.lax.Precision.HIGHEST} for e in products)
