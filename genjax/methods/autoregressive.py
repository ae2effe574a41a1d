"""What autoregressive models share: draws one dimension at a time.

x_d ~ p(x_d | x_1, ..., x_{d-1})
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from genjax.arrays import fold_each
from genjax.typing import Array, Key


def one_by_one(outputs_of: Callable[[Array, Array], Array], key: Key, start: Array, *, draw: Callable) -> Array:
    """Fill the dimensions of `start [B, D]` in order, each drawn given those before it; one `lax.scan`.

    Args:
        outputs_of: `(x [B, D], d) -> [B, k]`, what a network says of dimension d, whatever stands in x from d on.
        key: one an example, `[B]`; dimension d folds in d.
        start: `[B, D]`; its values do not matter.
        draw: `(key, outputs [k]) -> scalar`, of one example.
    """

    def fill(x: Array, dimension: Array) -> tuple[Array, None]:
        value = jax.vmap(draw)(fold_each(key, dimension), outputs_of(x, dimension))
        return jax.lax.dynamic_update_slice_in_dim(x, value[:, None], dimension, axis=1), None

    return jax.lax.scan(fill, start, jnp.arange(start.shape[1]))[0]
