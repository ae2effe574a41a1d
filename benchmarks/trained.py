"""Training as `train.py` does it with a method's own defaults, for the benchmarks of quality."""

import time
from typing import Any, NamedTuple

import jax

from genjax import runs
from genjax.methods import METHODS
from genjax.training import data, loop
from genjax.training.data import Dataset
from genjax.training.steps import adamw
from genjax.typing import Method, OtherRun, State


class Trained(NamedTuple):
    """A finished run: its method, its data, its state, and the seconds of training."""

    method: Method
    dataset: Dataset
    state: State
    seconds: float


def train(method_name: str, data_name: str, seed: int, *, config: Any = None, other: OtherRun | None = None) -> Trained:
    """Train with everything as the method and the data choose it; a config and another run may be given."""
    module: Any = METHODS[method_name]
    dataset = data.load(data_name)
    recommended = module.recommended(dataset.examples)
    optimizer = adamw(
        recommended.learning_rate,
        recommended.steps,
        warmup=min(recommended.steps // 20, 1000),
        b1=recommended.b1,
        b2=recommended.b2,
        clip_update=recommended.clip_update,
    )
    config = module.Config() if config is None else config
    method = module.build(config, optimizer, dataset.examples, *runs.accepts(module, other))
    start = time.perf_counter()
    state = loop.fit(
        method,
        dataset,
        seed,
        steps=recommended.steps,
        batch_size=recommended.batch_size,
        steps_per_dispatch=recommended.steps_per_dispatch,
    )
    jax.block_until_ready(state)
    return Trained(method, dataset, state, time.perf_counter() - start)
