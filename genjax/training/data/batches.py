"""Which examples a training step sees: a function of (seed, step), so that there is no iterator to save."""

import functools

import numpy as np


@functools.lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    key = np.array([seed, epoch], np.uint64)
    order = np.arange(num_examples, dtype=np.int32)
    np.random.Generator(np.random.Philox(key=key)).shuffle(order)
    order.flags.writeable = False
    return order


def batch_indices(seed: int, step: int, num_steps: int, batch_size: int, num_examples: int) -> np.ndarray:
    """Example indices of the steps `step .. step + num_steps - 1`, int32 `[num_steps, batch_size]`.

    The stream of examples is one random permutation of all of them after another: entry j of step i is at
    position `p = i * batch_size + j`, which is offset `p % N` of the permutation of epoch `p // N`. So every
    epoch visits every example exactly once, batches straddle epochs, `batch_size` may exceed N, and any range
    of steps can be asked for alone. The permutations are NumPy's (Philox with key `(seed, epoch)`): the same
    on every machine, but not promised to be so in another feature release of NumPy.

    Args:
        seed: 0 <= seed < 2**64.
        step: first step, >= 0.
        num_steps: how many steps, >= 0.
        batch_size: examples a step, >= 1.
        num_examples: N, from 1 to 2**31 - 1.

    Raises:
        ValueError: an argument out of its range.

    >>> batch_indices(0, 0, 4, 2, 4).shape
    (4, 2)
    >>> sorted(batch_indices(0, 0, 2, 2, 4).ravel().tolist())
    [0, 1, 2, 3]
    >>> bool((batch_indices(0, 0, 4, 2, 4)[2:] == batch_indices(0, 2, 2, 2, 4)).all())
    True
    """
    seed, step, num_steps = int(seed), int(step), int(num_steps)
    batch_size, num_examples = int(batch_size), int(num_examples)
    in_range = 0 <= seed < 2**64 and min(step, num_steps) >= 0 and batch_size >= 1 and 1 <= num_examples < 2**31
    if not in_range:
        raise ValueError(
            f"batch_indices: seed {seed}, step {step}, num_steps {num_steps}, batch_size {batch_size} or "
            f"num_examples {num_examples} is out of range"
        )
    indices = np.empty(num_steps * batch_size, np.int32)
    position, filled = step * batch_size, 0
    while filled < len(indices):
        epoch, offset = divmod(position + filled, num_examples)
        visited = _permutation(seed, epoch, num_examples)[offset : offset + len(indices) - filled]
        indices[filled : filled + len(visited)] = visited
        filled += len(visited)
    return indices.reshape(num_steps, batch_size)
