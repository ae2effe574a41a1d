"""A `lax.scan` whose body is left with what depends on the state: the rest of a step is computed before the loop, for all of them.

A sampler's step is written as one formula, of the state and of the interval that it crosses. Much of it is of the interval alone:
the coefficients, where between two knots a call lies. Beside a network of a few microseconds a dozen such scalars a
step show. Here the step is traced once, and its equations are parted into

    those of neither, like weights in another dtype      once, before the loop, if no larger than what they are made of
    those of the interval alone, of few numbers each     vectorised over the intervals, before the loop
    products of the interval alone with large matrices   for a block of intervals at once, before the steps of that block
    all others                                           in the loop, with the values of the former as its inputs;
                                                         products of one row as `row_products` writes them, of a few
                                                         dozen as `split_products` does

so that the loop costs what the network costs, and memory grows by a few numbers a step. The products are the modulations of a
diffusion transformer, a third of its weights: with one image, 50 steps take 0.92 to 0.95 of the time when these are read ten times.
Draws stay within: before the loop they are a dozen loops more, which for 50 steps of a perceptron on one point take longer than the
draws do in a loop that is one kernel (`genjax.environment`; 0.83 of the time so, 0.96 of 1,000 steps). In a loop of many kernels
1,000 steps take 1.05 of it.
"""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import eval_jaxpr
from jax.extend.core import DropVar, Literal, jaxprs_in_params

from genjax.samplers.row_products import with_row_products
from genjax.samplers.split_products import with_split_products

_FEW = 16
"""Numbers of a value that may be computed before the loop: so many more a step are kept."""

_AT_ONCE = 8
"""Values computed by one loop: more, XLA:CPU computes one by one."""

_WEIGHTS_A_RESULT = 16
"""A product of which each result takes so many weights or more is bound by reading them."""

_LARGE = 2**20
"""Numbers of the matrices of all such products together: fewer stay in a core's cache from step to step."""

_BLOCK = 5
"""Intervals of a block, at most: what is kept of the products does not grow with the steps. Two blocks at least, so that time to
compile does not either."""


def scan(step: Callable[[Any, Any], tuple[Any, Any]], carry: Any, intervals: Any) -> Any:
    """`jax.lax.scan(step, carry, intervals)`, faster.

    Args:
        step: `(carry, interval) -> (carry, output)`, of pytrees; without side effects.
        carry: what the first step starts from.
        intervals: leaves `[steps, ...]`.

    Returns:
        The last carry, and the outputs `[steps, ...]`.
    """
    one = jax.tree.map(lambda values: jax.ShapeDtypeStruct(values.shape[1:], values.dtype), intervals)
    traced, shapes = jax.make_jaxpr(step, return_shape=True)(carry, one)
    jaxpr, constants, result = traced.jaxpr, traced.consts, jax.tree.structure(shapes)
    start, inputs = jax.tree.leaves(carry), jax.tree.leaves(intervals)
    jaxpr, constants = _constants_computed(with_split_products(jaxpr), constants)
    before, within, handed = _parted(jaxpr, len(start))
    of_interval = jaxpr.replace(eqns=before, outvars=handed)
    of_state = jaxpr.replace(eqns=within, invars=jaxpr.invars[: len(start)], constvars=[*jaxpr.constvars, *handed])
    values = jax.vmap(lambda *interval: list(eval_jaxpr(of_interval, constants, *start, *interval)))(*inputs)
    packed, unpack = _packed(values)

    steps = len(inputs[0])
    block = max((size for size in range(2, min(_BLOCK, steps // 2) + 1) if steps % size == 0), default=steps)
    products, of_state = _products_parted(of_state, handed if block < steps else [])
    length = block if products.outvars else steps
    of_state = with_row_products(of_state)

    def body(carried: Any, rows: Any) -> Any:
        (state, made), (row, made_next) = carried, rows
        leaves = eval_jaxpr(of_state, [*constants, *unpack(row), *made], *jax.tree.leaves(state))
        state, output = jax.tree.unflatten(result, leaves)
        return (state, made_next), output

    def of_block(state: Any, rows: Any) -> Any:
        made = jax.vmap(lambda row: list(eval_jaxpr(products, [*constants, *unpack(row)])))(rows)
        first, following = [values[0] for values in made], [jnp.roll(values, -1, axis=0) for values in made]
        (state, _), outputs = jax.lax.scan(body, (state, first), (rows, following), length=length)
        return state, outputs

    if length == steps:
        return of_block(carry, packed)
    blocks = jax.tree.map(lambda values: values.reshape(-1, length, *values.shape[1:]), packed)
    last, outputs = jax.lax.scan(of_block, carry, blocks)
    return last, jax.tree.map(lambda values: values.reshape(steps, *values.shape[2:]), outputs)


def _packed(values: list[Any]) -> tuple[Any, Callable[[Any], list[Any]]]:
    """Arrays `[steps, ...]` as fewer ones, the short rows of a dtype side by side, and how a row of those is a row of each.

    Side by side they are computed by one loop, and XLA:CPU runs a handful of loops in order; many it hands to its threads, at
    tens of microseconds. So a truth is 0 or 1 there. Rows with a number for each of several examples stay apart: devices may
    share those.
    """
    floating = next((value.dtype for value in values if jnp.issubdtype(value.dtype, jnp.floating)), jnp.dtype(bool))
    short: dict[Any, list[int]] = {}
    for index, value in enumerate(values):
        of_all_examples = value.ndim == 1 or value.shape[1] == 1
        if of_all_examples and value[0].size <= _FEW and not jnp.issubdtype(value.dtype, jax.dtypes.extended):
            short.setdefault(floating if value.dtype == bool else value.dtype, []).append(index)
    groups = [
        (dtype, some[at : at + _AT_ONCE]) for dtype, some in short.items() for at in range(0, len(some), _AT_ONCE)
    ]
    flat = [[values[index].reshape(len(values[index]), -1).astype(dtype) for index in group] for dtype, group in groups]
    tables = [jnp.concatenate(columns, axis=1) for columns in flat]
    others = {index: value for index, value in enumerate(values) if not any(index in group for _, group in groups)}

    def unpack(row: tuple[list[Any], dict[int, Any]]) -> list[Any]:
        found = dict(row[1])
        for (_, group), columns, numbers in zip(groups, flat, row[0], strict=True):
            ends = list(itertools.accumulate(column.shape[1] for column in columns))
            for index, part in zip(group, jnp.split(numbers, ends[:-1]), strict=True):
                found[index] = part.reshape(values[index].shape[1:]).astype(values[index].dtype)
        return [found[index] for index in range(len(values))]

    return (tables, others), unpack


def _constants_computed(jaxpr: Any, constants: list[Any]) -> tuple[Any, list[Any]]:
    """The jaxpr with what is made of constants alone, and is no larger than they, among its constants; and their values.

    Formulas of a few numbers stay, and what is larger, like the numbers 1 to n: a loop makes them as fast as it reads them.
    """
    constant, of_constants, kept, others = set(jaxpr.constvars), [], [], []
    for equation in jaxpr.eqns:
        needed = _variables(equation.invars)
        if needed <= constant and not equation.effects:
            constant.update(equation.outvars)
            of_constants.append(equation)
            taken, made = (sum(v.aval.size for v in variables) for variables in (needed, equation.outvars))
            if taken > _FEW and made <= taken:
                kept.extend(equation.outvars)
                continue
        others.append(equation)
    kept = [variable for variable in kept if not isinstance(variable, DropVar)]
    values = eval_jaxpr(jaxpr.replace(eqns=of_constants, invars=[], outvars=kept), constants)
    return jaxpr.replace(eqns=others, constvars=[*jaxpr.constvars, *kept]), [*constants, *values]


def _parted(jaxpr: Any, of_carry: int) -> tuple[list[Any], list[Any], list[Any]]:
    """The equations before the loop, those within it, and the values that the former hand to the latter.

    The first `of_carry` inputs are the state. What is of neither the state nor the interval is on both sides.
    """
    constant, of_interval = set(jaxpr.constvars), set(jaxpr.invars[of_carry:])
    before, within = [], []
    for equation in jaxpr.eqns:
        needed = _variables(equation.invars)
        few = all(variable.aval.size <= _FEW for variable in equation.outvars)
        if needed <= constant and not equation.effects:
            constant.update(equation.outvars)
            before.append(equation)
            within.append(equation)
        elif few and needed <= constant | of_interval and not equation.effects and not _is_random(equation):
            of_interval.update(equation.outvars)
            before.append(equation)
        else:
            within.append(equation)
    made = (of_interval | {variable for equation in before for variable in equation.outvars}) - constant
    wanted = [variable for equation in within for variable in _variables(equation.invars)]
    handed = [variable for variable in dict.fromkeys([*wanted, *_variables(jaxpr.outvars)]) if variable in made]
    return before, within, handed


def _products_parted(jaxpr: Any, of_interval: list[Any]) -> tuple[Any, Any]:
    """The jaxpr of the products of the interval alone with large matrices, and the jaxpr that is left, handed their results."""
    constant, interval = set(jaxpr.constvars) - set(of_interval), set(of_interval)
    products, read = [], 0
    for equation in jaxpr.eqns:
        needed = _variables(equation.invars)
        if equation.effects or _is_random(equation) or not needed <= constant | interval:
            continue
        if needed <= constant:
            constant.update(equation.outvars)
            continue
        interval.update(equation.outvars)
        weights = max((variable.aval.size for variable in needed & constant), default=0)
        is_product = equation.primitive.name == "dot_general"
        if is_product and weights >= _WEIGHTS_A_RESULT * equation.outvars[0].aval.size:
            products.extend(equation.outvars)
            read += weights
    if read < _LARGE:
        return jaxpr.replace(invars=[], eqns=[], outvars=[]), jaxpr
    others = [equation for equation in jaxpr.eqns if set(products).isdisjoint(equation.outvars)]
    left = _needed(others, jaxpr.outvars)
    used = {
        variable for atoms in [jaxpr.outvars, *(equation.invars for equation in left)] for variable in _variables(atoms)
    }
    made = [variable for variable in products if variable in used]
    before = jaxpr.replace(invars=[], eqns=_needed(jaxpr.eqns, made), outvars=made)
    return before, jaxpr.replace(constvars=[*jaxpr.constvars, *made], eqns=left)


def _needed(equations: list[Any], outvars: list[Any]) -> list[Any]:
    """Those of the equations that `outvars` are made of, and those with effects."""
    wanted, kept = set(_variables(outvars)), []
    for equation in reversed(equations):
        if equation.effects or not wanted.isdisjoint(equation.outvars):
            wanted.update(_variables(equation.invars))
            kept.append(equation)
    return kept[::-1]


def _is_random(equation: Any) -> bool:
    inner = itertools.chain.from_iterable(jaxpr.eqns for jaxpr in jaxprs_in_params(equation.params))
    return equation.primitive.name.startswith("random_") or any(map(_is_random, inner))


def _variables(atoms: Any) -> Any:
    return dict.fromkeys(atom for atom in atoms if not isinstance(atom, Literal)).keys()
