"""Quality and cost of trained image models on MNIST, in one table.

    python -m benchmarks.images RUN_DIR [RUN_DIR ...] --data-dir DIR [--table latents]

A classifier is trained on the training images first. Each run then draws 2,000 images by its defaults, classes in turn where
it has any; told are the Frechet distance of the classifier's 64 features to those of 8,000 test images (the floor is that of the
other 2,000, every fifth), the share of images that the classifier gives the class that was asked for, and the time of
a sample in batches of 64, alternating between the runs. Writes a table of `benchmarks/README.md`: of methods, or of one network on
pixels and on the codes of an autoencoder.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from benchmarks import report, timing
from genjax import runs
from genjax.arrays import example_keys
from genjax.drawing import draw, jitted_sample
from genjax.errors import UsageError
from genjax.methods.network_options import NetworkOptions
from genjax.metrics.frechet import frechet_distance
from genjax.networks.autoencoder import image_encoder
from genjax.training import data, loop
from genjax.training.checkpoint import Checkpoints
from genjax.training.run_dir import read_config
from genjax.training.sharding import over_devices
from genjax.training.steps import adamw, from_loss, new_state
from genjax.typing import Method

NUM, BATCH, FEATURES = 2_000, 64, 64


@dataclasses.dataclass(frozen=True)
class Options:
    """Image models side by side."""

    runs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN_DIR ...")]
    """directories that train.py wrote, of runs on mnist"""
    data_dir: str | None = None
    """where the files of mnist are"""
    table: Literal["images", "latents"] = "images"
    """which table to write"""


def classifier(dataset: Any) -> tuple[Any, Any]:
    """`(features(x), logits(x))` of images in model units, trained for two epochs."""
    encoder = image_encoder(dataset.examples.event_shape, FEATURES, base=16)

    def features(params: Any, x: Any) -> Any:
        return jax.nn.relu(encoder.apply(params["encoder"], x))

    def logits(params: Any, x: Any) -> Any:
        return features(params, x) @ params["head"]

    def loss(params: Any, key: Any, batch: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(logits(params, batch.data), batch.label).mean(), {}

    steps = 2 * len(dataset.train.data) // 128
    optimizer = adamw(1e-3, steps)

    def init(key: Any, batch: Any) -> Any:
        params = {
            "encoder": encoder.init(key, batch.data),
            "head": 0.1 * jax.random.normal(key, (FEATURES, dataset.num_classes)),
        }
        return new_state(key, params, optimizer.init(params))

    method = Method(init, from_loss(loss, optimizer), lambda *_: None)
    state = loop.fit(method, dataset, 0, steps=steps, batch_size=128, steps_per_dispatch=1)
    return jax.jit(lambda x: features(state.params, x)), jax.jit(lambda x: logits(state.params, x))


def in_parts(function: Any, images: np.ndarray) -> np.ndarray:
    """`function` of 500 images at a time."""
    return np.concatenate([np.asarray(function(jnp.asarray(part))) for part in np.split(images, len(images) // 500)])


def network_of(config: dict[str, Any]) -> str:
    """In a few words; empty where a method has a network of its own kind."""
    options = config.get("network") or config.get("codes", {}).get("network")
    return str(NetworkOptions(**options)) if options else ""


def main() -> None:
    """Measure and write the table."""
    options = tyro.cli(Options, description=__doc__)
    dataset = data.load("mnist", data_dir=options.data_dir)
    models = []
    for directory in options.runs:
        run = runs.restore(read_config(directory), directory)
        if run.data_name != "mnist":
            raise UsageError(f"{directory} is a run on {run.data_name}, not on mnist")
        params = Checkpoints(Path(directory) / "checkpoints").restore_ema(runs.ema_template(run))
        models.append((Path(directory).name, run, params, jitted_sample(run.method, BATCH)))
    features, logits = classifier(dataset)
    test = np.asarray(dataset.scaling.to_model(dataset.test.data))
    accuracy = (in_parts(logits, test).argmax(axis=1) == dataset.test.label).mean()
    print(f"the classifier is right on {100 * accuracy:.2f} % of the test images", flush=True)
    every_fifth = np.arange(len(test)) % 5 == 0  # the test images are in the order of two groups of writers
    of_test = in_parts(features, test)
    held_out, reference = of_test[every_fifth], of_test[~every_fifth]
    floor = float(frechet_distance(jnp.asarray(held_out), jnp.asarray(reference)))
    rows = [["test images", "", "", "", f"{floor:.2f}", f"{100 * accuracy:.1f} %"]]
    one_batch, label = example_keys(jax.random.key(1), BATCH), jnp.arange(BATCH, dtype=jnp.int32) % dataset.num_classes
    calls = [
        lambda run=run, params=params, sample=sample: sample(
            *over_devices(params, one_batch, label if run.class_conditional else None), None
        )
        for _, run, params, sample in models
    ]
    seconds = timing.alternate(calls, rounds=5, warmup=1)
    for directory, (name, run, params, sample), taken in zip(options.runs, models, seconds, strict=True):
        labels = np.arange(NUM, dtype=np.int32) % dataset.num_classes if run.class_conditional else None
        images = np.asarray(draw(sample, params, jax.random.key(0), NUM, batch_size=BATCH, label=labels))
        images = np.asarray(dataset.scaling.to_model(np.round(np.asarray(run.scaling.to_data(images)))))
        distance = float(frechet_distance(jnp.asarray(in_parts(features, images)), jnp.asarray(reference)))
        right = "" if labels is None else f"{100 * (in_parts(logits, images).argmax(axis=1) == labels).mean():.1f} %"
        per_sample = 1e3 * timing.summary(taken).median / BATCH
        calls_made = run.method.network_calls(**({} if labels is None else {"label": label}))
        rows.append(
            [
                name,
                network_of(read_config(directory)["config"]),
                str(calls_made),
                f"{per_sample:.2f}",
                f"{distance:.2f}",
                right,
            ]
        )
        print(rows[-1], flush=True)
    header = ["run", "network", "calls", "ms a sample", "Frechet distance of features", "of the class asked for"]
    report.write_table(options.table, header, rows)


if __name__ == "__main__":
    main()
