"""A run as JSON, and the method that its JSON describes: what `config.json` holds beyond versions.

A method module with a name `OTHER_RUN` builds on another run, whose directory the option of that name gives: its `resolve`
and `build` take the `OtherRun`, or None, as their last argument. What its JSON says is kept in that of the new run, and what
is used of its parameters in the new run's checkpoints: sampling needs the other directory no more, and a training run goes on
only while the other one is as it was.
"""

import dataclasses
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from genjax import cli
from genjax.errors import UsageError, UserError, unknown
from genjax.methods import METHODS
from genjax.training.data import Dataset, Scaling
from genjax.training.options import TrainingOptions, identity
from genjax.training.steps import adamw
from genjax.typing import Batch, Examples, Method, OtherRun, Params


class Run(NamedTuple):
    """A run directory's settings, ready to use."""

    method_name: str
    method: Method
    data_name: str
    event_shape: tuple[int, ...]
    num_classes: int
    class_conditional: bool
    binarised: bool
    scaling: Scaling


def describe(
    method_name: str,
    config: Any,
    options: TrainingOptions,
    dataset: Dataset,
    other: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The JSON of a run: its method's config, its training and its data, every default resolved, and that of another run."""
    return {
        "method": method_name,
        "config": dataclasses.asdict(config),
        "training": identity(options),
        "data": _describe_data(dataset),
        **({} if other is None else {"other_run": other}),
    }


def _describe_data(dataset: Dataset) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "event_shape": list(dataset.train.data.shape[1:]),
        "num_classes": dataset.num_classes,
        "num_train": len(dataset.train.data),
        "crc32": f"{_crc32(dataset):08x}",
        "shift": np.asarray(dataset.scaling.shift).tolist(),
        "scale": np.asarray(dataset.scaling.scale).tolist(),
        "levels": dataset.scaling.levels,
    }


def open_other(module: Any, config: Any, dataset: Dataset, warn: Any) -> tuple[dict[str, Any], OtherRun] | None:
    """The JSON and the use of the run that `config` of `module` names, with its last checkpoint; None where it names none.

    Raises:
        UsageError: a run of other data.
        UserError: no run there, or one without a checkpoint.
    """
    option: str = getattr(module, "OTHER_RUN", "")
    directory = getattr(config, option) if option else None
    if directory is None:
        return None
    from genjax.training.checkpoint import Checkpoints
    from genjax.training.run_dir import read_config

    description = {key: value for key, value in read_config(directory).items() if key not in ("format", "versions")}
    run = restore(description, f"{directory}/config.json")
    theirs, ours = description["data"], _describe_data(dataset)
    if any(theirs[name] != ours[name] for name in ("event_shape", "levels", "shift", "scale", "crc32")):
        raise UsageError(
            f"--{option.replace('_', '-')} {directory} was trained on other data: {theirs['name']}, examples of "
            f"{_size(theirs)}; expected a run on {dataset.name}, {_size(ours)}"
        )
    checkpoints = Checkpoints(Path(directory) / "checkpoints", warn=warn)
    step = checkpoints.latest_step()
    if step is None:
        raise UserError(f"{directory} has no checkpoint yet: let its training run until it saves one")

    def params() -> Params:
        return checkpoints.restore_ema(ema_template(run), step=step)

    return {**description, "checkpoint": step}, _other(run, params)


def _size(data: dict[str, Any]) -> str:
    return "x".join(map(str, data["event_shape"])) + f" (crc32 {data['crc32']})"


def _other(run: "Run", params: Any) -> OtherRun:
    return OtherRun(run.method_name, run.method, run.num_classes if run.class_conditional else 0, params)


def _shapes_of_other(description: dict[str, Any], where: str) -> OtherRun:
    """The other run of a run that is there: its method, and of its parameters the shapes alone."""
    run = restore({key: value for key, value in description.items() if key != "checkpoint"}, f"{where}: other_run")
    return _other(run, lambda: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), ema_template(run)))


def accepts(module: Any, other: OtherRun | None) -> tuple[OtherRun | None, ...]:
    """The last arguments of `resolve` and `build` of `module`."""
    return (other,) if hasattr(module, "OTHER_RUN") else ()


def _crc32(dataset: Dataset) -> int:
    return zlib.crc32(np.ascontiguousarray(dataset.train.data).tobytes())


def optimizer_of(options: TrainingOptions) -> Any:
    """The optimizer of resolved training options."""
    assert options.steps is not None
    assert options.learning_rate is not None
    assert options.b1 is not None
    assert options.b2 is not None
    assert options.clip_update is not None
    return adamw(
        options.learning_rate,
        options.steps,
        schedule=options.schedule,
        warmup=options.warmup or 0,
        weight_decay=options.weight_decay,
        clip_norm=options.clip_norm,
        b1=options.b1,
        b2=options.b2,
        clip_update=options.clip_update,
    )


def restore(description: dict[str, Any], where: str) -> Run:
    """The run that `describe` described.

    Raises:
        UserError: a description that this version cannot read, naming what it stumbled over.
    """
    try:
        method_name, data = description["method"], description["data"]
        event_shape = tuple(data["event_shape"])
        scaling = Scaling(_number_or_row(data["shift"]), _number_or_row(data["scale"]), data["levels"])
        config_json, training_json = description["config"], description["training"]
        num_classes, data_name = data["num_classes"], data["name"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{where} does not fit this version of genjax: {error} unknown or missing") from None
    odd = set(training_json) ^ set(identity(TrainingOptions()))
    if odd:
        raise UserError(f"{where} does not fit this version of genjax: training: {min(odd)} unknown or missing")
    if method_name not in METHODS:
        raise unknown("method", method_name, METHODS)
    module = METHODS[method_name]
    config = cli.from_json(module.Config, config_json, f"{where}: config")
    options = dataclasses.replace(TrainingOptions(), **training_json)
    other = _shapes_of_other(description["other_run"], where) if "other_run" in description else None
    examples = Examples(event_shape, num_classes, scaling.levels)
    method = module.build(config, optimizer_of(options), examples, *accepts(module, other))
    conditional = bool(getattr(config, "class_conditional", False))
    return Run(method_name, method, data_name, event_shape, num_classes, conditional, options.binarise, scaling)


def _number_or_row(value: Any) -> Any:
    return np.asarray(value, np.float32) if isinstance(value, list) else float(value)


def ema_template(run: Run) -> Params:
    """Shapes and dtypes of the parameters that sampling uses, without computing them."""
    label: Any = jax.ShapeDtypeStruct((2,), jnp.int32) if run.num_classes else None
    data: Any = jax.ShapeDtypeStruct((2, *run.event_shape), jnp.float32)
    batch = Batch(data, label)
    return jax.eval_shape(run.method.init, jax.random.key(0), batch).ema
