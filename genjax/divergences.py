"""How far one distribution is from another: closed forms for Gaussians, Monte Carlo for the rest, in nats.

    KL(q || p) = E_q[log q - log p]
    JS(p, q)   = KL(p || m) / 2 + KL(q || m) / 2,   m = (p + q) / 2
    N(m, diag s^2) || N(m', diag s'^2):  1/2 sum (s^2 + (m - m')^2) / s'^2 - 1 + log s'^2 - log s^2

A discriminator with logits l bounds JS from below, `log 2 + E_p[log sigmoid(l)] / 2 + E_q[log sigmoid(-l)] / 2`,
with equality for the optimal one, `l = log p - log q` (Goodfellow et al. 2014, arXiv 1406.2661, proposition 1 and
theorem 1). Variances come as their logarithms, which no network output makes invalid.
"""

import jax
import jax.numpy as jnp

from genjax.arrays import softplus, sum_events
from genjax.typing import Array


def kl_standard_normal(mean: Array, log_variance: Array) -> Array:
    """`KL(N(mean, diag exp(log_variance)) || N(0, I))`, nats, summed over event axes: `[B]`.

    Args:
        mean: `[B, ...]`.
        log_variance: `[B, ...]`.

    Source: Kingma & Welling 2014 (arXiv 1312.6114), appendix B.

    >>> kl_standard_normal(jnp.ones((1, 3)), jnp.zeros((1, 3))).tolist()
    [1.5]
    """
    return sum_events(kl_standard_normal_terms(mean, log_variance))


def kl_standard_normal_terms(mean: Array, log_variance: Array) -> Array:
    """The summands of `kl_standard_normal`, one a latent dimension: `[B, ...]`, each at least 0."""
    return 0.5 * (jnp.square(mean) + jnp.expm1(log_variance) - log_variance)


def kl_diagonal(mean: Array, log_variance: Array, other_mean: Array, other_log_variance: Array) -> Array:
    """`KL` from the first diagonal Gaussian to the second, nats, summed over event axes: `[B]`; all are `[B, ...]`."""
    ratio = log_variance - other_log_variance
    distance = jnp.square(mean - other_mean) * jnp.exp(-other_log_variance)
    return sum_events(0.5 * (distance + jnp.expm1(ratio) - ratio))


def kl_full(mean: Array, covariance: Array, other_mean: Array, other_covariance: Array) -> Array:
    """`KL` from the first Gaussian to the second, nats: `[B]`, through Cholesky factors.

    Args:
        mean: `[B, D]`.
        covariance: `[B, D, D]`, positive definite (else NaN).
        other_mean: `[B, D]`.
        other_covariance: `[B, D, D]`, positive definite (else NaN).
    """
    own, other = jnp.linalg.cholesky(covariance), jnp.linalg.cholesky(other_covariance)
    solve = jax.vmap(lambda factor, columns: jax.scipy.linalg.solve_triangular(factor, columns, lower=True))
    trace = jnp.sum(jnp.square(solve(other, own)), axis=(1, 2))
    distance = jnp.sum(jnp.square(solve(other, mean - other_mean)), axis=1)
    log_dets = [jnp.sum(jnp.log(jnp.diagonal(factor, axis1=1, axis2=2)), axis=1) for factor in (own, other)]
    return 0.5 * (trace + distance - mean.shape[1]) + log_dets[1] - log_dets[0]


def kl_monte_carlo(log_density: Array, other_log_density: Array) -> Array:
    """The estimate `mean of log q(z_i) - log p(z_i)` of `KL(q || p)` from draws `z_i` of q: `[B]`, nats.

    Unbiased, of either sign; its standard error is the standard deviation of the differences over sqrt(k).

    Args:
        log_density: `log q(z_i)`, `[k, B]`.
        other_log_density: `log p(z_i)` of the same draws, `[k, B]`.
    """
    return jnp.mean(log_density - other_log_density, axis=0)


def gaussian_log_density(x: Array, mean: Array, log_variance: Array) -> Array:
    """`log N(x; mean, diag exp(log_variance))`, nats, summed over event axes: `[B]`; all are `[B, ...]`."""
    residual = jnp.square(x - mean) * jnp.exp(-log_variance)
    return -0.5 * sum_events(residual + log_variance + jnp.log(2 * jnp.pi))


def gaussian_entropy(log_variance: Array) -> Array:
    """Entropy of `N(., diag exp(log_variance))`, nats, summed over event axes: `[B]`."""
    return 0.5 * sum_events(log_variance + 1 + jnp.log(2 * jnp.pi))


def optimal_discriminator(log_density: Array, other_log_density: Array) -> Array:
    """Logits of the best discriminator of p (label 1) from q (label 0), `log p(x) - log q(x)`, of the inputs' shape.

    Goodfellow et al. 2014 (arXiv 1406.2661), proposition 1: `D = p / (p + q)`.
    """
    return log_density - other_log_density


def jensen_shannon_bound(real_logits: Array, fake_logits: Array) -> Array:
    """`log 2 + mean log sigmoid(real) / 2 + mean log sigmoid(-fake) / 2`: a scalar, nats.

    In expectation at most JS(p, q), and JS with the logits of `optimal_discriminator`. JS lies in [0, log 2].

    Args:
        real_logits: of draws of p, any shape.
        fake_logits: of draws of q, any shape.

    >>> round(float(jensen_shannon_bound(jnp.full(4, 30.0), jnp.full(4, -30.0))), 6)
    0.693147
    """
    return jnp.log(2.0) - 0.5 * jnp.mean(softplus(-real_logits)) - 0.5 * jnp.mean(softplus(fake_logits))
