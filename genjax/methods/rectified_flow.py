"""Rectified flow: flow matching, then again on the pairs that the flow itself makes, so that its ways become straight.

    round 0      E || model(x_t, t) - (data - noise) ||^2,   x_t = t data + (1 - t) noise, pairs by chance
    round k      the same with data = the end of the flow of round k - 1 that starts at the noise

A round leaves the marginals as they are and raises no convex transport cost (Liu, Gong & Liu 2023, arXiv 2209.03003, theorem
3.5); a straight flow needs one Euler step. The averaged network that the last round ended with makes the pairs: an eighth of a
batch at each step, which join those that are kept; batches are drawn from all of them.
"""

import dataclasses
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import optax

from genjax import paths, predictions, samplers, times
from genjax.arrays import as_example_keys, normal
from genjax.errors import UsageError
from genjax.losses import denoising
from genjax.losses.flow_matching import conditional_flow_matching_loss
from genjax.methods import network_options, path_models
from genjax.methods.network_options import BySteps, NetworkOptions
from genjax.methods.recommended import Recommended, for_path_models
from genjax.training.steps import from_loss, step_key, with_ema
from genjax.typing import Array, Batch, Examples, Key, Method, Metrics, Params, State

_PAIRS = 2
"""Folded into a step's key for the noise of its pairs."""

_NEW_SHARE = 8
"""A batch is so many times as large as what is made of pairs at a step: making them is most of the cost of a step."""

_KEPT_PAIRS = 8192
"""At most; then the oldest make room."""


class Pairs(NamedTuple):
    """Ends of the flow: `noise`, `data [kept, ...]`, `label [kept]` int32 (zeros without labels)."""

    noise: Array
    data: Array
    label: Array


@dataclasses.dataclass(frozen=True)
class Config:
    """Rectified flow."""

    reflow: int = 1
    """rounds on the flow's own pairs, after the one on pairs by chance"""
    round_steps: Annotated[int | None, BySteps] = None
    """training steps of a round; the last one goes on to the end"""
    pair_steps: int = 16
    """Heun steps that make a pair"""
    class_conditional: bool = False
    """learn p(data | label); labels are dropped in training so that guidance works"""
    label_dropout: float = 0.1
    """probability with which a label is dropped"""
    ema_decay: float = 0.999
    """decay of the moving average of the parameters that sampling uses"""
    network: NetworkOptions = dataclasses.field(default_factory=NetworkOptions)


def recommended(examples: Examples) -> Recommended:
    """Training that gives a good result on such examples: twice that of flow matching, for two rounds."""
    single = for_path_models(examples.event_shape)
    return single._replace(steps=2 * single.steps)


def for_steps(config: Config, steps: int) -> Config:
    """`config` with rounds of equal length in a training of `steps` steps, if none is given.

    Raises:
        UsageError: training ends before the last round begins.
    """
    rounds = max(config.reflow, 0) + 1
    round_steps = max(steps // rounds, 1) if config.round_steps is None else config.round_steps
    if round_steps * (rounds - 1) >= steps:
        raise UsageError(
            f"--steps {steps} ends before the last of {rounds} rounds of {round_steps} steps begins: "
            "give more --steps, fewer --round-steps or a lower --reflow"
        )
    return dataclasses.replace(config, round_steps=round_steps)


def resolve(config: Config, examples: Examples) -> Config:
    """`config` with every default chosen.

    Raises:
        UsageError: options that do not fit the data or each other.
    """
    path_models.check_labels(config.class_conditional, config.label_dropout, examples.num_classes)
    if config.reflow < 0:
        raise UsageError(f"--reflow is {config.reflow}; expected at least 0")
    for name in ("round_steps", "pair_steps"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} is {value}; expected at least 1")
    return dataclasses.replace(
        config,
        round_steps=config.round_steps or for_steps(config, recommended(examples).steps).round_steps,
        network=network_options.resolve(config.network, examples.event_shape),
    )


def build(config: Config, optimizer: optax.GradientTransformation, examples: Examples) -> Method:
    """The method for such examples, given their labels if class-conditional."""
    config = resolve(config, examples)
    round_steps, num_classes = config.round_steps or 1, examples.num_classes if config.class_conditional else 0
    path = paths.linear()
    density = times.low_discrepancy_density(path)
    net = network_options.make_net(config.network, examples.event_shape, num_classes)
    base = path_models.build(
        net,
        optimizer,
        examples=examples,
        num_classes=num_classes,
        path=path,
        predict=predictions.velocity,
        error=predictions.velocity,
        weighting=denoising.uniform,
        density=density,
        knots=lambda steps: path_models.uniform_knots(path, predictions.velocity, steps),
        default_sampler="euler",
        default_steps=4,
        first_order_end=examples.are_images,
        ema_decay=config.ema_decay,
        label_dropout=config.label_dropout,
        compiler_options=network_options.compiler_options(config.network),
        sampling_net=network_options.sampling_net(config.network, net),
        training_options=network_options.training_options(config.network, examples.event_shape),
        sampling_options=network_options.sampling_options(config.network),
    )
    grid = path_models.uniform_knots(path, predictions.velocity, config.pair_steps)

    def end_of_flow(params: Params, noise: Array, label: Array | None) -> Array:
        denoise = predictions.denoiser(net.bind(params, label), path, predictions.velocity)
        return samplers.sample(samplers.heun(path), denoise, jax.random.key(0), noise, grid)

    def init(key: Key, batch: Batch) -> State:
        state = base.init(key, batch)
        kept = max(_KEPT_PAIRS, len(batch.data))
        empty = jnp.zeros((kept, *batch.data.shape[1:]), batch.data.dtype)
        pairs = Pairs(empty, jnp.copy(empty), jnp.zeros((kept,), jnp.int32))
        return state._replace(frozen={"teacher": jax.tree.map(jnp.copy, state.params), "pairs": pairs})

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        rounds_before = jnp.minimum(state.step // round_steps, config.reflow)
        steps_before = state.step - rounds_before * round_steps
        by_chance, size = rounds_before == 0, len(batch.data)
        count = -(-size // _NEW_SHARE)
        last = state.frozen["teacher"]
        starts = (steps_before == 0) & ~by_chance
        teacher = jax.tree.map(lambda averaged, last: jnp.where(starts, averaged, last), state.ema, last)
        labels = jnp.zeros((size,), jnp.int32) if not num_classes or batch.label is None else batch.label
        noise_key, choice_key = jax.random.split(jax.random.fold_in(step_key(state), _PAIRS))
        noise = normal(as_example_keys(noise_key, size), batch.data.shape, batch.data.dtype)

        def with_new_pairs() -> Pairs:
            new_label = labels[:count]
            made = end_of_flow(teacher, noise[:count], new_label if num_classes else None)
            pairs: Pairs = state.frozen["pairs"]
            kept = len(pairs.label)
            place = (steps_before * count + jnp.arange(count)) % kept
            values = Pairs(noise[:count], made, new_label)
            return Pairs(*(old.at[place].set(new) for old, new in zip(pairs, values, strict=True)))

        pairs = jax.lax.cond(by_chance, lambda: state.frozen["pairs"], with_new_pairs)
        made = jnp.minimum((steps_before + 1) * count, len(pairs.label))
        chosen = jax.random.randint(choice_key, (size,), 0, made)
        noise, data, labels = (
            jnp.where(by_chance, chance, kept[chosen])
            for chance, kept in zip((noise, batch.data, labels), pairs, strict=True)
        )
        label = labels if num_classes else None

        def loss(params: Params, key: Key, batch: Batch) -> tuple[Array, Metrics]:
            loss_key, label_key = jax.random.split(key)
            seen = label
            if label is not None:
                seen = path_models.drop_labels(label_key, label, config.label_dropout, num_classes)
            errors = conditional_flow_matching_loss(
                net.bind(params, seen), loss_key, batch.data, noise=noise, density=density
            )
            return jnp.mean(errors), {}

        frozen = {"teacher": teacher, "pairs": pairs}
        return from_loss(loss, optimizer)(state._replace(frozen=frozen), batch._replace(data=data))

    return base._replace(
        init=init,
        step=with_ema(step, config.ema_decay),
        evaluate=None,
        path_model=None if config.reflow else base.path_model,
    )
