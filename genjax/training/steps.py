"""Training steps from losses: combinators that build `Method.init` and `Method.step`.

A step is a pure function `(state, batch) -> (state, metrics)`. Its randomness is `fold_in(seed, step)`, so a state
is all there is to know about where a run stands. Methods with several optimizers write their own step with
`step_key` and `apply_gradients`; the loop, the checkpoints and the scripts see only the step.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from genjax.typing import Array, Batch, Key, Metrics, Params, State

Loss = Callable[[Params, Key, Batch], tuple[Array, Metrics]]
Step = Callable[[State, Batch], tuple[State, Metrics]]

_LARGE = 2**17
"""Numbers of an array from which on its norm is a product with itself."""


def new_state(key: Key, params: Params, opt_state: Any, *, ema: Params = None, frozen: Any = ()) -> State:
    """The state before the first step; `ema` defaults to a copy of `params`.

    Args:
        key: the run's key; its raw data become `State.seed`.
        params: what optimizers change.
        opt_state: their memory.
        ema: what sampling uses, if it is not an average of all of `params`.
        frozen: arrays that steps only read; copied.
    """
    ema = params if ema is None else ema
    ema, frozen = jax.tree.map(jnp.copy, (ema, frozen))  # states are donated: theirs alone, and each buffer once
    return State(jnp.zeros((), jnp.int32), jax.random.key_data(key), params, ema, opt_state, frozen)


def step_key(state: State) -> Key:
    """The key of the coming step: `fold_in(seed, step)`."""
    return jax.random.fold_in(jax.random.wrap_key_data(state.seed), state.step)


def apply_gradients(
    optimizer: optax.GradientTransformation, grads: Params, opt_state: Any, params: Params, *, step: Array
) -> tuple[Params, Any]:
    """`(params, opt_state)` after one update, at training step `step`: what the schedule of `adamw` reads."""
    update = optax.with_extra_args_support(optimizer).update
    updates, opt_state = update(grads, opt_state, params, step=step)
    return optax.apply_updates(params, updates), opt_state


def global_norm(grads: Params) -> Array:
    """The norm of all arrays as one vector, at least float32.

    XLA:CPU takes four times as long to reduce as to multiply. A small array's columns are summed by a product with ones, which
    was a quarter of a training step of a small network; a large one is multiplied with itself, since that product of columns
    becomes a loop that strides: it was a fifth of a step of a transformer on one image.

    >>> float(global_norm({"a": jnp.asarray([[3.0, 0.0]]), "b": jnp.asarray(4.0)}))
    5.0
    """

    def square(leaf: Array) -> Array:
        entries = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
        if leaf.size > _LARGE:
            return jnp.vdot(entries, entries, precision="highest")
        columns = jnp.square(entries).reshape(-1, leaf.shape[-1] if leaf.ndim else 1)
        return jnp.sum(jnp.matmul(jnp.ones((1, len(columns)), entries.dtype), columns, precision="highest"))

    return jnp.sqrt(sum(square(leaf) for leaf in jax.tree.leaves(grads) if leaf.size))


def from_loss(loss: Loss, optimizer: optax.GradientTransformation) -> Step:
    """One gradient step on `loss(params, key, batch) -> (scalar, metrics)`; the metrics gain `loss` and `grad_norm`."""

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(state.params, step_key(state), batch)
        params, opt_state = apply_gradients(optimizer, grads, state.opt_state, state.params, step=state.step)
        state = state._replace(step=state.step + 1, params=params, opt_state=opt_state)
        return state, {"loss": value, "grad_norm": global_norm(grads), **metrics}

    return step


def with_ema(step: Step, decay: float, *, select: Callable[[Params], Params] = lambda params: params) -> Step:
    """`step`, followed by `ema <- d ema + (1 - d) select(params)` with `d = min(decay, (1 + k) / (10 + k))` at step k.

    The warm-up forgets the initial parameters quickly. `decay = 0` copies the parameters.

    Args:
        step: any training step.
        decay: in [0, 1).
        select: the part of the parameters that is averaged, e.g. the generator of a GAN.

    Raises:
        ValueError: decay outside [0, 1).
    """
    if not 0 <= decay < 1:
        raise ValueError(f"decay is {decay}; expected at least 0 and below 1")

    def averaged(state: State, batch: Batch) -> tuple[State, Metrics]:
        after, metrics = step(state, batch)
        count = state.step.astype(jnp.float32)
        d = jnp.minimum(decay, (1 + count) / (10 + count))
        ema = jax.tree.map(lambda e, p: e + (1 - d).astype(e.dtype) * (p - e), state.ema, select(after.params))
        return after._replace(ema=ema), metrics

    return averaged


def adamw(
    learning_rate: float,
    steps: int,
    *,
    schedule: str = "cosine",
    warmup: int = 0,
    weight_decay: float = 0.0,
    clip_norm: float = 1.0,
    b1: float = 0.9,
    b2: float = 0.999,
    clip_update: float = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """AdamW behind clipping of the gradient's global norm, with a learning-rate schedule over `steps` steps.

    The schedule reads the training step, `update(..., step=)`, and not how often the optimizer was called: networks
    that are updated at different intervals share one.

    Args:
        learning_rate: the peak.
        steps: how many steps the schedule spans.
        schedule: `cosine` (to 0), `linear` (to 0) or `constant`.
        warmup: steps of linear rise from 0.
        weight_decay: decoupled.
        clip_norm: the greatest global norm of the gradient; 0 for none.
        b1: decay of the first moment.
        b2: decay of the second moment.
        clip_update: the greatest root mean square of Adam's direction in any one array; 0 for none. Where the first moment
            is short, a sudden gradient moves parameters by up to `1 / sqrt(1 - b2)` learning rates; this holds the array
            to as many as are given (Shazeer & Stern 2018, arXiv 1804.04235, section 6).

    Raises:
        ValueError: an unknown schedule.
    """
    decay_steps = max(steps - warmup, 1)
    if schedule == "cosine":
        after = optax.cosine_decay_schedule(learning_rate, decay_steps)
    elif schedule == "linear":
        after = optax.linear_schedule(learning_rate, 0.0, decay_steps)
    elif schedule == "constant":
        after = optax.constant_schedule(learning_rate)
    else:
        raise ValueError(f"schedule is {schedule!r}; expected cosine, linear or constant")
    rate = optax.join_schedules([optax.linear_schedule(0.0, learning_rate, max(warmup, 1)), after], [warmup])
    clip = [_clip(clip_norm)] if clip_norm else []
    return optax.chain(
        *clip,
        _adam(b1, b2),
        *([optax.clip_by_block_rms(clip_update)] if clip_update else []),
        optax.add_decayed_weights(weight_decay),
        _descend(rate if warmup else after),
    )


def _clip(most: float) -> optax.GradientTransformation:
    """The gradient, scaled down to this global norm if its own is greater."""

    def update(updates: Any, opt_state: Any, params: Any = None) -> tuple[Any, Any]:
        factor = most / jnp.maximum(global_norm(updates), most)
        return jax.tree.map(lambda u: factor.astype(u.dtype) * u, updates), opt_state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _adam(b1: float, b2: float, eps: float = 1e-8) -> optax.GradientTransformation:
    """`optax.scale_by_adam`, which divides every number of both moments by its correction; here a correction is a factor.

    A root and two divisions a number are what an update costs, more than reading and writing the state: without one of them it
    takes two thirds of the time.
    """
    moments = optax.scale_by_adam(b1=b1, b2=b2)

    def update(updates: Any, opt_state: Any, params: Any = None) -> tuple[Any, Any]:
        _, opt_state = moments.update(updates, opt_state, params)
        first, second = (1 / (1 - decay**opt_state.count) for decay in (b1, b2))

        def direction(mean: Array, square: Array) -> Array:
            return first.astype(mean.dtype) * mean / (jnp.sqrt(second.astype(square.dtype) * square) + eps)

        return jax.tree.map(direction, opt_state.mu, opt_state.nu), opt_state

    return optax.GradientTransformation(moments.init, update)


def _descend(rate: optax.Schedule) -> optax.GradientTransformationExtraArgs:
    """`-rate(step)` times the update."""

    def update(updates: Any, opt_state: Any, params: Any = None, *, step: Array, **_: Any) -> tuple[Any, Any]:
        factor = -jnp.asarray(rate(step))
        return jax.tree.map(lambda u: factor.astype(u.dtype) * u, updates), opt_state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
