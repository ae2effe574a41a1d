"""A run as JSON, and the method that its JSON describes: what `config.json` holds beyond versions."""

import dataclasses
import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from genjax import cli
from genjax.errors import UserError, unknown
from genjax.methods import METHODS
from genjax.training.data import Dataset, Scaling
from genjax.training.options import TrainingOptions, identity
from genjax.training.steps import adamw
from genjax.typing import Batch, Examples, Method, Params


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


def describe(method_name: str, config: Any, options: TrainingOptions, dataset: Dataset) -> dict[str, Any]:
    """The JSON of a run: its method's config, its training and its data, every default resolved."""
    scaling = dataset.scaling
    return {
        "method": method_name,
        "config": dataclasses.asdict(config),
        "training": identity(options),
        "data": {
            "name": dataset.name,
            "event_shape": list(dataset.train.data.shape[1:]),
            "num_classes": dataset.num_classes,
            "num_train": len(dataset.train.data),
            "crc32": f"{_crc32(dataset):08x}",
            "shift": np.asarray(scaling.shift).tolist(),
            "scale": np.asarray(scaling.scale).tolist(),
            "levels": scaling.levels,
        },
    }


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
    method = module.build(config, optimizer_of(options), Examples(event_shape, num_classes, scaling.levels))
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
