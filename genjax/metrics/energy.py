"""The kinetic energy of ways: how much further and less evenly a flow moves than it has to.

    E(x) = integral |dx/dt|^2 dt  >=  |x(end) - x(start)|^2 / |t_end - t_start|

with equality for the straight way at constant speed. Over all flows from q to p on a clock of length 1 the least mean is
the squared distance `W2^2(q, p)` (Benamou & Brenier 2000, doi 10.1007/s002110050002), so that

    | E[E(x)] - W2^2(q, p) | / W2^2(q, p)

tells how far a flow is from optimal transport: the normalised path energy of Tong et al. 2024 (arXiv 2302.00482).
"""

import jax
import jax.numpy as jnp

from genjax.arrays import sum_events
from genjax.typing import Array


def path_energy(states: Array, t: Array) -> Array:
    """The energy of each way: `[B]`, squared units of x over units of t, at least float32.

    `sum_k |x_{k+1} - x_k|^2 / |t_{k+1} - t_k|`: that of the ways straight between the states, which Euler's are; of
    other ways a lower bound.

    Args:
        states: `[steps + 1, B, ...]`, as `samplers.sample(..., trace=True)` returns them.
        t: `[steps + 1]`, strictly monotonic.

    Raises:
        ValueError: another number of times than of states, or fewer than two.

    Example:
        >>> states = jnp.asarray([[[0.0, 0.0]], [[3.0, 4.0]]])
        >>> path_energy(states, jnp.asarray([0.0, 0.5])).tolist()
        [50.0]
    """
    if t.shape != states.shape[:1] or len(t) < 2:
        raise ValueError(f"t {t.shape} must hold a time for each of the states {states.shape}, at least two")
    lengths = jnp.abs(jnp.diff(t))
    moved = jax.vmap(sum_events)(jnp.diff(states, axis=0) ** 2)
    return jnp.sum(moved / lengths[:, None], axis=0)
