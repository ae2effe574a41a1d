"""Vectors for times, labels and positions: what a network is told besides `x`.

All are sinusoids of Vaswani et al. 2017 (arXiv 1706.03762, section 3.5), or learned tables.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from genjax.networks.layers import dense, parameter_dtype, table
from genjax.typing import Array


def sinusoidal(t: Array, features: int, *, scale: float = 1000.0, max_period: float = 10_000.0) -> Array:
    """Cosines and sines of a time at geometrically spaced frequencies.

    `[cos(scale t w_0), ..., cos(scale t w_{n-1}), sin(scale t w_0), ..., sin(scale t w_{n-1})]` with
    `n = features / 2` and `w_k = max_period ** (-k / n)`: from 1 down to almost `1 / max_period`
    radians per unit of `scale * t`.

    Args:
        t: times on the path's own clock, any shape `[...]`.
        features: an even number of entries.
        scale: multiplies `t`. 1000 gives a clock of [0, 1] the range of the 1000 steps that
            `max_period` was chosen for.
        max_period: longest wavelength over the shortest.

    Returns:
        `[..., features]`, at least float32.

    Raises:
        ValueError: `features` is odd.

    >>> sinusoidal(jnp.zeros(2), 4).tolist()
    [[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]]
    """
    if features % 2:
        raise ValueError(f"a sinusoidal embedding needs an even number of features; got {features}")
    num = features // 2
    t = jnp.asarray(t)
    dtype = parameter_dtype(t.dtype)
    frequencies = jnp.asarray(scale * max_period ** (-np.arange(num) / num), dtype)
    angles = jnp.expand_dims(t.astype(dtype), -1) * frequencies.reshape((1,) * t.ndim + (num,))
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def positions_2d(height: int, width: int, features: int) -> np.ndarray:
    """Fixed sinusoidal embeddings of the cells of a grid, row by row.

    The first half of an entry encodes the row as `sinusoidal(row, features / 2, scale=1)`, the second
    half the column.

    Args:
        height: rows of the grid.
        width: columns of the grid.
        features: a multiple of 4.

    Returns:
        `[height * width, features]`, float64.

    Raises:
        ValueError: `features` is not a multiple of 4.

    Source: Peebles & Xie 2023 (arXiv 2212.09748), following He et al. 2022 (arXiv 2111.06377).
    """
    if features % 4:
        raise ValueError(f"2-D positions need a multiple of 4 features; got {features}")
    num = features // 4
    frequencies = 10_000.0 ** (-np.arange(num) / num)

    def encode(index: np.ndarray) -> np.ndarray:
        angles = index[:, None] * frequencies
        return np.concatenate([np.cos(angles), np.sin(angles)], axis=-1)

    rows, columns = np.divmod(np.arange(height * width), width)
    return np.concatenate([encode(rows), encode(columns)], axis=-1)


def check_inputs(x: Array, t: Array, label: Array | None, num_classes: int) -> None:
    """Checks that `t` and `label` hold one entry an example, and that there are labels exactly if classes.

    Raises:
        ValueError: a shape is not `[B]`, labels are not integers, a label is given to an unconditional
            network (`num_classes = 0`) or missing for a conditional one.
    """
    batch = x.shape[:1]
    if t.shape != batch:
        raise ValueError(f"t has shape {t.shape}; expected one time an example: {batch}")
    if num_classes == 0:
        if label is not None:
            raise ValueError("labels were given to an unconditional network; build it with num_classes=K")
        return
    if label is None:
        raise ValueError(f"a network of {num_classes} classes needs labels; pass {num_classes} where there is none")
    if label.shape != batch or not jnp.issubdtype(label.dtype, jnp.integer):
        raise ValueError(f"label is {label.dtype}{list(label.shape)}; expected int32{list(batch)}")


class ConditionEmbedding(nn.Module):
    """One vector for a time and, with `num_classes > 0`, a label: an MLP of `sinusoidal(t)` plus a row of a table.

    The table has `num_classes + 1` rows; the last one, index `num_classes`, is learned for "no label"
    and is what classifier-free guidance evaluates the unconditional model with (Ho & Salimans 2022,
    arXiv 2207.12598). An index outside the table gives NaN.

    Call with `t [B]` and `label [B]` or None; returns `[B, features]` in `dtype`.
    """

    features: int
    frequency_features: int
    time_scale: float
    num_classes: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, t: Array, label: Array | None) -> Array:
        """The embedding of times and labels."""
        waves = sinusoidal(t, self.frequency_features, scale=self.time_scale).astype(self.dtype)
        hidden = nn.silu(dense(self.features, self.dtype, "time_in")(waves))
        embedding = dense(self.features, self.dtype, "time_out")(hidden)
        if label is not None:
            rows = table(self.num_classes + 1, self.features, self.dtype, "label", std=self.features**-0.5)
            embedding = embedding + rows(label)
        return embedding
