"""Conditional flow matching: regress the velocity of a path between a source and the data.

    L_CFM = E || model(x_t, t) - dx_t/dt ||^2,    x_t = alpha(t) data + sigma(t) noise

On `linear()`: `x_t = (1 - t) noise + t data`, target `data - noise` (Lipman et al. 2023, arXiv 2210.02747, eq. 9
with sigma_min = 0; Liu et al. 2023, arXiv 2209.03003, eq. 1; Tong et al. 2024, arXiv 2302.00482, eq. 8). Its
minimiser is the marginal velocity E[dx_t/dt | x_t], which carries the source to the data.

Bridge matching adds fresh noise on the way between a draw of any source and its example of the data:

    x_t = alpha(t) data + sigma(t) source + spread(t) noise,    noise ~ N(0, I)
    dx_t/dt = alpha' data + sigma' source + spread' noise
            = mean' + (spread' / spread) (x_t - mean)           mean = alpha data + sigma source

`constant_spread(s)` on `linear()` is I-CFM, and OT-CFM if the pairs are `couplings.optimal`; `brownian_spread(s)` with
pairs of `couplings.entropic(2 s^2)` is SB-CFM, whose marginals are those of the Schrodinger bridge from the source to
the data with respect to a Brownian motion of variance s^2 t (Tong et al. 2024, arXiv 2302.00482). A minibatch stands
for the whole source and data there, which is exact only as it grows. Albergo et al. 2023 (arXiv 2303.08797) study
spreads and paths in general. On `linear()` the source is at t = 0 and the data are at t = 1.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from genjax import paths, predictions, times
from genjax.arrays import expand, mean_events
from genjax.couplings import Coupling
from genjax.losses.denoising import denoising_error
from genjax.paths import linear
from genjax.times import TimeDensity
from genjax.typing import Array, Key, Model, Path

Spread = Callable[[Array], Array]
"""`spread(t [B]) -> [B]`, at least 0: the standard deviation of a bridge about its mean."""


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


def constant_spread(sigma: float) -> Spread:
    """The same standard deviation `sigma` everywhere, at the ends too; 0 is plain flow matching."""
    return lambda t: jnp.full_like(t, sigma)


def brownian_spread(sigma: float) -> Spread:
    """`sigma sqrt(t (1 - t))`, that of a Brownian bridge, on a clock from 0 to 1.

    Its slope is infinite at both ends: over uniform times the loss has a mean gradient, but its own mean and the
    variance of the gradient diverge, as a logarithm of how near the times come to the ends.
    `times.uniform_density(path, start=0.001, end=0.999)` keeps away from them.
    """
    return lambda t: sigma * jnp.sqrt(t * (1 - t))


def bridge_matching_error(
    model: Model, data: Array, source: Array, noise: Array, t: Array, *, spread: Spread, path: Path | None = None
) -> Array:
    """`mean over event axes of (model(x_t, t) - dx_t/dt)^2` on a bridge, at given pairs, noise and times: `[B]`.

    Args:
        model: `f(x [B, ...], t [B])`, predicts the velocity on the path's clock.
        data: `[B, ...]`.
        source: `[B, ...]`, what each example is paired with: a draw of any distribution.
        noise: `[B, ...]`, standard normal.
        t: `[B]`.
        spread: how far bridges stray from their mean.
        path: of the mean, `alpha(t) data + sigma(t) source`; default `linear()`.

    Raises:
        ValueError: data, source, noise and the prediction differ in shape, or t is not `[B]`.

    Example:
        >>> data, source, noise, t = jnp.ones((4, 2)), jnp.zeros((4, 2)), jnp.ones((4, 2)), jnp.full(4, 0.5)
        >>> bridge_matching_error(lambda x, t: x, data, source, noise, t, spread=constant_spread(0.5)).tolist()
        [0.0, 0.0, 0.0, 0.0]
    """
    if not data.shape == source.shape == noise.shape or t.shape != data.shape[:1]:
        raise ValueError(
            f"data {data.shape}, source {source.shape} and noise {noise.shape} must agree and t {t.shape} be [B]"
        )
    path = linear() if path is None else path
    deviation, slope = jax.jvp(spread, (t,), (jnp.ones_like(t),))
    x_t = paths.interpolate(path, data, source, t) + expand(deviation, data) * noise
    prediction = model(x_t, t)
    if prediction.shape != data.shape:
        raise ValueError(f"the model returned shape {prediction.shape} for x of shape {data.shape}; they must agree")
    target = paths.velocity(path, data, source, t) + expand(slope, data) * noise
    return mean_events(jnp.square(prediction - target))


def bridge_matching_loss(
    model: Model,
    key: Key,
    data: Array,
    source: Array,
    *,
    spread: Spread,
    path: Path | None = None,
    coupling: Coupling | None = None,
    label: Array | None = None,
    density: TimeDensity | None = None,
) -> Array:
    """`bridge_matching_error` of coupled pairs at drawn noise and times: `[B]`, averaged over event axes.

    Args:
        model: `f(x [B, ...], t [B])`, predicts the velocity; labels bound in it are in the order of the data.
        key: a key.
        data: `[B, ...]`.
        source: `[B, ...]`, as many draws of any distribution.
        spread: how far bridges stray from their mean.
        path: of the mean; default `linear()`.
        coupling: pairs the draws with the data, from `genjax.couplings`; default as given.
        label: `[B]` integers, for the coupling to pair within classes.
        density: draws the times; default uniform on the path's clock.

    Example:
        >>> from genjax import couplings
        >>> data, source = jnp.asarray([[1.0], [2.0]]), jnp.asarray([[1.0], [0.0]])
        >>> model, key, spread = lambda x, t: jnp.ones_like(x), jax.random.key(0), constant_spread(0.0)
        >>> bridge_matching_loss(model, key, data, source, spread=spread, coupling=couplings.optimal).tolist()
        [0.0, 0.0]
    """
    path = linear() if path is None else path
    density = times.uniform_density(path) if density is None else density
    time_key, noise_key, coupling_key = jax.random.split(key, 3)
    if coupling is not None:
        source = source[coupling(coupling_key, source, data, label=label)]
    t = density(time_key, data.shape[0]).astype(data.dtype)
    noise = jax.random.normal(noise_key, data.shape, data.dtype)
    return bridge_matching_error(model, data, source, noise, t, spread=spread, path=path)
