"""Labels of class-conditional models: read from a batch, given to a sampler, or drawn.

Everywhere `num_classes` is 0 for a model without labels.
"""

import jax
import jax.numpy as jnp

from genjax.arrays import fold_each
from genjax.errors import UsageError
from genjax.typing import Array, Batch, Key

_LABEL = 2**31 - 1
"""Folded into an example's key for its class where none is asked for; dimensions and steps fold in 0, 1, 2, ..."""


def check_config(class_conditional: bool, num_classes: int) -> None:
    """Refuse (UsageError) a class-conditional model of unlabelled data."""
    if class_conditional and not num_classes:
        raise UsageError("--class-conditional needs labels, which these data do not have")


def of_batch(batch: Batch, num_classes: int) -> Array | None:
    """The labels `[B]` that a model of so many classes learns from; UsageError where the batch has none."""
    if num_classes and batch.label is None:
        raise UsageError("the data have no labels: a class-conditional model needs some")
    return batch.label if num_classes else None


def check(label: Array | None, num_classes: int) -> None:
    """Refuse (UsageError) labels given to a model without classes."""
    if label is not None and not num_classes:
        raise UsageError("this model has no classes: it was trained without --class-conditional")


def given_or_drawn(label: Array | None, keys: Key, num_classes: int) -> Array | None:
    """`label [B]`, or where it is None a class for each key `[B]`, all equally likely; None without classes."""
    check(label, num_classes)
    if label is not None or not num_classes:
        return label
    pick = jax.vmap(lambda key: jax.random.randint(key, (), 0, num_classes))
    return pick(fold_each(keys, jnp.uint32(_LABEL)))
