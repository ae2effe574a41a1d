"""What the exponential integrators share: their variable, and the integrals of polynomials against its exponential."""

import jax.numpy as jnp
import numpy as np

from genjax.typing import Array, Knot


def log_ratio(knots: Knot) -> Array:
    """`lambda = log(alpha / sigma)`, half the log SNR: -inf where alpha = 0, inf where sigma = 0; safe to differentiate."""

    def log(value: Array) -> Array:
        return jnp.where(value > 0, jnp.log(jnp.where(value > 0, value, 1.0)), -jnp.inf)

    return log(knots.alpha) - log(knots.sigma)


def exponential_moments(k: Array, count: int) -> list[Array]:
    """`J_n = integral over [0, 1] of k e^(k (u - 1)) u^n du`, for each n < count, of the shape of k, finite and of any sign.

    `J_0 = 1 - e^-k`, `J_n = 1 - (n / k) J_(n-1)`; by quadrature where k is small and that would cancel.
    """
    small = jnp.abs(k) < 1
    near, far = jnp.where(small, k, 0.5), jnp.where(small, 2.0, k)
    u, weights = (jnp.asarray(values, k.dtype).reshape((1,) * k.ndim + (-1,)) for values in gauss_legendre(10))
    density = weights * near[..., None] * jnp.exp(near[..., None] * (u - 1))
    moments, recurrence = [-jnp.expm1(-k)], -jnp.expm1(-far)
    for n in range(1, count):
        recurrence = 1 - n / far * recurrence
        moments.append(jnp.where(small, jnp.sum(density * u**n, axis=-1), recurrence))
    return moments


def gauss_legendre(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of quadrature on [0, 1], float64 `[count]`, exact for polynomials of degree below `2 count`."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return (nodes + 1) / 2, weights / 2
