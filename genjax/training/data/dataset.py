"""What a data set is to the rest of genjax: examples in data units, and the map to model units.

Data units are those of the source (pixel values 0..255, coordinates); models train and sample in model units,

    x = (data - shift) / scale,

of about unit size. Which shift and scale: `integer_scaling` for images of integers, `range_scaling` for
images of floats, `standardisation` for points. Densities follow by the change of variables
`log p_data(v) = log p_model(x) - sum log scale`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from genjax.errors import UsageError
from genjax.typing import Array, Batch, Examples, Key

SPLIT_SEED = 20
"""Seed of the permutation that chooses the held-out examples (`hold_out`)."""

_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)


class Scaling(NamedTuple):
    """The affine map between data units and model units: `x = (data - shift) / scale`.

    `shift` and `scale` are floats or one value per feature `[D]` (float32). `levels` is 0 for continuous data
    and L for integer data 0 .. L - 1. A record to close over, not to pass through `jit`.

    >>> scaling = integer_scaling(256)
    >>> scaling.to_model(np.array([[0, 255]], np.uint8)).tolist()
    [[-0.99609375, 0.99609375]]
    >>> scaling.to_data(np.array([[-1.2, 0.5]])).tolist()
    [[0.0, 192.0]]
    """

    shift: float | np.ndarray
    scale: float | np.ndarray
    levels: int

    def to_model(self, data: Array | np.ndarray, key: Key | None = None) -> Array:
        """Model units of `data [..., D]` or `[..., H, W, C]`; float32, same shape.

        With a key, integer data are dequantised: `data + u - 1/2`, u uniform on [0, 1) and fresh for each
        key, so that a model's mean log-density of the noisy data is a lower bound of its log-probability of
        the integers (Theis, van den Oord & Bethge 2015, "A note on the evaluation of generative models",
        arXiv 1511.01844, section 3.1). Continuous data never get noise. `to_data` undoes both; with noise,
        exactly but for about one value in 10^5 (at 256 levels), where float32 rounds to `data + 1/2`.
        """
        values = jnp.asarray(data).astype(jnp.float32)
        if key is not None and self.levels:
            values = values + jax.random.uniform(key, values.shape, jnp.float32) - 0.5
        return (values - _per_feature(self.shift, values)) / _per_feature(self.scale, values)

    def to_data(self, x: Array | np.ndarray) -> Array:
        """Data units of model units `x`; float32. Integer data are rounded and clipped to 0 .. levels - 1."""
        values = jnp.asarray(x).astype(jnp.float32)
        data = values * _per_feature(self.scale, values) + _per_feature(self.shift, values)
        return jnp.clip(jnp.round(data), 0, self.levels - 1) if self.levels else data


def _per_feature(value: float | np.ndarray, like: Array) -> Array:
    values = jnp.asarray(value, jnp.float32)
    return values.reshape((1,) * (like.ndim - values.ndim) + values.shape) if values.ndim else values


class Dataset(NamedTuple):
    """Training and held-out examples in data units, as NumPy arrays, and what is known about them.

    `Batch.data` is `[N, D]` float32 for points and `[N, H, W, C]` uint8 or float32 for images; `Batch.label`
    is `[N]` int32 or None. `num_classes` is 0 without labels. `log_density` maps points `[B, D]` in data
    units to the true log-density `[B]` in nats, where that is finite and known in closed form, else None.
    """

    name: str
    train: Batch
    test: Batch
    scaling: Scaling
    num_classes: int
    log_density: Callable[[Array], Array] | None

    @property
    def examples(self) -> Examples:
        """What a method is told of these data."""
        return Examples(self.train.data.shape[1:], self.num_classes, self.scaling.levels)


def host_batch(data: np.ndarray, label: np.ndarray | None) -> Batch:
    """A `Batch` whose arrays stay in NumPy."""
    return Batch(cast(Array, data), cast(Array | None, label))


def integer_scaling(levels: int) -> Scaling:
    """Integers 0 .. L - 1 to (-1, 1): `(v - (L - 1) / 2) / (L / 2)`, which keeps `v + u - 1/2` in [-1, 1]."""
    return Scaling(shift=(levels - 1) / 2, scale=levels / 2, levels=levels)


def range_scaling(images: np.ndarray) -> Scaling:
    """One shift and one scale that map the least and the greatest value of `images` to -1 and 1.

    Images of one value everywhere keep scale 1.
    """
    low, high = float(images.min()), float(images.max())
    half_range = (high - low) / 2
    return Scaling((low + high) / 2, half_range if half_range >= _SMALLEST_SCALE else 1.0, levels=0)


def standardisation(points: np.ndarray) -> Scaling:
    """Mean 0 and standard deviation 1 for each feature of `points [N, D]`; a constant one keeps scale 1."""
    mean = points.mean(axis=0, dtype=np.float64)
    deviation = points.std(axis=0, dtype=np.float64)
    constant = (points.min(axis=0) == points.max(axis=0)) | (deviation < _SMALLEST_SCALE)
    return Scaling(mean.astype(np.float32), np.where(constant, 1, deviation).astype(np.float32), levels=0)


def hold_out(data: np.ndarray, label: np.ndarray | None, num_test: int | None = None) -> tuple[Batch, Batch]:
    """`(train, test)`: a fixed choice of held-out examples, both parts in their original order.

    Args:
        data: `[N, ...]`, N >= 2.
        label: `[N]` or None.
        num_test: how many to hold out; by default a tenth, at least 1 and at most 10,000.

    Returns:
        The first `num_test` entries of `numpy.random.default_rng(SPLIT_SEED).permutation(N)` are held out.
    """
    if num_test is None:
        num_test = min(max(len(data) // 10, 1), 10_000)
    order = np.random.default_rng(SPLIT_SEED).permutation(len(data))

    def part(indices: np.ndarray) -> Batch:
        indices = np.sort(indices)
        return host_batch(data[indices], None if label is None else label[indices])

    return part(order[num_test:]), part(order[:num_test])


def from_arrays(name: str, data: np.ndarray, label: np.ndarray | None) -> Dataset:
    """A data set of points `[N, D]` or images `[N, H, W, C]` (uint8: 256 levels), a tenth of it held out."""
    train, test = hold_out(data, label)
    train_data = np.asarray(train.data)
    if data.ndim == 2:
        scaling = standardisation(train_data)
    elif data.dtype == np.uint8:
        scaling = integer_scaling(256)
    else:
        scaling = range_scaling(train_data)
    num_classes = 0 if label is None else int(label.max()) + 1
    return Dataset(name, train, test, scaling, num_classes, log_density=None)


def binarised(dataset: Dataset) -> Dataset:
    """The same images in two levels: integers v of L levels become 1 where `v >= L / 2`, else 0.

    Raises:
        UsageError: points, or images of floats.
    """
    levels = dataset.scaling.levels
    if not levels:
        kind = "images of floats" if dataset.examples.are_images else "points"
        raise UsageError(f"--binarise is for images of integer levels, such as digits and mnist; these data are {kind}")

    def threshold(batch: Batch) -> Batch:
        return host_batch((2 * np.asarray(batch.data, np.int32) >= levels).astype(np.uint8), cast(Any, batch.label))

    return dataset._replace(train=threshold(dataset.train), test=threshold(dataset.test), scaling=integer_scaling(2))
