"""What models with a log-density share: maximum likelihood, draws, labels.

    loss    -log p(data | label)

A class-conditional model asked without a label is the mixture of its classes, all equally likely.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from genjax.arrays import as_example_keys
from genjax.losses.likelihood import bits_per_dim
from genjax.methods import labels
from genjax.training.steps import from_loss, new_state, with_ema
from genjax.typing import Array, Batch, CompilerOptions, Examples, Key, Method, Metrics, Params, State

LogDensity = Callable[[Params, Key, Array, Array | None], Array]
"""`(params, key, data [B, ...], label [B] | None) -> log p(data | label) [B]`, nats; a draw of a bound may use the key."""

Objective = Callable[[Params, Key, Array, Array | None], tuple[Array, Metrics]]
"""`(params, key, data [B, ...], label [B] | None) -> (loss [B], metrics)`, of training."""

Draw = Callable[[Params, Key, Array | None], Array]
"""`(params, keys [B], label [B] | None) -> [B, ...]`, a draw for each key."""


def build(
    init_net: Callable[..., Params],
    log_density: LogDensity,
    draw: Draw,
    optimizer: optax.GradientTransformation,
    *,
    examples: Examples,
    num_classes: int,
    network_calls: int | None,
    ema_decay: float,
    objective: Objective | None = None,
    bounds_log_prob: bool = False,
    compiler_options: CompilerOptions = None,
) -> Method:
    """The method of a log-density and of draws from it.

    Args:
        init_net: `(key, data, label | None) -> params`.
        log_density: of data in model units: of integers where these have levels, else the density.
        draw: in model units.
        optimizer: from `genjax.training.steps.adamw`, or any of optax.
        examples: what the data are.
        num_classes: 0 for a model without labels.
        network_calls: evaluations of the network for one draw; None where they depend on it.
        ema_decay: of the moving average that sampling uses.
        objective: what training minimises; default minus the log-density.
        bounds_log_prob: whether `log_density` is a lower bound in the mean over its key.
        compiler_options: for a `jit` of the step and the sampling.
    """

    def loss(params: Params, key: Key, batch: Batch) -> tuple[Array, Metrics]:
        if objective is None:
            return -jnp.mean(log_density(params, key, batch.data, labels.of_batch(batch, num_classes))), {}
        losses, metrics = objective(params, key, batch.data, labels.of_batch(batch, num_classes))
        return jnp.mean(losses), metrics

    def init(key: Key, batch: Batch) -> State:
        run_key, net_key = jax.random.split(key)
        params = init_net(net_key, batch.data, labels.of_batch(batch, num_classes))
        return new_state(run_key, params, optimizer.init(params))

    def evaluate(params: Params, key: Key, batch: Batch) -> Metrics:
        log_p = log_density(params, key, batch.data, labels.of_batch(batch, num_classes))
        bits = {"bits_per_dim": jnp.mean(bits_per_dim(log_p, examples.event_shape))} if examples.levels else {}
        return {"loss": -jnp.mean(log_p), **bits}

    def log_prob(params: Params, key: Key, data: Array, *, label: Array | None = None) -> Array:
        """`log p(data)`, or given its `label [B]`: `[B]`, nats; a class-conditional model's are one mixture."""
        labels.check(label, num_classes)
        if not num_classes or label is not None:
            return log_density(params, key, data, label)
        of_class = jax.lax.map(
            lambda one: log_density(params, key, data, jnp.full(data.shape[:1], one)), jnp.arange(num_classes)
        )
        return jax.nn.logsumexp(of_class, axis=0) - jnp.log(num_classes)

    def calls(**_: Any) -> int | None:
        return network_calls

    step = with_ema(from_loss(loss, optimizer), ema_decay)
    return Method(
        init,
        step,
        sampling(draw, num_classes),
        calls,
        evaluate,
        log_prob,
        bounds_log_prob=bounds_log_prob,
        compiler_options=compiler_options,
    )


def sampling(draw: Draw, num_classes: int) -> Callable[..., Array]:
    """`Method.sample` by draws of the labels `[num]` that it is given, or of any."""

    def sample(params: Params, key: Key, num: int, *, label: Array | None = None) -> Array:
        """`num` draws `[num, ...]` in model units, of the classes `label [num]` or of any."""
        keys = as_example_keys(key, num)
        return draw(params, keys, labels.given_or_drawn(label, keys, num_classes))

    return sample
