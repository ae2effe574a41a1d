"""Continuous normalizing flows: an ODE carries points, and its divergence tells what it does to volume.

    dx/dt = f(x, t)                                              from t = start to t = stop
    log |det dx(stop)/dx(start)| = integral of div f(x(t), t) dt
    log p(x(start)) = log q(x(stop)) + log |det dx(stop)/dx(start)|

where p is the density that the flow makes of q. The law of the log-determinant is the instantaneous change of variables:
it needs the trace of a Jacobian, not a determinant, so f is any network. Two integrals along the way say how hard the ODE is
to solve, and small ones make it easy,

    kinetic energy  integral of |f|^2 |dt|            straight paths at constant speed have the least for where they lead
    Jacobian        integral of ||df/dx||^2 |dt|      the squared Frobenius norm: neighbours move alike

All four are integrated together, with x as they depend on it. A batch is one ODE: its examples share their steps, which the
root mean square of the errors of all x and log-determinants chooses. For steps of each example's own, `jax.vmap` over
batches of one.

Sources: Chen et al. 2018 (neural ODEs, arXiv 1806.07366), theorem 1; Grathwohl et al. 2019 (FFJORD, 1810.01367), sections
2.2 and 3.1; Finlay et al. 2020 (how to train your neural ODE, 2002.02798), section 3; Tsitouras 2011 (the Runge-Kutta
method of order 5); the solver is diffrax (Kidger 2021, arXiv 2202.02435).
"""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from genjax.divergences import gaussian_log_density
from genjax.typing import Array, Model
from genjax.vector_fields import Divergence, divergence, jacobian_moments


class Solver(NamedTuple):
    """How the ODE is solved, by default by a Runge-Kutta method of order 5.

    - `tolerance`: of the error of a step, relative and absolute; smaller steps are taken until it is met.
    - `steps`: so many steps of equal length instead, whatever their error.
    - `max_steps`: a solve that needs more adaptive steps, rejected ones counted, has failed.
    - `adjoint`: of the gradient. `checkpoints`: that of the steps taken, some of which are computed again. `backsolve`:
      that of the ODE, solved back again, in memory that does not grow with the steps; true to the tolerance only.
    - `method`: any solver of diffrax for ODEs that estimates its error; default `diffrax.Tsit5()`.
    """

    tolerance: float = 1e-5
    steps: int | None = None
    max_steps: int = 1000
    adjoint: Literal["checkpoints", "backsolve"] = "checkpoints"
    method: Any = None


class Flow(NamedTuple):
    """Where a flow has carried `x [B, ...]`, and the integrals along the way, each `[B]`, at least float32.

    - `x`: at the time `stop`.
    - `log_det`: `log |det dx(stop)/dx(start)|`, nats.
    - `kinetic`: the integral of |f|^2, in squared units of x over units of t.
    - `jacobian`: the integral of the squared Frobenius norm of df/dx.
    - `steps`: how many steps the solver took, rejected ones counted: `[]`, int32.
    """

    x: Array
    log_det: Array
    kinetic: Array
    jacobian: Array
    steps: Array


def flow(model: Model, x: Array, *, start: Array | float, stop: Array | float, solver: Solver | None = None) -> Array:
    """Where dx/dt = model(x, t) carries points from the time `start` to the time `stop`, either way: `[B, ...]`.

    Args:
        model: `f(x [B, ...], t [B]) -> [B, ...]`.
        x: `[B, ...]` at the time `start`.
        start: a time on the model's clock.
        stop: another.
        solver: default `Solver()`.

    Returns:
        x at the time `stop`; NaN, all of it, where the solve has failed.

    Raises:
        ValueError: a solver that is none.

    Example:
        >>> x = flow(lambda x, t: -x, jnp.ones((1, 2)), start=0.0, stop=1.0)
        >>> [round(float(value), 4) for value in x[0]]
        [0.3679, 0.3679]
    """
    return flow_and_steps(model, x, start=start, stop=stop, solver=solver)[0]


def flow_and_steps(
    model: Model, x: Array, *, start: Array | float, stop: Array | float, solver: Solver | None = None
) -> tuple[Array, Array]:
    """`flow`, and how many steps the solver took, rejected ones counted: `[]`, int32."""

    def rates(t: Array, state: tuple[Array]) -> tuple[Array]:
        return (model(state[0], jnp.full(x.shape[:1], t, x.dtype)),)

    (x,), steps = _solve(rates, (x,), start=start, stop=stop, solver=solver or Solver())
    return x, steps


def flow_and_log_det(
    model: Model, x: Array, *, start: float, stop: float, probe: Array | None = None, solver: Solver | None = None
) -> Flow:
    """`flow`, with the log-determinant of its Jacobian, the kinetic energy and the norm of the field's Jacobian.

    Args:
        model: `f(x [B, ...], t [B]) -> [B, ...]`, row i from x[i] and t[i] alone.
        x: `[B, ...]` at the time `start`, D numbers an example.
        start: a time on the model's clock.
        stop: another.
        probe: v `[B, ...]`, from `vector_fields.draw_probes`: the trace and the norm are Hutchinson's estimates with v,
            the same along the way. The log-determinant is then unbiased, and so is minus the log-density as a loss.
            Default: exact, by D forward derivatives at every call.
        solver: default `Solver()`.

    Returns:
        A `Flow`; its arrays, but not `steps`, are NaN, all of them, where the solve has failed.

    Raises:
        ValueError: a solver that is none, or a model that returns another shape.
        RuntimeError: (from JAX, when it runs) the backward solve of the adjoint `backsolve` has failed.

    Example:
        >>> growth = flow_and_log_det(lambda x, t: 2.0 * x, jnp.ones((1, 3)), start=1.0, stop=0.0)
        >>> round(float(growth.log_det[0]), 4), round(float(growth.jacobian[0]), 4)
        (-6.0, 12.0)

    Source: Chen et al. 2018 (arXiv 1806.07366), theorem 1; Finlay et al. 2020 (arXiv 2002.02798), section 3.
    """
    forward = 1.0 if stop > start else -1.0

    def rates(t: Array, state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        now, log_det, *_ = state
        field = lambda x: model(x, jnp.full(x.shape[:1], t, x.dtype))  # noqa: E731
        value, trace, norm = jacobian_moments(field, now, probe=probe)
        energy = jnp.sum(jnp.square(value), axis=tuple(range(1, value.ndim)), dtype=log_det.dtype)
        return value, trace, forward * energy, forward * norm

    zeros = jnp.zeros(x.shape[:1], jnp.promote_types(x.dtype, jnp.float32))
    state = (x, zeros, zeros, zeros)
    (x, log_det, kinetic, jacobian), steps = _solve(rates, state, start=start, stop=stop, solver=solver or Solver())
    return Flow(x, log_det, kinetic, jacobian, steps)


class Transported(NamedTuple):
    """Where a flow has carried `x [B, ...]`, and `log |det dx(stop)/dx(start)|`, nats, `[B]` or estimates `[K, B]`."""

    x: Array
    log_det: Array


def transport(
    model: Model,
    x: Array,
    *,
    start: Array | float,
    stop: Array | float,
    divergence: Divergence = divergence,
    solver: Solver | None = None,
) -> Transported:
    """`flow`, with the log-determinant of its Jacobian: `flow_and_log_det` without the other integrals.

    Args:
        model: `f(x [B, ...], t [B]) -> [B, ...]`, row i from x[i] and t[i] alone.
        x: `[B, ...]` at the time `start`.
        start: a time on the model's clock.
        stop: another.
        divergence: from `vector_fields`, with its probes, the same along the way; default exact. An unbiased one makes an
            unbiased log-determinant, one of K estimates K of them.
        solver: default `Solver()`.

    Returns:
        Both; NaN, all of it, where the solve has failed.

    Raises:
        ValueError: as `flow_and_log_det`.
    """

    def rates(t: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        return divergence(lambda x: model(x, jnp.full(x.shape[:1], t, x.dtype)), state[0])

    at_start = jax.eval_shape(lambda x: rates(jnp.asarray(start, x.dtype), (x, x))[1], x)
    state = (x, jnp.zeros(at_start.shape, at_start.dtype))
    (x, log_det), _ = _solve(rates, state, start=start, stop=stop, solver=solver or Solver())
    return Transported(x, log_det)


def log_density(
    model: Model,
    data: Array,
    *,
    t_data: float = 1.0,
    t_noise: float = 0.0,
    divergence: Divergence = divergence,
    solver: Solver | None = None,
) -> Array:
    """`log p(data)` of the flow that makes data at `t_data` of standard normal noise at `t_noise`: `[B]`, nats.

    Args:
        model: `f(x [B, ...], t [B]) -> [B, ...]`, the velocity dx/dt; one trained by flow matching is one. For models of other
            predictions, and for error bars, see `genjax.likelihood`.
        data: `[B, ...]`.
        t_data: where the model's clock is data.
        t_noise: where it is noise. The defaults are those of `paths.linear()`.
        divergence: from `vector_fields`, e.g. `partial(hutchinson_divergence, probe=probe)`, which makes an unbiased
            estimate; default exact, by D forward derivatives at every call.
        solver: default `Solver()`.

    Returns:
        `[B]`, or estimates `[K, B]` of a divergence that has so many; NaN where the solve has failed.

    Raises:
        ValueError: as `flow_and_log_det`.

    Example:
        >>> float(log_density(lambda x, t: jnp.zeros_like(x), jnp.zeros((1, 2)))[0] + jnp.log(2 * jnp.pi))
        0.0
    """
    end = transport(model, data, start=t_data, stop=t_noise, divergence=divergence, solver=solver)
    return jnp.broadcast_to(standard_normal(end.x), end.log_det.shape) + end.log_det


def standard_normal(x: Array) -> Array:
    """`log N(x; 0, I)`: `[B]`, nats."""
    zeros = jnp.zeros_like(x)
    return gaussian_log_density(x, zeros, zeros)


def _solve(rates: Any, state: Any, *, start: Array | float, stop: Array | float, solver: Solver) -> tuple[Any, Array]:
    """The `state` at the time `stop`, or NaN, and the number of steps; x and the log-determinant choose them."""
    import diffrax
    import equinox
    import optimistix

    if not solver.tolerance > 0 or solver.max_steps < 1 or (solver.steps is not None and solver.steps < 1):
        raise ValueError(f"{solver}: expected a tolerance above 0 and at least 1 step")
    if solver.adjoint == "backsolve" and solver.steps is not None:
        raise ValueError("the adjoint backsolve chooses its steps by tolerance: it takes no number of steps")
    dtype = state[0].dtype
    by_tolerance = partial(diffrax.PIDController, solver.tolerance, solver.tolerance)
    controller: Any
    if solver.steps is None:
        controller = by_tolerance(norm=lambda error: optimistix.rms_norm(error[:2]))
    else:
        controller = diffrax.ConstantStepSize()
    adjoint: Any
    if solver.adjoint == "backsolve":
        seminorm = by_tolerance(norm=diffrax.adjoint_rms_seminorm)
        adjoint = diffrax.BacksolveAdjoint(stepsize_controller=seminorm, throw=True)
    elif solver.adjoint == "checkpoints":
        adjoint = diffrax.RecursiveCheckpointAdjoint()
    else:
        raise ValueError(f"adjoint is {solver.adjoint!r}; expected checkpoints or backsolve")
    begin, end = jnp.asarray(start, dtype), jnp.asarray(stop, dtype)
    # all that the rates close over becomes an argument, which is what backsolve can differentiate and carry
    closed = equinox.filter_closure_convert(rates, begin, state)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, state, closed: closed(t, state)),
        solver.method or diffrax.Tsit5(),
        t0=begin,
        t1=end,
        dt0=None if solver.steps is None else (end - begin) / solver.steps,
        y0=state,
        args=closed,
        stepsize_controller=controller,
        adjoint=adjoint,
        max_steps=solver.steps or solver.max_steps,
        throw=False,
    )
    succeeded = solution.result == diffrax.RESULTS.successful
    final = jax.tree.map(lambda values: jnp.where(succeeded, values[-1], jnp.nan), solution.ys)
    return final, solution.stats["num_steps"].astype(jnp.int32)
