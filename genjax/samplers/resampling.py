"""Resampling: draws of one density made into draws of another by the ratio of the two.

Sampling-importance resampling: of K draws of q, keep one, draw k with probability `w_k / sum_j w_j`, `w = p / q`. What is
kept has density p as K grows, with an error of order 1/K, and is exactly a draw of q for K = 1 (Rubin 1988; Smith & Gelfand
1992). A critic whose logit is `log p/q` knows the ratio of data to fakes (Azadi et al. 2018, arXiv 1810.06758; Turner et al.
2018, 1811.11357).
"""

import jax
import jax.numpy as jnp

from genjax.arrays import as_example_keys
from genjax.typing import Array, Key


def importance_resample(key: Key, candidates: Array, log_weights: Array) -> Array:
    """One of every row of candidates, drawn in proportion to its weight: `[B, ...]`.

    Args:
        key: one key, or one key a row `[B]`.
        candidates: `[B, K, ...]`, K draws of q in each row.
        log_weights: `[B, K]`, `log p/q` of each, up to a constant of the row.

    >>> candidates = jnp.asarray([[1.0, 2.0, 3.0]])
    >>> importance_resample(jax.random.key(0), candidates, jnp.log(jnp.asarray([[0.0, 1.0, 0.0]]))).tolist()
    [2.0]
    """
    chosen = jax.vmap(jax.random.categorical)(as_example_keys(key, len(candidates)), log_weights)
    return candidates[jnp.arange(len(candidates)), chosen]
