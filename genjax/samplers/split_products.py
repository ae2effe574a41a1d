"""A product of a few dozen rows with a wide matrix as several, of some of its columns each.

XLA:CPU of jaxlib 0.10 reads the matrix of such a product where it lies (of more than 64 rows it makes a better copy first), a few
columns at a time. If the rows of the matrix are 4 KiB apart, 1,024 numbers, their columns fall into the same few lines of the
cache and push each other out. Those of a matrix with at most 512 columns do not, and of several products that do not wait for
each other each thread computes one. The columns are copied before the loop (`genjax.samplers.invariants`).

So a loop over a perceptron 1,024 wide takes 0.59 to 0.72 of the time for 32 to 100 points, 512 wide 0.86 to 0.99, one image of 49
tokens through a transformer 256 wide 0.86 to 0.95, 512 wide 0.84 to 0.89. With fewer rows a perceptron gains as much, but one image
of 16 or 25 tokens takes up to 1.2 of the time: these stay.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from genjax.typing import Array

_COLUMNS = 512
"""Of a part, at most."""

_FEW_ROWS = range(32, 129)
"""Two devices share them, of which each has half then."""

_LARGE = 2**17
"""Numbers of a matrix that is worth it, at least: of one 256 by 256 two halves take 1.3 to 1.4 of the time."""

_MULTIPLE = 256
"""Of the columns: with others, like 384 or 1,152, nothing is gained."""


def with_split_products(jaxpr: Any) -> Any:
    """The jaxpr with several products in the place of each of a few dozen rows with a wide matrix among its constants, on CPU.

    What parts the matrix is of constants alone.
    """
    if jax.default_backend() != "cpu":
        return jaxpr
    constants = set(jaxpr.constvars)
    parted = [_in_parts(one) if _is_slow(one, constants) else [one] for one in jaxpr.eqns]
    return jaxpr.replace(eqns=[equation for equations in parted for equation in equations])


def _parts(matrix: Any) -> int:
    return max(2, -(-matrix.shape[1] // _COLUMNS))


def _in_parts(equation: Any) -> list[Any]:
    options = {name: equation.params[name] for name in ("dimension_numbers", "precision", "preferred_element_type")}

    def product(rows: Array, matrix: Array) -> Array:
        parts = jnp.split(matrix, _parts(matrix), axis=1)
        return jnp.concatenate([jax.lax.dot_general(rows, part, **options) for part in parts], axis=1)

    operands = [jax.ShapeDtypeStruct(operand.aval.shape, operand.aval.dtype) for operand in equation.invars]
    traced = jax.make_jaxpr(product)(*operands).jaxpr
    outer = dict(zip([*traced.invars, *traced.outvars], [*equation.invars, *equation.outvars], strict=True))

    def named(atoms: list[Any]) -> list[Any]:
        return [atom if isinstance(atom, Literal) else outer.get(atom, atom) for atom in atoms]

    return [inner.replace(invars=named(inner.invars), outvars=named(inner.outvars)) for inner in traced.eqns]


def _is_slow(equation: Any, constants: set[Any]) -> bool:
    if equation.primitive.name != "dot_general" or equation.invars[1] not in constants:
        return False
    rows, matrix = (operand.aval for operand in equation.invars)
    return (
        equation.params["dimension_numbers"] == (((1,), (0,)), ((), ()))
        and rows.dtype == matrix.dtype == jnp.float32
        and (rows.ndim, matrix.ndim) == (2, 2)
        and rows.shape[0] in _FEW_ROWS
        and matrix.shape[1] % _MULTIPLE == 0
        and matrix.shape[1] % _parts(matrix) == 0
        and matrix.size >= _LARGE
    )
