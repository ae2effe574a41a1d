"""Mixtures of Gaussians: every quantity of a Gaussian probability path in closed form.

Data `= sum_k w_k N(m_k, S_k)`. For `x = alpha data + sigma noise` the marginal is again a mixture,

    p(x) = sum_k w_k N(x; alpha m_k, C_k),   C_k = alpha^2 S_k + sigma^2 I.

With the responsibilities r_k(x) and `u_k = C_k^-1 (x - alpha m_k)`:

    E[data | x]  = sum_k r_k (m_k + alpha S_k u_k)          E[noise | x] = sigma sum_k r_k u_k
    score        = -sum_k r_k u_k                           velocity     = alpha' E[data | x] + sigma' E[noise | x]
    Cov[data | x] = sum_k r_k (P_k + (d_k - d)(d_k - d)^T)
                   P_k = S_k - alpha^2 S_k C_k^-1 S_k,  d_k = m_k + alpha S_k u_k,  d = E[data | x]

Everything is computed in the eigenbasis of S_k, so nothing is inverted and no end of a path is singular when the
S_k are positive definite. Points are vectors `[B, D]`; alpha and sigma are scalars or `[B]`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from genjax import paths, predictions
from genjax.arrays import normal
from genjax.typing import Array, Denoiser, Key, Knot, Model, Path, Prediction


class Mixture(NamedTuple):
    """K Gaussians in D dimensions: log weights `[K]`, means `[K, D]`, and covariances by their eigenbases."""

    log_weights: Array
    means: Array
    eigenvalues: Array  # [K, D]
    eigenvectors: Array  # [K, D, D], columns


def mixture(weights: ArrayLike, means: ArrayLike, covariances: ArrayLike) -> Mixture:
    """The mixture with these weights `[K]`, means `[K, D]` and covariances `[K, D, D]`, or `[K]` times identity.

    Raises:
        ValueError: shapes that do not fit, weights that do not sum to 1, a covariance that is not symmetric
            or has a negative eigenvalue.
    """
    weights, means, covariances = (np.asarray(value, np.float64) for value in (weights, means, covariances))
    if means.ndim != 2 or weights.shape != means.shape[:1]:
        raise ValueError(f"weights {weights.shape} and means {means.shape} must be [K] and [K, D]")
    components, dimension = means.shape
    if covariances.shape == (components,):
        covariances = covariances[:, None, None] * np.eye(dimension)
    if covariances.shape != (components, dimension, dimension):
        raise ValueError(f"covariances {covariances.shape} must be [K] or [K, D, D] for means {means.shape}")
    if not (np.all(weights >= 0) and abs(weights.sum() - 1) <= 1e-6):
        raise ValueError(f"weights must be at least 0 and sum to 1; their sum is {weights.sum():.6g}")
    if not np.allclose(covariances, covariances.swapaxes(1, 2)):
        raise ValueError("covariances must be symmetric")
    eigenvalues, eigenvectors = np.linalg.eigh(covariances)
    if np.any(eigenvalues < -1e-9):
        raise ValueError(f"covariances must be positive semi-definite; least eigenvalue {eigenvalues.min():.3g}")
    with np.errstate(divide="ignore"):
        log_weights = np.log(weights / weights.sum())
    dtype = jnp.result_type(float)
    return Mixture(
        jnp.asarray(log_weights, dtype),
        jnp.asarray(means, dtype),
        jnp.asarray(np.maximum(eigenvalues, 0), dtype),
        jnp.asarray(eigenvectors, dtype),
    )


def sample(mix: Mixture, key: Key, num: int) -> Array:
    """`num` exact draws `[num, D]`."""
    component_key, normal_key = jax.random.split(key)
    component = jax.random.categorical(component_key, mix.log_weights, shape=(num,))
    z = normal(normal_key, (num, mix.means.shape[1]), mix.means.dtype)
    scaled = z * jnp.sqrt(mix.eigenvalues)[component]
    return mix.means[component] + jnp.einsum("bij,bj->bi", mix.eigenvectors[component], scaled)


def given_measurement(mix: Mixture, operator: ArrayLike, measurement: ArrayLike, noise_std: float) -> Mixture:
    """The posterior mixture of the data given `measurement = operator data + noise_std z`, exact.

    Args:
        mix: of the data, D-dimensional.
        operator: `[M, D]`.
        measurement: `[M]`.
        noise_std: above 0.

    Source: Bishop 2006 (Pattern Recognition and Machine Learning), eqs 2.113-2.117, for each component.
    """
    operator, measurement = np.asarray(operator, np.float64), np.asarray(measurement, np.float64)
    axes, values, means = (np.asarray(x, np.float64) for x in (mix.eigenvectors, mix.eigenvalues, mix.means))
    covariances = np.einsum("kij,kj,klj->kil", axes, values, axes)
    of_measurement = operator @ covariances @ operator.T + noise_std**2 * np.eye(len(measurement))
    gain = np.linalg.solve(of_measurement, operator @ covariances).transpose(0, 2, 1)
    residual = measurement - means @ operator.T
    exponent = np.einsum("km,km->k", residual, np.linalg.solve(of_measurement, residual[..., None])[..., 0])
    log_weights = np.asarray(mix.log_weights, np.float64) - 0.5 * (exponent + np.linalg.slogdet(of_measurement)[1])
    weights = np.exp(log_weights - log_weights.max())
    posterior = covariances - gain @ operator @ covariances
    symmetric = (posterior + posterior.transpose(0, 2, 1)) / 2
    centres = means + np.einsum("kdm,km->kd", gain, residual)
    return mixture(weights / weights.sum(), centres, symmetric)


class _Components(NamedTuple):
    """Per example and component, in the eigenbasis of the component."""

    log_joint: Array  # [B, K]: log w_k + log N(x; alpha m_k, C_k)
    whitened: Array  # [B, K, D]: V_k^T (x - alpha m_k) / eigenvalues of C_k
    variances: Array  # [B, K, D]: eigenvalues of C_k
    alpha: Array  # [B, 1, 1]
    sigma: Array  # [B, 1, 1]


def _components(mix: Mixture, x: Array, alpha: Array | float, sigma: Array | float) -> _Components:
    alpha = jnp.broadcast_to(alpha, x.shape[:1])[:, None, None]
    sigma = jnp.broadcast_to(sigma, x.shape[:1])[:, None, None]
    variances = alpha**2 * mix.eigenvalues[None] + sigma**2
    centred = x[:, None, :] - alpha * mix.means[None]
    rotated = jnp.einsum("kij,bki->bkj", mix.eigenvectors, centred, precision="highest")
    whitened = rotated / variances
    log_joint = mix.log_weights[None] - 0.5 * jnp.sum(rotated * whitened + jnp.log(2 * jnp.pi * variances), axis=-1)
    return _Components(log_joint, whitened, variances, alpha, sigma)


def log_density(mix: Mixture, x: Array, *, alpha: Array | float = 1.0, sigma: Array | float = 0.0) -> Array:
    """`log p(x)` of `alpha data + sigma noise`, `[B]`, nats; by default of the data themselves."""
    return jax.nn.logsumexp(_components(mix, x, alpha, sigma).log_joint, axis=-1)


def _expectation(mix: Mixture, parts: _Components) -> Prediction:
    responsibilities = jax.nn.softmax(parts.log_joint, axis=-1)[:, :, None]

    def rotate_back(value: Array) -> Array:
        return jnp.einsum("kij,bkj->bki", mix.eigenvectors, value, precision="highest")

    data = mix.means[None] + rotate_back(parts.alpha * mix.eigenvalues[None] * parts.whitened)
    noise = rotate_back(parts.sigma * parts.whitened)
    return Prediction(jnp.sum(responsibilities * data, axis=1), jnp.sum(responsibilities * noise, axis=1))


def denoise(mix: Mixture, x: Array, alpha: Array, sigma: Array) -> Prediction:
    """`(E[data | x], E[noise | x])`, both `[B, D]`, for `x = alpha data + sigma noise`."""
    return _expectation(mix, _components(mix, x, alpha, sigma))


def score(mix: Mixture, x: Array, *, alpha: Array | float = 1.0, sigma: Array | float = 0.0) -> Array:
    """`grad_x log p(x)` of `alpha data + sigma noise`, `[B, D]`."""
    parts = _components(mix, x, alpha, sigma)
    responsibilities = jax.nn.softmax(parts.log_joint, axis=-1)
    return -jnp.einsum("bk,kij,bkj->bi", responsibilities, mix.eigenvectors, parts.whitened, precision="highest")


def posterior_covariance(mix: Mixture, x: Array, alpha: Array, sigma: Array) -> Array:
    """`Cov[data | x]`, `[B, D, D]`: within components plus between them."""
    parts = _components(mix, x, alpha, sigma)
    responsibilities = jax.nn.softmax(parts.log_joint, axis=-1)
    within = mix.eigenvalues[None] * parts.sigma**2 / parts.variances
    shifts = parts.alpha * mix.eigenvalues[None] * parts.whitened
    centres = mix.means[None] + jnp.einsum("kij,bkj->bki", mix.eigenvectors, shifts, precision="highest")
    deviations = centres - jnp.einsum("bk,bkj->bj", responsibilities, centres, precision="highest")[:, None]
    return jnp.einsum(
        "bk,kij,bkj,klj->bil", responsibilities, mix.eigenvectors, within, mix.eigenvectors, precision="highest"
    ) + jnp.einsum("bk,bki,bkj->bij", responsibilities, deviations, deviations, precision="highest")


def velocity(mix: Mixture, x: Array, t: Array, *, path: Path) -> Array:
    """The marginal velocity `E[dx_t/dt | x_t = x]`, `[B, D]`, on the path's clock, `t [B]` or a scalar."""
    pair = denoise(mix, x, path.alpha(t), path.sigma(t))
    return paths.velocity(path, pair.data, pair.noise, t)


def denoiser(mix: Mixture) -> Denoiser:
    """The exact denoiser, on whatever path the knots come from."""

    def exact(x: Array, knot: Knot) -> Prediction:
        return denoise(mix, x, knot.alpha, knot.sigma)

    return exact


def model(mix: Mixture, path: Path, predict: predictions.Kind) -> Model:
    """The exact network `f(x, t)` that predicts `predict` on `path`: what training on the mixture converges to."""

    def exact(x: Array, t: Array) -> Array:
        return predictions.from_pair(predict, path, denoise(mix, x, path.alpha(t), path.sigma(t)), t)

    return exact
