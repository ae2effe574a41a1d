"""Conditional flow matching: regress the velocity of a path between a source and the data.

    L_CFM = E || model(x_t, t) - dx_t/dt ||^2,    x_t = alpha(t) data + sigma(t) noise

On `linear()`: `x_t = (1 - t) noise + t data`, target `data - noise` (Lipman et al. 2023, arXiv 2210.02747, eq. 9
with sigma_min = 0; Liu et al. 2023, arXiv 2209.03003, eq. 1; Tong et al. 2024, arXiv 2302.00482, eq. 8). Its
minimiser is the marginal velocity E[dx_t/dt | x_t], which carries the source to the data.
"""

import jax

from genjax import predictions, times
from genjax.losses.denoising import denoising_error
from genjax.paths import linear
from genjax.times import TimeDensity
from genjax.typing import Array, Key, Model, Path


def flow_matching_error(model: Model, data: Array, noise: Array, t: Array, *, path: Path | None = None) -> Array:
    """`mean over event axes of (model(x_t, t) - dx_t/dt)^2` at given pairs and times: `[B]`.

    Args:
        model: `f(x [B, ...], t [B])`, predicts the velocity on the path's clock.
        data: `[B, ...]`.
        noise: `[B, ...]`: standard normal, or a draw of any source coupled with the data.
        t: `[B]`.
        path: default `linear()`.

    Example:
        >>> import jax.numpy as jnp
        >>> data, noise, t = jnp.ones((4, 2)), jnp.zeros((4, 2)), jnp.full(4, 0.5)
        >>> flow_matching_error(lambda x, t: jnp.ones_like(x), data, noise, t).tolist()
        [0.0, 0.0, 0.0, 0.0]
    """
    path = linear() if path is None else path
    return denoising_error(model, data, noise, t, path=path, predict=predictions.velocity)


def conditional_flow_matching_loss(
    model: Model,
    key: Key,
    data: Array,
    *,
    noise: Array | None = None,
    path: Path | None = None,
    density: TimeDensity | None = None,
) -> Array:
    """`flow_matching_error` at drawn times: L_CFM per example, `[B]`, averaged over event axes.

    Args:
        model: `f(x [B, ...], t [B])`, predicts the velocity.
        key: a key.
        data: `[B, ...]`.
        noise: `[B, ...]`, a draw of the source; default standard normal.
        path: default `linear()`.
        density: draws the times; default uniform on the path's clock.
    """
    path = linear() if path is None else path
    density = times.uniform_density(path) if density is None else density
    time_key, noise_key = jax.random.split(key)
    t = density(time_key, data.shape[0]).astype(data.dtype)
    if noise is None:
        noise = jax.random.normal(noise_key, data.shape, data.dtype)
    return flow_matching_error(model, data, noise, t, path=path)
