"""What a network may predict, and how each kind becomes the pair (data, noise).

Every kind is a linear map of the pair: `c * prediction = a * data + b * noise`, with `(c, a, b)` given by the
path at t. With `x_t = alpha data + sigma noise` known, the pair is one 2x2 solve away:

    data  = (b x_t - sigma c prediction) / (alpha b - sigma a)
    noise = (alpha c prediction - a x_t) / (alpha b - sigma a)

    kind        prediction                                   cannot tell the pair where
    data        data                                         sigma = 0
    noise       noise                                        alpha = 0
    velocity    dx_t/dt = alpha' data + sigma' noise         alpha sigma' = sigma alpha'; never on linear and cosine
    v           alpha noise - sigma data                     never
    score       -noise / sigma                               alpha = 0 (and score itself where sigma = 0)
    edm         (sigma/s data - s alpha noise) / scale       never; s is the standard deviation of the data and
                                                             scale = sqrt(sigma^2 + s^2 alpha^2)

At such a singular end the result is inf or NaN: choose a grid that stops short of it, or a sampler that does
not call the network there. v: Salimans & Ho 2022 (arXiv 2202.00512), eq. 4 of its section 4. edm: the output F of
Karras et al. 2022 (arXiv 2206.00364), table 1, for which `c_skip x + c_out F` is the data prediction.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from genjax import paths
from genjax.arrays import expand
from genjax.typing import Array, Denoiser, Knot, Model, Path, Prediction


class Row(NamedTuple):
    """Coefficients of `prediction_scale * prediction = data_weight * data + noise_weight * noise`, shape of t."""

    prediction_scale: Array
    data_weight: Array
    noise_weight: Array


Kind = Callable[[Path, Array], Row]


def data(path: Path, t: Array) -> Row:
    """The network predicts the data: `E[data | x_t]`. Singular where sigma = 0."""
    one = jnp.ones_like(t)
    return Row(one, one, jnp.zeros_like(t))


def noise(path: Path, t: Array) -> Row:
    """The network predicts the noise: `E[noise | x_t]`. Singular where alpha = 0."""
    one = jnp.ones_like(t)
    return Row(one, jnp.zeros_like(t), one)


def velocity(path: Path, t: Array) -> Row:
    """The network predicts `dx_t/dt = alpha' data + sigma' noise` on the path's clock."""
    d_alpha, d_sigma = paths.derivatives(path, t)
    return Row(jnp.ones_like(t), d_alpha, d_sigma)


def v(path: Path, t: Array) -> Row:
    """The network predicts `v = alpha noise - sigma data`. Nowhere singular."""
    return Row(jnp.ones_like(t), -path.sigma(t), path.alpha(t))


def score(path: Path, t: Array) -> Row:
    """The network predicts the score of the noisy marginal, `grad log p_t(x) = -E[noise | x] / sigma`."""
    return Row(-path.sigma(t), jnp.zeros_like(t), jnp.ones_like(t))


def edm(data_std: float = 0.5) -> Kind:
    """The network predicts EDM's preconditioned output F, for data of standard deviation `data_std`."""

    def row(path: Path, t: Array) -> Row:
        alpha, sigma = path.alpha(t), path.sigma(t)
        scale = jnp.sqrt(sigma**2 + (data_std * alpha) ** 2)
        return Row(scale, sigma / data_std, -data_std * alpha)

    return row


KINDS: dict[str, Kind] = {"data": data, "noise": noise, "velocity": velocity, "v": v, "score": score}


def from_pair(kind: Kind, path: Path, pair: Prediction, t: Array) -> Array:
    """The prediction of `kind` that the pair (data, noise) amounts to at `t [B]` (or a scalar): `[B, ...]`."""
    row = Row(*(expand(c, pair.data) for c in kind(path, jnp.asarray(t))))
    return (row.data_weight * pair.data + row.noise_weight * pair.noise) / row.prediction_scale


def to_pair(kind: Kind, path: Path, prediction: Array, x_t: Array, t: Array) -> Prediction:
    """The pair (data, noise) that `prediction [B, ...]` of `kind` stands for at `x_t`, `t [B]` (or a scalar)."""
    t = jnp.asarray(t)
    return _solved(kind(path, t), path.alpha(t), path.sigma(t), prediction, x_t)


def _at_knot(kind: Kind, path: Path, prediction: Array, x: Array, knot: Knot) -> Prediction:
    """`to_pair` at a knot, which holds alpha and sigma."""
    t, alpha, sigma = (value.astype(x.dtype) for value in knot)
    return _solved(kind(path, t), alpha, sigma, prediction.astype(x.dtype), x)


def _solved(row: Row, alpha: Array, sigma: Array, prediction: Array, x_t: Array) -> Prediction:
    """The 2x2 solve of the module's head: `row`, `alpha` and `sigma` are of shape `[B]` or scalars, the rest `[B, ...]`."""
    c, a, b = row
    scale = 1 / (alpha * b - sigma * a)  # a number an example, which a sampler divides before its loop
    weights = (b, sigma * c, alpha * c, a, scale)
    b, sigma_c, alpha_c, a, scale = (expand(weight, x_t) for weight in weights)
    return Prediction(scale * (b * x_t - sigma_c * prediction), scale * (alpha_c * prediction - a * x_t))


def convert(prediction: Array, x_t: Array, t: Array, *, path: Path, source: Kind, target: Kind) -> Array:
    """`prediction` of kind `source` as a prediction of kind `target`, `[B, ...]`."""
    return from_pair(target, path, to_pair(source, path, prediction, x_t, t), t)


def error_scale(kind: Kind, path: Path, t: Array) -> Array:
    """`k(t)` with `error of the prediction = k * error of the data`, at given x_t; of the shape of `t`.

    An error of the data moves the noise by `-alpha/sigma` times as much, so `k = (a - b alpha / sigma) / c`:
    1 for data, `-sqrt(SNR)` for noise. Infinite where sigma = 0 unless b = 0.
    """
    c, a, b = kind(path, jnp.asarray(t))
    return (a - jnp.where(b == 0, 0.0, b * path.alpha(t) / path.sigma(t))) / c


def denoiser(model: Model, path: Path, predict: Kind) -> Denoiser:
    """What samplers call, from a network that predicts `predict` on `path`.

    The network is called with `t [B]`; the combination is done in the dtype of x, by the alpha and sigma of the knot.
    """

    def denoise(x: Array, knot: Knot) -> Prediction:
        t = jnp.broadcast_to(knot.t, x.shape[:1]).astype(x.dtype)
        return _at_knot(predict, path, model(x, t), x, knot)

    return denoise


class WithVariance(NamedTuple):
    """The pair (data, noise) and `fraction` in [0, 1], where the variance of a step lies between its bounds; all `[B, ...]`."""

    data: Array
    noise: Array
    fraction: Array


def split_variance(output: Array) -> tuple[Array, Array]:
    """A network's output `[..., 2 C]` as a prediction `[..., C]` and the fraction `(second half + 1) / 2`, `[..., C]`.

    Source: Nichol & Dhariwal 2021 (arXiv 2102.09672), eq. 15, whose v is this fraction.
    """
    prediction, raw = jnp.split(output, 2, axis=-1)
    return prediction, (raw + 1) / 2


def denoiser_with_variance(model: Model, path: Path, predict: Kind) -> Callable[[Array, Knot], WithVariance]:
    """`denoiser` for `samplers.ddpm("learned")`, from a network that returns twice the channels (`split_variance`)."""

    def denoise(x: Array, knot: Knot) -> WithVariance:
        t = jnp.broadcast_to(knot.t, x.shape[:1]).astype(x.dtype)
        prediction, fraction = split_variance(model(x, t).astype(x.dtype))
        return WithVariance(*_at_knot(predict, path, prediction, x, knot), fraction)

    return denoise


def on_another_path(model: Model, path: Path, predict: Kind, *, new_path: Path, new_predict: Kind) -> Model:
    """The model of `new_predict` on `new_path` that a model trained on `path` to predict `predict` amounts to.

    A state of the new path at time t is one of the trained path at the time of equal alpha / sigma, but for a factor; and
    the pair (data, noise) is the same. So one model samples, and teaches, on any path (Karras et al. 2022, arXiv 2206.00364,
    section 2: schedule and scaling are free; Kingma & Gao 2023, arXiv 2303.00848, section 3).

    Args:
        model: `f(x [B, ...], t [B]) -> [B, ...]`.
        path: on which it was trained.
        predict: what it predicts.
        new_path: on which the result is called. Times beyond the ratios alpha / sigma of `path` meet its ends.
        new_predict: what the result predicts.

    Example:
        >>> on_edm = on_another_path(lambda x, t: 0 * x, paths.cosine(), v, new_path=paths.edm(), new_predict=velocity)
        >>> velocities = on_edm(jnp.ones((1, 2)), jnp.full(1, 2.0))  # alpha noise = sigma data, data + 2 noise = 1
        >>> [round(float(value), 4) for value in velocities[0]]
        [0.4, 0.4]
    """

    def changed(x: Array, t: Array) -> Array:
        trained_t = paths.time_of_log_snr(path, paths.log_snr(new_path, t))
        size, trained_size = (jnp.hypot(p.alpha(at), p.sigma(at)) for p, at in ((new_path, t), (path, trained_t)))
        trained_x = expand(trained_size / size, x) * x
        pair = to_pair(predict, path, model(trained_x, trained_t).astype(x.dtype), trained_x, trained_t)
        return from_pair(new_predict, new_path, pair, t)

    return changed
