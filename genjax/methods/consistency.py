"""Consistency model: one network call from noise to data, learned from a trained teacher or from data alone.

    path    x = data + t noise,   t from sigma_max down to sigma_min
    model   f(x, t) = c_skip(t) x + c_out(t) F(c_in(t) x, log(t) / 4),   f(x, sigma_min) = x
    loss    distance(f at a level of a grid, f at the next lower one on the same solution of the probability-flow ODE)
    sample  f(sigma_max noise, sigma_max); each further step adds noise again and takes it away by one call

With `--teacher` the next point of a solution is a Heun step of that run's model, a diffusion or flow model on any Gaussian
path. Without, it is `data + t noise` with the same noise. The grid gets finer in training. Recipes are in
`losses.consistency`: `distillation` and `training` of Song, Dhariwal, Chen & Sutskever 2023 (arXiv 2303.01469), whose f at the
lower level is an average of the model; `improved-training` of Song & Dhariwal 2023 (arXiv 2310.14189).
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import optax
import tyro

from genjax import paths, predictions, samplers
from genjax.arrays import as_example_keys, fold_each, normal
from genjax.errors import UsageError
from genjax.losses import consistency as losses
from genjax.losses import consistency_grids as grids
from genjax.methods import labels, network_options, path_models
from genjax.methods.network_options import BySteps, NetworkOptions
from genjax.methods.recommended import Recommended, for_path_models
from genjax.training.steps import from_loss, new_state, with_ema
from genjax.typing import Array, Batch, Examples, Key, Method, Metrics, Model, Net, OtherRun, Params, State

OTHER_RUN = "teacher"

_NumberByData = Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="(default: by data)")]
_FIRST_LEVELS = {"distillation": 5, "training": 2, "improved-training": 10}
"""Intervals of the grid at the start; the papers' but for distillation, whose grid the first paper keeps fixed."""

_HUBER_POINTS = 0.03
"""Below which differences of standardised points count by their square; the paper's rule, made for images, says 0.0008."""

_INITIAL_NOISE = 2**31 - 2
"""Folded into an example's key for the noise it starts from; steps fold in 0, 1, 2, ..."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Consistency model."""

    teacher: Annotated[str | None, tyro.conf.arg(metavar="RUN_DIR")] = None
    """a trained run of a diffusion or flow method to distil; default: none, learn from the data alone"""
    recipe: Annotated[
        Literal["distillation", "training", "improved-training"] | None,
        tyro.conf.arg(
            metavar="{distillation,training,improved-training}", help_behavior_hint="(default: by the teacher)"
        ),
    ] = None
    """which loss and grids: with a teacher distillation, else improved-training"""
    guidance: float = 1.0
    """classifier-free guidance scale of the teacher (class-conditional)"""
    sigma_max: _NumberByData = None
    """the greatest noise level, where sampling starts"""
    sigma_min: float = 0.002
    """the noise level at which the model is the identity"""
    levels: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: by recipe)")] = None
    """intervals of the grid of noise levels, once it has grown"""
    growth_steps: Annotated[int | None, BySteps] = None
    """training steps over which the grid gets finer; 1 for a fixed grid"""
    last_level: _NumberByData = None
    """the noise level from which the last of several calls starts"""
    target_decay: float = 0.95
    """decay of the average that is the target (distillation), at the start (training)"""
    class_conditional: bool = False
    """learn p(data | label)"""
    ema_decay: float = 0.999
    """decay of the moving average of the parameters that sampling uses"""
    network: NetworkOptions = dataclasses.field(default_factory=NetworkOptions)


def recommended(examples: Examples) -> Recommended:
    """Training that gives a good result on such examples."""
    if examples.are_images:
        return for_path_models(examples.event_shape)
    return Recommended(steps=20_000, batch_size=256, learning_rate=3e-3, steps_per_dispatch=100, clip_update=1.0)


def for_steps(config: Config, steps: int) -> Config:
    """`config` whose grid gets finer until the end of a training of `steps` steps, if nothing else is given."""
    return config if config.growth_steps is not None else dataclasses.replace(config, growth_steps=steps)


def resolve(config: Config, examples: Examples, other: OtherRun | None = None) -> Config:
    """`config` with every default chosen.

    Raises:
        UsageError: options that do not fit the data, the teacher or each other.
    """
    labels.check_config(config.class_conditional, examples.num_classes)
    recipe = config.recipe or ("improved-training" if other is None else "distillation")
    if (recipe == "distillation") != (other is not None):
        raise UsageError(
            "--recipe distillation needs --teacher RUN_DIR, a trained run of a diffusion or flow method"
            if other is None
            else f"--recipe {recipe} learns from the data alone: leave --teacher out"
        )
    if other is not None:
        _check_teacher(config, other)
    elif config.guidance != 1:
        raise UsageError("--guidance is of the teacher: give one with --teacher RUN_DIR")
    sigma_max = config.sigma_max or (80.0 if examples.are_images else 20.0)
    path_models.check_levels(config.sigma_min, sigma_max)
    last_level = config.last_level or (0.8 if examples.are_images else 0.3)
    if not config.sigma_min < last_level <= sigma_max:
        raise UsageError(f"--last-level is {last_level}; expected more than {config.sigma_min} and at most {sigma_max}")
    levels = config.levels or (80 if recipe == "distillation" else 160)
    if levels < _FIRST_LEVELS[recipe]:
        raise UsageError(f"--levels is {levels}; expected at least {_FIRST_LEVELS[recipe]}")
    if not 0 <= config.target_decay < 1 or (recipe == "training" and config.target_decay == 0):
        raise UsageError(f"--target-decay is {config.target_decay}; expected at least 0 and below 1, above 0 to train")
    if config.growth_steps is not None and config.growth_steps < 1:
        raise UsageError(f"--growth-steps is {config.growth_steps}; expected at least 1")
    return dataclasses.replace(
        config,
        recipe=recipe,
        sigma_max=sigma_max,
        levels=levels,
        last_level=last_level,
        growth_steps=for_steps(config, recommended(examples).steps).growth_steps,
        network=network_options.resolve(config.network, examples.event_shape),
    )


def _check_teacher(config: Config, other: OtherRun) -> None:
    if other.method.path_model is None:
        raise UsageError(
            f"--teacher {config.teacher} is a run of {other.name} without a model on a Gaussian path; "
            "methods that can teach: ddpm, edm, flow-matching (independent coupling, no --source), ncsn, score-sde"
        )
    if config.class_conditional and not other.num_classes:
        raise UsageError(f"--class-conditional needs a class-conditional teacher, which {config.teacher} is not")
    if config.guidance != 1 and not config.class_conditional:
        raise UsageError("--guidance needs labels: add --class-conditional, with a class-conditional teacher")


def build(
    config: Config, optimizer: optax.GradientTransformation, examples: Examples, other: OtherRun | None = None
) -> Method:
    """The method for such examples, given their labels if class-conditional, and the teacher if there is one."""
    config = resolve(config, examples, other)
    sigma_min, sigma_max = config.sigma_min, config.sigma_max or 0.0
    data_std, averaged = path_models.data_std(examples), config.recipe != "improved-training"
    num_classes = examples.num_classes if config.class_conditional else 0
    net = network_options.make_net(config.network, examples.event_shape, num_classes)
    sampling_net = network_options.sampling_net(config.network, net)
    levels_at, training = _levels(config), _training(config, examples)

    def function(params: Params, label: Array | None, net: Net = net) -> Model:
        return losses.consistency_function(net.bind(params, label), data_std=data_std, sigma_min=sigma_min)

    def init(key: Key, batch: Batch) -> State:
        run_key, net_key = jax.random.split(key)
        label = labels.of_batch(batch, num_classes)
        t = jnp.ones(batch.data.shape[:1], batch.data.dtype)
        params = net.init(net_key, batch.data, t, *(() if label is None else (label,)))
        if other is not None and _shares_its_network(other, params):
            params = jax.tree.map(jnp.copy, other.params())  # the state is donated, the teacher's arrays are not ours
        frozen = {"target": params if averaged else (), "teacher": () if other is None else other.params()}
        return new_state(run_key, params, optimizer.init(params), frozen=frozen)

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        label = labels.of_batch(batch, num_classes)
        levels = levels_at(state.step)
        target = function(state.frozen["target"], label) if averaged else None

        def loss(params: Params, key: Key, batch: Batch) -> tuple[Array, Metrics]:
            model, data = function(params, label), batch.data
            if other is not None:
                teacher = _on_noise_levels(other, state.frozen["teacher"], len(data), label, config.guidance)
                errors = losses.consistency_distillation_loss(
                    model, key, data, levels=levels, teacher=teacher, target=target
                )
            else:
                errors = losses.consistency_training_loss(model, key, data, levels=levels, target=target, **training)
            return jnp.mean(errors), {}

        after, metrics = from_loss(loss, optimizer)(state, batch)
        if averaged:
            decay = jnp.asarray(config.target_decay)
            if config.recipe == "training":
                decay = grids.target_decay(1 + jnp.searchsorted(levels, levels[-1]), decay=config.target_decay)
            average = jax.tree.map(
                lambda old, new: old + (1 - decay) * (new - old), state.frozen["target"], after.params
            )
            after = after._replace(frozen={**state.frozen, "target": average})
        return after, metrics

    def sample(params: Params, key: Key, num: int, *, steps: int = 2, label: Array | None = None) -> Array:
        """`num` draws `[num, ...]` in model units by `steps` calls, of the classes `label [num]` or of any."""
        keys = as_example_keys(key, num)
        noise = normal(fold_each(keys, jnp.uint32(_INITIAL_NOISE)), (num, *examples.event_shape))
        model = function(params, labels.given_or_drawn(label, keys, num_classes), sampling_net)
        levels = jnp.geomspace(sigma_max, config.last_level or sigma_max, network_calls(steps))
        return samplers.consistency_sample(model, keys, noise, levels=levels, sigma_min=sigma_min)

    def network_calls(steps: int = 2, **_: object) -> int:
        if steps < 1:
            raise UsageError(f"--steps is {steps}; expected at least 1")
        return steps

    return Method(
        init,
        with_ema(step, config.ema_decay),
        sample,
        network_calls,
        compiler_options=network_options.compiler_options(config.network),
        training_options=network_options.training_options(config.network, examples.event_shape),
        sampling_options=network_options.sampling_options(config.network),
    )


def _shares_its_network(teacher: OtherRun, params: Params) -> bool:
    """Whether the teacher's parameters mean here what they mean there: edm has the same inputs, clock and `c_out F`."""
    return teacher.name == "edm" and jax.tree.map(jnp.shape, teacher.params()) == jax.tree.map(jnp.shape, params)


def _training(config: Config, examples: Examples) -> dict[str, Any]:
    """What the loss of training from data alone takes in the recipe."""
    if config.recipe == "training":
        return {"distance": losses.squared, "weighting": losses.uniform, "intervals": grids.uniform_intervals}
    mean = -1.1 + math.log(path_models.data_std(examples) / 0.5)  # the paper's is for data of deviation 0.5
    distance = losses.pseudo_huber(None if examples.are_images else _HUBER_POINTS)
    return {"distance": distance, "intervals": grids.lognormal_intervals(mean)}


def _levels(config: Config) -> Callable[[Array], Array]:
    """`levels(step)`: the grid of a training step, of one length for all."""
    levels, growth_steps, recipe = config.levels or 0, config.growth_steps or 1, config.recipe or ""
    start = _FIRST_LEVELS[recipe]
    schedule: Callable[[Array], Array] = {
        "distillation": lambda step: grids.doubling_levels(step, growth_steps, start=start, end=levels),
        "training": lambda step: grids.growing_levels(step, growth_steps, start=start, end=levels),
        "improved-training": lambda step: grids.doubling_levels(step, growth_steps, start=start, end=levels),
    }[recipe]

    def at(step: Array) -> Array:
        return grids.karras_levels(
            schedule(step), capacity=levels + 1, sigma_min=config.sigma_min, sigma_max=config.sigma_max or 0.0
        )

    return at


def _on_noise_levels(teacher: OtherRun, params: Params, num: int, label: Array | None, guidance: float) -> Model:
    """`dx/dt` of the teacher's probability-flow ODE for `x = data + t noise`."""
    known = teacher.method.path_model
    assert known is not None
    model = known.model(params, num, label if teacher.num_classes else None, guidance)
    return predictions.on_another_path(
        model, known.path, known.predict, new_path=paths.edm(), new_predict=predictions.velocity
    )
