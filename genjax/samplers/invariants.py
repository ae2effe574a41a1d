"""A `lax.scan` whose body is left with what depends on the state: the rest of a step is computed before the loop, for all of them.

A sampler's step is written as one formula, of the state and of the interval that it crosses. Much of it is of the interval alone:
the coefficients, where between two knots a call lies, the draws. Beside a network of a few microseconds a dozen such scalars a
step show. Here the step is traced once, and its equations are parted into

    those of the interval alone, of few numbers each     vectorised over the intervals, before the loop
    all others                                           in the loop, with the values of the former as its inputs

so that the loop costs what the network costs, and memory grows by a few numbers a step.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.core import eval_jaxpr
from jax.extend.core import Literal

_FEW = 16
"""Numbers of a value that may be computed before the loop: so many more a step are kept."""


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
    before, within, handed = _parted(jaxpr, len(start))
    of_interval = jaxpr.replace(eqns=before, outvars=handed)
    of_state = jaxpr.replace(eqns=within, constvars=[*jaxpr.constvars, *handed])
    values = jax.vmap(lambda *interval: list(eval_jaxpr(of_interval, constants, *start, *interval)))(*inputs)

    def body(state: Any, interval_and_values: tuple[list[Any], list[Any]]) -> Any:
        interval, values = interval_and_values
        leaves = eval_jaxpr(of_state, [*constants, *values], *jax.tree.leaves(state), *interval)
        return jax.tree.unflatten(result, leaves)

    return jax.lax.scan(body, carry, (inputs, values))


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
        elif few and needed <= constant | of_interval and not equation.effects:
            of_interval.update(equation.outvars)
            before.append(equation)
        else:
            within.append(equation)
    made = {variable for equation in before for variable in equation.outvars} - constant
    wanted = [variable for equation in within for variable in _variables(equation.invars)]
    handed = [variable for variable in dict.fromkeys([*wanted, *_variables(jaxpr.outvars)]) if variable in made]
    return before, within, handed


def _variables(atoms: Any) -> Any:
    return dict.fromkeys(atom for atom in atoms if not isinstance(atom, Literal)).keys()
