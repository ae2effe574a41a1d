"""The training loop: any `Method`, any data set, K steps a dispatch.

K steps run as one `lax.scan` under one `jit` with the state donated. Where the data set fits on the device it stays
there and a dispatch receives only indices; else the host gathers the K batches. Which examples a step sees
depends on (seed, step) alone. A dispatch of K steps is part of the contract: a run cut at any multiple of K and
continued gives bit for bit what one run gives.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genjax.errors import UserError
from genjax.training import sharding
from genjax.training.data import Dataset, Scaling, batch_indices
from genjax.typing import Array, Batch, Key, Method, Metrics, State

DEVICE_BYTES = 2 * 1024**3
"""Data sets up to this size are kept on the device."""

HELD_OUT = "held_out_"
"""What the name of a metric has before it when it was measured on held-out data."""

OnDispatch = Callable[[State, int, dict[str, float]], bool]


class Diverged(UserError):
    """A loss is no longer finite."""


def example_batch(dataset: Dataset, size: int = 64) -> Batch:
    """The first examples in model units, from which `Method.init` reads shapes, dtypes and scales."""
    few = jax.tree.map(lambda values: jnp.asarray(values[:size]), dataset.train)
    return few._replace(data=dataset.scaling.to_model(few.data))


def make_dispatch(method: Method, scaling: Scaling, batch_size: int) -> Callable[..., tuple[State, Metrics]]:
    """`dispatch(state, source, chunk) -> (state, mean metrics)`: the K steps of `chunk`, jitted, state donated.

    `source` is the whole data set as a `Batch` and `chunk` indices `[K, B]`, or `source` is None and `chunk` a
    `Batch` of `[K, B, ...]`, B = `batch_size`. Data are in data units; the step receives model units. Where devices share the
    batch (`sharding.of_steps`), state and source are best on each of them before.
    """

    def one(state: State, source: Batch | None, piece: Any) -> tuple[State, Metrics]:
        batch = piece if source is None else jax.tree.map(lambda values: values[piece], source)
        return method.step(state, batch._replace(data=scaling.to_model(batch.data)))

    def dispatch(state: State, source: Batch | None, chunk: Any) -> tuple[State, Metrics]:
        if len(jax.tree.leaves(chunk)[0]) == 1:  # no loop around a single step: see `compilation`
            return one(state, source, jax.tree.map(lambda values: values[0], chunk))
        state, metrics = jax.lax.scan(lambda state, piece: one(state, source, piece), state, chunk)
        return state, jax.tree.map(lambda values: jnp.mean(values, axis=0), metrics)

    return _jitted(dispatch, method, batch_size, donate_argnums=0)


def _jitted(function: Callable[..., Any], method: Method, batch_size: int, **options: Any) -> Any:
    """`function(whole, whole, chunk [K, B, ...])`, B = `batch_size`, whose result is whole, for devices that share a batch."""
    whole, split = sharding.of_steps(method, batch_size)
    return jax.jit(
        function,
        in_shardings=(whole, whole, split),
        out_shardings=whole,
        compiler_options=sharding.step_options(method, batch_size),
        **options,
    )


def fit(
    method: Method,
    dataset: Dataset,
    seed: int = 0,
    *,
    steps: int,
    batch_size: int,
    steps_per_dispatch: int = 50,
    state: State | None = None,
    on_dispatch: OnDispatch | None = None,
    progress: bool = True,
) -> State:
    """Train for `steps` steps in all and return the state.

    Args:
        method: from `genjax.methods`, or any record of the same functions.
        dataset: from `genjax.training.data.load`.
        seed: of initialisation, batches and noise.
        steps: the step at which training ends.
        batch_size: examples a step. Where devices share a batch (`sharding.of_steps`), sums over it are of sums of their parts.
        steps_per_dispatch: K; the callback, the bar and the metrics come once a dispatch.
        state: continue from this state; it is donated, do not use it afterwards.
        on_dispatch: called as `on_dispatch(state, step, metrics)` after every dispatch, with the mean metrics of its
            steps as floats; it may read the state but not keep it. Return True to stop.
        progress: show a bar with loss, steps per second and time left.

    Raises:
        Diverged: a loss that is not finite.
        ValueError: steps, batch_size or steps_per_dispatch below 1.
    """
    for name, value in dict(steps=steps, batch_size=batch_size, steps_per_dispatch=steps_per_dispatch).items():
        if value < 1:
            raise ValueError(f"{name} is {value}; expected at least 1")
    if state is None:
        state = method.init(jax.random.key(seed), example_batch(dataset))
    whole = sharding.of_steps(method, batch_size).whole
    state = jax.device_put(state, whole)
    source = _on_device(dataset.train, whole)
    num_examples = len(dataset.train.data)
    dispatch = make_dispatch(method, dataset.scaling, batch_size)
    step = int(state.step)
    with _progress_bar(steps, step, progress) as bar:
        while step < steps:
            count = min(steps_per_dispatch, steps - step)
            indices = batch_indices(seed, step, count, batch_size, num_examples)
            chunk: Any = indices if source is not None else _gather(dataset.train, indices)
            state, device_metrics = dispatch(state, source, chunk)
            step += count
            metrics = {name: float(value) for name, value in jax.device_get(device_metrics).items()}
            bar.update(count)
            bar.set_postfix_str(" ".join(f"{name} {metrics[name]:.4g}" for name in loss_names(metrics)))
            for name in loss_names(metrics):
                if not np.isfinite(metrics[name]):
                    raise Diverged(f"the {name} is {metrics[name]} within the {count} steps up to step {step}")
            if on_dispatch is not None and on_dispatch(state, step, metrics):
                break
    return state


def loss_names(metrics: Iterable[str]) -> list[str]:
    """The metrics that are losses, by their names: what the bar and the curve show, and what must stay finite.

    >>> loss_names({"generator_loss": 0.7, "critic_loss": 1.2, "grad_norm": 3.0, "held_out_loss": 0.8})
    ['generator_loss', 'critic_loss']
    """
    return [name for name in metrics if "loss" in name and not name.startswith(HELD_OUT)]


def _on_device(batch: Batch, whole: Any) -> Batch | None:
    size = sum(np.asarray(values).nbytes for values in jax.tree.leaves(batch))
    return jax.device_put(batch, whole) if size <= DEVICE_BYTES else None


def _gather(batch: Batch, indices: np.ndarray) -> Batch:
    return jax.tree.map(lambda values: np.asarray(values)[indices], batch)


def _progress_bar(steps: int, done: int, visible: bool) -> Any:
    from tqdm import tqdm

    return tqdm(
        total=steps,
        initial=done,
        disable=not visible,
        dynamic_ncols=True,
        unit="step",
        desc="training",
        mininterval=0.2,
    )


def make_evaluate(
    method: Method, dataset: Dataset, *, max_examples: int, batch_size: int
) -> Callable[[Any, Key], dict[str, float]] | None:
    """`evaluate(params, key) -> mean metrics` over held-out examples; None when the method has no `evaluate`.

    The first `max_examples` held-out examples, in whole batches (at least one, the last cut off); the same
    key gives the same draws, so numbers of different steps compare.
    """
    if method.evaluate is None:
        return None
    batch_size = min(batch_size, len(dataset.test.data))
    num_batches = max(min(max_examples, len(dataset.test.data)) // batch_size, 1)
    held_out = jax.tree.map(
        lambda values: jnp.asarray(values[: num_batches * batch_size]).reshape(
            num_batches, batch_size, *values.shape[1:]
        ),
        dataset.test,
    )
    evaluate_batch = method.evaluate

    def evaluate(params: Any, key: Key, held_out: Batch) -> Metrics:
        def one(index: Array, batch: Batch) -> tuple[Array, Metrics]:
            batch = batch._replace(data=dataset.scaling.to_model(batch.data))
            return index + 1, evaluate_batch(params, jax.random.fold_in(key, index), batch)

        _, metrics = jax.lax.scan(one, jnp.zeros((), jnp.int32), held_out)
        return jax.tree.map(lambda values: jnp.mean(values, axis=0), metrics)

    compiled = _jitted(evaluate, method, batch_size)
    return lambda params, key: {
        name: float(value) for name, value in jax.device_get(compiled(params, key, held_out)).items()
    }
