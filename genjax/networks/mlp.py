"""A multilayer perceptron for points, told the time by Fourier features."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from genjax.networks.embeddings import check_inputs
from genjax.networks.layers import compute_dtype, dense, parameter_dtype, table
from genjax.networks.net import from_linen
from genjax.typing import Array, Net


def fourier(t: Array, features: int) -> Array:
    """`[t, cos(pi k t / 2), sin(pi k t / 2)]` for k = 1 .. features / 2, with t `[B]`: `[B, features + 1]`.

    A clock of [0, 1] is half of the longest period, so its two ends are told apart.
    """
    t = t.astype(parameter_dtype(t.dtype))
    frequencies = jnp.asarray(np.pi / 2 * np.arange(1, features // 2 + 1), t.dtype)
    angles = t[:, None] * frequencies[None, :]
    return jnp.concatenate([t[:, None], jnp.cos(angles), jnp.sin(angles)], axis=-1)


class MLP(nn.Module):
    """`x [B, D]`, `t [B]`, `label [B]` to `[B, D]`; the condition is added before the first activation."""

    features: tuple[int, ...]
    activation: Callable[[Array], Array]
    time_features: int
    num_classes: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, t: Array, label: Array | None = None) -> Array:
        """The prediction, of the shape and dtype of `x`."""
        if x.ndim != 2:
            raise ValueError(f"x has shape {x.shape}; an mlp takes points [B, D]")
        check_inputs(x, t, label, self.num_classes)
        dtype = compute_dtype(self.dtype, x)
        inputs = [x.astype(dtype), fourier(t, self.time_features).astype(dtype)]
        hidden = dense(self.features[0], dtype, "in")(jnp.concatenate(inputs, axis=-1))
        if label is not None:
            hidden = hidden + table(self.num_classes + 1, self.features[0], dtype, "label")(label)
        for index, features in enumerate(self.features[1:]):
            hidden = dense(features, dtype, f"hidden_{index}")(self.activation(hidden))
        return dense(x.shape[-1], dtype, "out")(self.activation(hidden)).astype(x.dtype)


def mlp(
    features: tuple[int, ...] = (256, 256, 256, 256),
    *,
    activation: Callable[[Array], Array] = jax.nn.gelu,
    time_features: int = 16,
    num_classes: int = 0,
    dtype: jnp.dtype = jnp.float32,
) -> Net:
    """A multilayer perceptron `(x [B, D], t [B][, label [B]]) -> [B, D]`.

    Args:
        features: width of each hidden layer.
        activation: between layers.
        time_features: Fourier features of the time, an even number.
        num_classes: labels 0 .. K - 1, and K for none; 0 for a network without labels.
        dtype: of the computation; parameters are float32 or wider, the result has the dtype of x.

    Raises:
        ValueError: there is no hidden layer, or `time_features` is odd; from `init` and `apply`, inputs that do not
            fit.
    """
    if not features:
        raise ValueError("an mlp needs at least one hidden layer; got features ()")
    if time_features % 2:
        raise ValueError(f"time_features is {time_features}; expected an even number")
    return from_linen(MLP(tuple(features), activation, time_features, num_classes, dtype))
