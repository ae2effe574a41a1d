"""Noise for the steps of a grid that is the increments of one Brownian motion: a finer grid refines the same path.

With W a Brownian motion on the grid's clock t, step k gets `z_k = (W(t_{k+1}) - W(t_k)) / sqrt |t_{k+1} - t_k|`, standard normal.
Handed to `samplers.sample` in the place of a key, it makes runs of different numbers of steps differ by their discretisation
alone: their difference is a strong error, and the mean of it needs few samples (multilevel Monte Carlo; Giles 2008).

The motion is diffrax's (Kidger 2021, arXiv 2202.02435, section 5.5: a virtual Brownian tree, of constant memory).
"""

import jax
import jax.numpy as jnp

from genjax.arrays import as_example_keys
from genjax.typing import Array, Key, Knot


def brownian_noise(key: Key, x: Array, knots: Knot, *, resolution: float = 1e-4) -> Array:
    """Standard normal noise `[steps, B, ...]` for the steps of a grid, of the shape and dtype of `x [B, ...]`.

    The same key gives increments of the same motion on every grid between the same two ends.

    Args:
        key: one key, or one an example `[B]`: row i depends on the key of example i alone.
        x: `[B, ...]`, what is sampled.
        knots: arrays `[steps + 1]`, t in order.
        resolution: in parts of the whole grid, the time below which the motion is interpolated; steps should be longer.

    Returns:
        `[steps, B, ...]`, for the argument `key` of `samplers.sample`.

    Example:
        >>> from genjax import paths, times
        >>> path = paths.linear()
        >>> grids = [paths.knots(path, times.uniform(path, n)) for n in (1, 4)]
        >>> coarse, fine = (brownian_noise(jax.random.key(0), jnp.zeros((1, 2)), grid) for grid in grids)
        >>> bool(jnp.allclose(coarse[0], fine.sum(axis=0) / 2, atol=1e-6))
        True
    """
    import diffrax

    t = (knots.t - knots.t[0]) / (knots.t[-1] - knots.t[0])
    steps = t[1:] - t[:-1]

    def of_example(key: Key) -> Array:
        motion = diffrax.VirtualBrownianTree(
            0.0, 1.0, tol=resolution, shape=jax.ShapeDtypeStruct(x.shape[1:], x.dtype), key=key
        )
        at = jax.vmap(lambda time: motion.evaluate(0.0, time))(t.astype(x.dtype))
        return at[1:] - at[:-1]

    increments = jax.vmap(of_example, out_axes=1)(as_example_keys(key, x.shape[0]))
    return increments / jnp.sqrt(steps).astype(x.dtype).reshape(-1, *(1,) * x.ndim)
