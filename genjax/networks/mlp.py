"""A multilayer perceptron for points, told the time by Fourier features."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from genjax.networks.embeddings import check_inputs, parameter_dtype
from genjax.networks.initialisation import normal
from genjax.networks.net import from_linen
from genjax.typing import Array, Net


def fourier(t: Array, features: int) -> Array:
    """`[t, cos(pi k t / 2), sin(pi k t / 2)]` for k = 1 .. features / 2, with t `[B]`: `[B, features + 1]`.

    A clock of [0, 1] is half of the longest period, so its two ends are told apart.
    """
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
        check_inputs(x, t, label, self.num_classes)
        param_dtype = parameter_dtype(x.dtype)
        compute = jnp.promote_types(self.dtype, x.dtype) if self.dtype == jnp.float32 else self.dtype

        def dense(features: int, name: str) -> nn.Dense:
            return nn.Dense(features, name=name, dtype=compute, param_dtype=param_dtype, kernel_init=normal())

        inputs = jnp.concatenate([x, fourier(t.astype(x.dtype), self.time_features)], axis=-1).astype(compute)
        hidden = dense(self.features[0], "in")(inputs)
        if label is not None:
            table = nn.Embed(
                self.num_classes + 1,
                self.features[0],
                name="label",
                dtype=compute,
                param_dtype=param_dtype,
                embedding_init=normal(1.0),
            )
            hidden = hidden + table(label)
        for index, features in enumerate(self.features[1:]):
            hidden = dense(features, f"hidden_{index}")(self.activation(hidden))
        return dense(x.shape[-1], "out")(self.activation(hidden)).astype(x.dtype)


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
        dtype: of the computation; parameters and result keep the dtype of x.
    """
    if not features:
        raise ValueError("an mlp needs at least one hidden layer; got features ()")
    return from_linen(MLP(tuple(features), activation, time_features, num_classes, dtype))
