"""A `lax.scan` whose body is left with what depends on the state: the rest of a step is computed before the loop, for all of them.

A sampler's step is written as one formula, of the state and of the interval that it crosses. Much of it is of the interval alone:
the coefficients, where between two knots a call lies. Beside a network of a few microseconds a dozen such scalars a
step show. Here the step is traced once, and its equations are parted into

    those of neither, like weights in another dtype      once, before the loop, if no larger than what they are made of
    those of the interval alone, of few numbers each     vectorised over the intervals, before the loop
    all others                                           in the loop, with the values of the former as its inputs

so that the loop costs what the network costs, and memory grows by a few numbers a step. Draws stay within: before the loop they
are a dozen loops more, which for 50 steps of a perceptron on one point take longer than the draws do in a loop that is one kernel
(`genjax.environment`; 0.83 of the time so, 0.96 of 1,000 steps). In a loop of many kernels 1,000 steps take 1.05 of it.
"""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import eval_jaxpr
from jax.extend.core import DropVar, Literal, jaxprs_in_params

_FEW = 16
"""Numbers of a value that may be computed before the loop: so many more a step are kept."""

_AT_ONCE = 8
"""Values computed by one loop: more, XLA:CPU computes one by one."""


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
    jaxpr, constants = _constants_computed(jaxpr, constants)
    before, within, handed = _parted(jaxpr, len(start))
    of_interval = jaxpr.replace(eqns=before, outvars=handed)
    of_state = jaxpr.replace(eqns=within, invars=jaxpr.invars[: len(start)], constvars=[*jaxpr.constvars, *handed])
    values = jax.vmap(lambda *interval: list(eval_jaxpr(of_interval, constants, *start, *interval)))(*inputs)
    packed, unpack = _packed(values)

    def body(state: Any, row: Any) -> Any:
        leaves = eval_jaxpr(of_state, [*constants, *unpack(row)], *jax.tree.leaves(state))
        return jax.tree.unflatten(result, leaves)

    return jax.lax.scan(body, carry, packed, length=len(inputs[0]))


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


def _is_random(equation: Any) -> bool:
    inner = itertools.chain.from_iterable(jaxpr.eqns for jaxpr in jaxprs_in_params(equation.params))
    return equation.primitive.name.startswith("random_") or any(map(_is_random, inner))


def _variables(atoms: Any) -> Any:
    return dict.fromkeys(atom for atom in atoms if not isinstance(atom, Literal)).keys()
