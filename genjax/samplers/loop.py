"""The one loop of every sampler: a `lax.scan` over the intervals of a grid that runs from noise to data."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from genjax.arrays import as_example_keys, fold_each
from genjax.samplers import invariants
from genjax.typing import Array, Denoiser, Key, Knot, Prediction

Memory = Any


class Sampler(NamedTuple):
    """A sampling method: what it remembers between steps, and one step from a knot to the next.

    - `init(x, knots) -> memory`: `()` for one-step methods; what a method computes of the whole grid, it computes here, once.
    - `step(denoise, key, x, memory, now, then) -> (x, memory)`: `key` holds one key an example `[B]`, or standard
      normal noise `[B, ...]` when the caller handed it in; `genjax.arrays.normal` takes either.
    """

    init: Callable[[Array, Knot], Memory]
    step: Callable[[Denoiser, Key, Array, Memory, Knot, Knot], tuple[Array, Memory]]


def one_step(step: Callable[[Denoiser, Key, Array, Knot, Knot], Array]) -> Sampler:
    """A sampler without memory from `step(denoise, key, x, now, then) -> x`."""

    def with_memory(
        denoise: Denoiser, key: Key, x: Array, memory: Memory, now: Knot, then: Knot
    ) -> tuple[Array, Memory]:
        return step(denoise, key, x, now, then), memory

    return Sampler(init=lambda x, knots: (), step=with_memory)


def sample(
    sampler: Sampler,
    denoise: Denoiser,
    key: Key,
    x: Array,
    knots: Knot,
    *,
    trace: bool = False,
    checkpoint: bool = False,
) -> Any:
    """Carry `x` from the first knot to the last.

    One `lax.scan`: time is steps times the cost of a step, compile time and memory do not depend on the number of
    steps. Jit it at your boundary; the grid is data, so another one of the same length does not recompile.

    Args:
        sampler: from `genjax.samplers`.
        denoise: `(x [B, ...], knot) -> (data, noise)`, e.g. `predictions.denoiser(model, path, kind)`.
        key: a key; or one key an example `[B]` (`arrays.example_keys`), so that a batch can be drawn in parts; or the
            noise itself, standard normal `[steps, B, ...]`.
        x: `[B, ...]`, a draw at the first knot: `sigma * noise` (plus `alpha * data`, of which a sampler knows none).
        knots: a grid from noise to data, arrays `[steps + 1]` (`paths.knots(path, t)`).
        trace: also return every state.
        checkpoint: compute each step again when differentiating backwards, which then keeps the states between steps only,
            not what the network computes within them.

    Returns:
        x at the last knot, `[B, ...]`; with `trace`, the pair of it and the trajectory `[steps + 1, B, ...]`.

    Raises:
        ValueError: the grid has fewer than two knots, or handed-in noise has another number of steps.
    """
    steps = knots.t.shape[0] - 1
    if steps < 1:
        raise ValueError(f"a grid needs at least two knots; got {steps + 1}")
    knots = _side_by_side(knots)
    if jnp.issubdtype(key.dtype, jnp.floating):
        if key.shape != (steps, *x.shape):
            raise ValueError(f"noise has shape {key.shape}; expected {(steps, *x.shape)}")
        step_keys, key_of = key, lambda noise: noise
    else:
        example_keys = as_example_keys(key, x.shape[0])
        numbers = np.arange(steps)  # a constant, which no kernel has to make
        step_keys, key_of = jnp.asarray(numbers), lambda index: fold_each(example_keys, index)

    def advance(carry: tuple[Array, Memory], interval: Any) -> tuple[tuple[Array, Memory], Any]:
        (x, memory), (step_key, now, then) = carry, interval
        x, memory = sampler.step(denoise, key_of(step_key), x, memory, now, then)
        return (x, memory), x if trace else None

    now = Knot(*(values[:-1].astype(x.dtype) for values in knots))
    then = Knot(*(values[1:].astype(x.dtype) for values in knots))
    step = jax.checkpoint(advance) if checkpoint else advance
    (last, _), states = invariants.scan(step, (x, sampler.init(x, knots)), (step_keys, now, then))
    return (last, jnp.concatenate([x[None], states])) if trace else last


def _side_by_side(knots: Knot) -> Knot:
    """The same knots, of one array, for which all that is computed of them waits.

    XLA:CPU hands half of what is ready at once to another thread if that is more than eight loops, and the sampler's loop may
    then run where its caches are cold.
    """
    return Knot(*jax.lax.optimization_barrier(jnp.stack(knots)))


def calls_per_step(sampler: Sampler, shape: tuple[int, ...]) -> int:
    """How often a step calls the denoiser, counted by tracing one step on an abstract batch of `shape`."""
    count = 0

    def counting(x: Array, knot: Knot) -> Prediction:
        nonlocal count
        count += 1
        return Prediction(x, x)

    def step(x: Array, knots: Knot) -> Array:
        keys = jax.random.split(jax.random.key(0), x.shape[0])
        now, then = (Knot(*(values[index] for values in knots)) for index in (0, 1))
        return sampler.step(counting, keys, x, sampler.init(x, knots), now, then)[0]

    pair: Any = jax.ShapeDtypeStruct((2,), jnp.float32)
    jax.eval_shape(step, jax.ShapeDtypeStruct(shape, jnp.float32), Knot(pair, pair, pair))
    return count
