"""The Inception Score: whether a classifier is sure of each sample, and of all together finds every class."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np

from genjax.typing import Array


def inception_score(logits: Array, *, splits: int = 10) -> tuple[Array, Array]:
    """Mean and standard deviation over splits of `exp(1/n sum_i KL(p(y | x_i) || p(y)))`, both `[]`.

    `p(y)` is the mean of `p(y | x_i)` over the n samples of a split, so that the logarithm of the score is the mutual
    information of class and sample. The score is between 1, where the samples do not tell the class, and the lesser of n and
    K, the latter where each is of one class for sure and the classes are equally frequent. It does not see whether the
    samples of a class differ, nor any real data. The deviation divides by the number of splits.

    Args:
        logits: `[N, K]` of a classifier, unnormalised.
        splits: consecutive, of N / splits rows each, up to rounding, between 1 and N; rows in an order that tells the
            class must be shuffled before. Published scores are of 10 splits of 5,000.

    Raises:
        ValueError: other shapes, or another number of splits.

    Source: Salimans et al. 2016 (arXiv 1606.03498), section 4.

    Example:
        >>> mean, deviation = inception_score(100.0 * jnp.eye(4), splits=1)
        >>> round(float(mean), 4), float(deviation)
        (4.0, 0.0)
    """
    if logits.ndim != 2 or not 1 <= splits <= len(logits):
        raise ValueError(f"{splits} splits of logits {logits.shape}: expected [N, K] and between 1 and N splits")
    bounds = [i * len(logits) // splits for i in range(splits + 1)]
    log_probabilities = jax.nn.log_softmax(logits, axis=-1)
    scores = jnp.stack([_score(log_probabilities[start:end]) for start, end in pairwise(bounds)])
    return jnp.mean(scores), jnp.std(scores)


def _score(log_probabilities: Array) -> Array:
    """Of one split, `[n, K]`."""
    log_marginal = jax.nn.logsumexp(log_probabilities, axis=0, keepdims=True) - np.log(len(log_probabilities))
    terms = jnp.exp(log_probabilities) * (log_probabilities - log_marginal)
    # A probability of 0 counts 0, but 0 times its logarithm is NaN.
    return jnp.exp(jnp.mean(jnp.sum(jnp.where(jnp.isneginf(log_probabilities), 0, terms), axis=-1)))
