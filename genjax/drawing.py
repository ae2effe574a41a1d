"""Drawing many samples from any method: compiled once, in batches, the same examples whatever the batch size."""

import math
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genjax.arrays import example_keys
from genjax.errors import UserError
from genjax.training.data import Dataset, Scaling, load
from genjax.training.sharding import over_devices
from genjax.typing import Array, Key, Method, Params

CompiledSample = Callable[..., Any]


MOST_CLASS_COLUMNS = 16
"""Images of more classes than these are not laid out in a column a class."""


def batch_size_for(event_shape: tuple[int, ...], num: int) -> int:
    """How many examples of `event_shape` to draw in one call: few large ones, many small ones."""
    return min(num, max(16, min(4096, 2**13 // math.prod(event_shape))))


def jitted_sample(method: Method, num: int, **options: Any) -> Any:
    """`f(params, keys [num], label [num] | None, guidance | None)`: `method.sample` with these options under one jit.

    Its compiler options are those for arguments of `sharding.over_devices`. The guidance is an argument, so that another scale does
    not recompile.
    """

    def sample(params: Params, keys: Key, label: Array | None, guidance: Array | None) -> Any:
        given = {"label": label, "guidance": guidance}
        given = {name: value for name, value in given.items() if value is not None}
        return method.sample(params, keys, keys.shape[0], **options, **given)

    chosen = method.compiler_options if method.sampling_options is None else method.sampling_options(num)
    return jax.jit(sample, compiler_options=chosen)


def draw(
    sample: CompiledSample,
    params: Params,
    key: Key,
    num: int,
    *,
    batch_size: int,
    label: np.ndarray | None = None,
    guidance: float | None = None,
    progress: bool = False,
) -> Any:
    """`num` samples `[num, ...]` in model units, `batch_size` a call, over all devices; example i depends on (key, i) alone.

    Args:
        sample: from `jitted_sample`, or that compiled ahead of time for `sharding.over_devices` of `batch_size` examples.
        params: what it takes.
        key: one key.
        num: how many.
        batch_size: of a call; the last one is filled up and cut.
        label: `[num]` or None.
        guidance: for the labels; None for the plain conditional model.
        progress: show a bar.
    """
    scale = None if guidance is None else jnp.float32(guidance)
    params, _ = over_devices(params, example_keys(key, batch_size))

    def part(start: int) -> Any:
        part_label = None
        if label is not None:
            part_label = jnp.asarray(np.resize(label[start : start + batch_size], batch_size), jnp.int32)
        return sample(*over_devices(params, example_keys(key, batch_size, start), part_label), scale)

    return in_batches(part, num, batch_size=batch_size, progress=progress)


def in_batches(
    part: Callable[[int], Any], num: int, *, batch_size: int, progress: bool = False, doing: str = "sampling"
) -> Any:
    """The rows of `part(0)`, `part(batch_size)`, ..., each of `batch_size` rows, joined and cut to `num`: NumPy.

    Args:
        part: from the index of its first row, `[batch_size, ...]`, or a tuple of such arrays.
        num: how many rows.
        batch_size: of a call.
        progress: show a bar.
        doing: what the bar says.
    """
    parts = []
    with _ticking_bar(num, progress, doing) as bar:
        for start in range(0, num, batch_size):
            parts.append(jax.device_get(part(start)))
            bar.update(min(batch_size, num - start))
    return jax.tree.map(lambda *rows: np.concatenate(rows)[:num], *parts)


@contextmanager
def _ticking_bar(num: int, visible: bool, doing: str) -> Iterator[Any]:
    """A progress bar whose clock moves also while a long call is under way."""
    from tqdm import tqdm

    with tqdm(total=num, disable=not visible, dynamic_ncols=True, unit="example", desc=doing) as bar:
        done = threading.Event()

        def tick() -> None:
            while not done.wait(1.0):
                bar.refresh()

        ticker = threading.Thread(target=tick, daemon=True)
        ticker.start()
        try:
            yield bar
        finally:
            done.set()
            ticker.join()


def picture(
    path: Path,
    samples: np.ndarray,
    scaling: Scaling,
    dataset: Dataset | None,
    *,
    columns: int | None = None,
    row_labels: list[str] | None = None,
) -> None:
    """Write the figure that suits samples in model units, beside the held-out data where there are some."""
    from genjax import plots

    values = np.asarray(scaling.to_data(samples))
    if values.ndim == 4:
        plots.image_grid(path, values[:256], value_range=value_range(scaling), columns=columns, row_labels=row_labels)
        return
    plots.samples_figure(
        path,
        values,
        data=None if dataset is None else np.asarray(dataset.test.data),
        log_density=None if dataset is None else dataset.log_density,
    )


def value_range(scaling: Scaling) -> tuple[float, float]:
    """Least and greatest value of images in data units."""
    if scaling.levels:
        return 0.0, float(scaling.levels - 1)
    shift, scale = float(np.asarray(scaling.shift)), float(np.asarray(scaling.scale))
    return shift - scale, shift + scale


def reference_data(name: str) -> Dataset | None:
    """The data set to show beside samples; None, with a note, where it is gone."""
    try:
        return load(name)
    except UserError:
        print(f"note: no data set {name} here, so the picture shows the model alone", file=sys.stderr)
        return None
