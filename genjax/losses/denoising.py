"""Denoising losses: any path, any prediction of the network, any quantity in which the error is taken.

With `x_t = alpha data + sigma noise`, a network that predicts one kind (data, noise, velocity, v, score, edm) and
an error taken in another,

    denoising_error = weighting(t) * mean over event axes of (predicted - true)^2     [B]

Given x_t every error is a multiple of the data's, `error = k(t) * error of the data` (`predictions.error_scale`), so
one weighting of the data error is `w(t) / k(t)^2` on another. The weightings below are stated on the data error:

    uniform             1 on whichever error is taken
    snr                 SNR                         = uniform on the noise
    truncated_snr       max(SNR, 1)                 Salimans & Ho 2022, arXiv 2202.00512, section 4
    min_snr(gamma)      min(SNR, gamma)             Hang et al. 2023, arXiv 2303.09556, eq. 8
    edm(data_std)       SNR + 1 / data_std^2        Karras et al. 2022, arXiv 2206.00364, table 1
    likelihood          |dSNR/dt| / 2               Kingma et al. 2021, arXiv 2107.00630, eq. 17 (t uniform: nats / dim)
    sigmoid(bias)       likelihood * sigmoid(bias - log SNR)
                        Kingma & Gao 2023, arXiv 2303.00848; Hoogeboom et al. 2024, arXiv 2410.19324
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from genjax import paths, predictions, times
from genjax.arrays import mean_events
from genjax.predictions import Kind
from genjax.times import TimeDensity
from genjax.typing import Array, Key, Model, Path, Prediction

Weighting = Callable[[Path, Array, Kind], Array]
"""`weighting(path, t [B], error kind) -> [B]`, the factor on the squared error of that kind."""


def uniform(path: Path, t: Array, error: Kind) -> Array:
    """1 on whichever error is taken."""
    return jnp.ones_like(t)


def _snr(path: Path, t: Array) -> Array:
    return (path.alpha(t) / path.sigma(t)) ** 2


def _on_data(weight: Callable[[Path, Array], Array]) -> Weighting:
    def weighting(path: Path, t: Array, error: Kind) -> Array:
        return weight(path, t) / predictions.error_scale(error, path, t) ** 2

    return weighting


def snr(path: Path, t: Array, error: Kind) -> Array:
    """SNR on the data error, which is 1 on the noise error. Infinite on the data where sigma = 0."""
    return _on_data(_snr)(path, t, error)


def truncated_snr(path: Path, t: Array, error: Kind) -> Array:
    """max(SNR, 1) on the data error: keeps a signal where alpha = 0."""
    return _on_data(lambda path, t: jnp.maximum(_snr(path, t), 1.0))(path, t, error)


def min_snr(gamma: float = 5.0) -> Weighting:
    """min(SNR, gamma) on the data error: min(SNR, gamma) / SNR on the noise, / (SNR + 1) on v (VP paths)."""
    return _on_data(lambda path, t: jnp.minimum(_snr(path, t), gamma))


def edm(data_std: float = 0.5) -> Weighting:
    """SNR + 1 / data_std^2 on the data error, which is 1 on EDM's network output for alpha = 1."""
    return _on_data(lambda path, t: _snr(path, t) + 1 / data_std**2)


def likelihood(path: Path, t: Array, error: Kind) -> Array:
    """|dSNR/dt| / 2 on the data error, g^2 / 2 on the score: nats per dimension, t uniform on a clock of length 1."""
    return _on_data(_half_snr_rate)(path, t, error)


def _half_snr_rate(path: Path, t: Array) -> Array:
    return 0.5 * jnp.abs(jax.jvp(lambda t: _snr(path, t), (t,), (jnp.ones_like(t),))[1])


def sigmoid(bias: float = 0.0) -> Weighting:
    """`likelihood` times sigmoid(bias - log SNR): less weight on the finest details; bias in nats."""

    def on_data(path: Path, t: Array) -> Array:
        return _half_snr_rate(path, t) * jax.nn.sigmoid(bias - paths.log_snr(path, t))

    return _on_data(on_data)


def denoising_error(
    model: Model,
    data: Array,
    noise: Array,
    t: Array,
    *,
    path: Path,
    predict: Kind,
    error: Kind | None = None,
    weighting: Weighting = uniform,
) -> Array:
    """The weighted squared error of `model` at given data, noise and times.

    `weighting(t) * mean over event axes of (predicted - true)^2`, both sides in the kind `error`.

    Args:
        model: `f(x [B, ...], t [B])`, predicts `predict`.
        data: `[B, ...]`.
        noise: `[B, ...]`, standard normal (or a draw of any source).
        t: `[B]`, on the clock of `path`.
        path: the probability path.
        predict: what the network predicts.
        error: the quantity whose error is taken; default `predict`.
        weighting: factor on the squared error of that kind.

    Returns:
        `[B]`, averaged over event axes.

    Raises:
        ValueError: data and noise or the prediction differ in shape, or t is not `[B]`.
    """
    if data.shape != noise.shape or t.shape != data.shape[:1]:
        raise ValueError(f"data {data.shape} and noise {noise.shape} must agree and t {t.shape} be [B]")
    error = predict if error is None else error
    x_t = paths.interpolate(path, data, noise, t)
    prediction = model(x_t, t)
    if prediction.shape != data.shape:
        raise ValueError(f"the model returned shape {prediction.shape} for x of shape {data.shape}; they must agree")
    if error is not predict:
        prediction = predictions.convert(prediction, x_t, t, path=path, source=predict, target=error)
    target = predictions.from_pair(error, path, Prediction(data, noise), t)
    return weighting(path, t, error) * mean_events(jnp.square(prediction - target))


def denoising_loss(
    model: Model,
    key: Key,
    data: Array,
    *,
    path: Path,
    predict: Kind,
    error: Kind | None = None,
    weighting: Weighting = uniform,
    density: TimeDensity | None = None,
    noise: Array | None = None,
) -> Array:
    """`denoising_error` at drawn times and standard normal noise: `[B]`.

    Args:
        model: `f(x [B, ...], t [B])`, predicts `predict`.
        key: a key.
        data: `[B, ...]`.
        path: the probability path.
        predict: what the network predicts.
        error: the quantity whose error is taken; default `predict`.
        weighting: factor on the squared error of that kind.
        density: draws the times; default uniform on the path's clock.
        noise: what each example is mixed with, `[B, ...]`; default drawn, independent and standard normal.
    """
    time_key, noise_key = jax.random.split(key)
    density = times.uniform_density(path) if density is None else density
    t = density(time_key, data.shape[0]).astype(data.dtype)
    if noise is None:
        noise = jax.random.normal(noise_key, data.shape, data.dtype)
    return denoising_error(model, data, noise, t, path=path, predict=predict, error=error, weighting=weighting)


def simple_loss(model: Model, key: Key, data: Array, *, path: Path, num_train_steps: int) -> Array:
    """`L_simple = E ||noise - model(x_t, t)||^2`, averaged over event axes, t uniform on `{1, ..., T} / T`: `[B]`.

    Ho et al. 2020 (arXiv 2006.11239), eq. 14, for a network that predicts the noise on `paths.ddpm(betas)`.
    """
    density = times.discrete_density(num_train_steps)
    return denoising_loss(model, key, data, path=path, predict=predictions.noise, density=density)
