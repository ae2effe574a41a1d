"""Guidance: combinators from models to a model, so that neither losses nor samplers know of conditions.

Convention of the scale: `uncond + scale * (cond - uncond)`; 1 is the plain conditional model, 0 the unconditional one.
"""

from collections.abc import Callable

import jax.numpy as jnp

from genjax.arrays import expand
from genjax.typing import Array, Model

LabelledModel = Callable[[Array, Array, Array], Array]
"""`f(x [B, ...], t [B], label [B]) -> prediction [B, ...]`."""


def classifier_free(model: LabelledModel, label: Array, null_label: Array, scale: Array) -> Model:
    """Classifier-free guidance: `uncond + scale * (cond - uncond)` by one call on a doubled batch.

    Ho & Salimans 2022 (arXiv 2207.12598), whose weight w is `scale - 1`. Valid for every prediction kind, all of
    which are affine in one another at given (x, t). The combination is done in the dtype of x.

    Args:
        model: predicts with labels; was trained with labels dropped to the null label.
        label: `[B]` int32.
        null_label: the label that stands for none, a scalar.
        scale: a scalar, or `[B]`.
    """

    def guided(x: Array, t: Array) -> Array:
        labels = jnp.concatenate([label, jnp.full_like(label, null_label)])
        both = model(jnp.concatenate([x, x]), jnp.concatenate([t, t]), labels).astype(x.dtype)
        cond, uncond = jnp.split(both, 2)
        return uncond + expand(jnp.asarray(scale, x.dtype), x) * (cond - uncond)

    return guided
