"""Sampling given a part or a linear measurement of the data, by a model that was trained without it.

`inpainting` replaces what is known, at its noise level, after every step. `given_measurement` adds to the score that of
`y = A data + s z`, for which p(data | x_t) is taken as a Gaussian of the mean and the covariance that the denoiser says:

    grad log p(y | x_t) = J^T A^T (s^2 I + A V A^T)^-1 (y - A data(x_t)),     V = sigma^2 / alpha J,   J = d data(x_t) / dx_t

which is exact for Gaussian data (Rozet et al. 2024, arXiv 2405.13712, section 4); no covariance is ever formed.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from genjax.arrays import expand, fold_each, normal, sum_events
from genjax.samplers.guidance import with_score
from genjax.samplers.loop import Memory, Sampler
from genjax.typing import Array, Denoiser, Key, Knot, Prediction

_KNOWN = 11
"""Folded into a step's keys for the noise of what is known."""

LinearMap = Callable[[Array], Array]
"""`A(data [B, ...]) -> [B, ...]`, linear in each example."""


def inpainting(sampler: Sampler, known: Array, mask: Array) -> Sampler:
    """`sampler`, after each step of which what is known is put in its place, with the noise of its level.

    With `restarting(ddpm())` on a grid of `times.restart` it is RePaint, whose passes back and forth let the rest follow.

    Args:
        sampler: any, with or without memory.
        known: `[B, ...]` or one example, in model units.
        mask: true where it is known, of the shape of `known`.

    Raises:
        ValueError: when sampling, noise handed in instead of keys, of which a step needs two.

    Source: Song et al. 2021 (arXiv 2011.13456), appendix I.2; Lugmayr et al. 2022 (arXiv 2201.09865), algorithm 1.
    """

    def step(denoise: Denoiser, key: Key, x: Array, memory: Memory, now: Knot, then: Knot) -> tuple[Array, Memory]:
        if jnp.issubdtype(key.dtype, jnp.floating):
            raise ValueError("inpainting draws more than once a step; give it a key instead of noise")
        x, memory = sampler.step(denoise, key, x, memory, now, then)
        noise = normal(fold_each(key, jnp.uint32(_KNOWN)), x.shape, x.dtype)
        noisy = then.alpha * jnp.broadcast_to(known, x.shape) + then.sigma * noise
        return jnp.where(jnp.broadcast_to(mask, x.shape), noisy, x), memory

    return Sampler(sampler.init, step)


def given_measurement(
    denoise: Denoiser, measurement: Array, forward: LinearMap, *, noise_std: float, iterations: int = 5
) -> Denoiser:
    """The denoiser of p(data | measurement), exact where the data are Gaussian.

    Args:
        denoise: of p(data); it is differentiated once a call.
        measurement: `[B, ...]`, `forward(data) + noise_std z`, in model units.
        forward: the linear map A.
        noise_std: s, above 0.
        iterations: of conjugate gradients, each a product with J^T; as many as the measurement has numbers are exact.

    Raises:
        ValueError: noise_std is not above 0, or iterations below 1.
    """
    if noise_std <= 0 or iterations < 1:
        raise ValueError(f"noise_std is {noise_std}, iterations {iterations}; expected above 0 and at least 1")

    def given(x: Array, knot: Knot) -> Prediction:
        def data_of(x: Array) -> tuple[Array, Array]:
            pair = denoise(x, knot)
            return pair.data, pair.noise

        data, pull_back, noise = jax.vjp(data_of, x, has_aux=True)
        transposed = jax.linear_transpose(forward, data)
        spread = knot.sigma**2 / jnp.where(knot.alpha == 0, 1.0, knot.alpha)

        def towards_x(residual: Array) -> Array:
            return pull_back(transposed(residual)[0])[0]

        def covariance(residual: Array) -> Array:
            return noise_std**2 * residual + forward(spread * towards_x(residual))

        weighted = conjugate_gradients(covariance, measurement - forward(data), iterations=iterations)
        return with_score(Prediction(data, noise), towards_x(weighted), knot)

    return given


def conjugate_gradients(matrix: LinearMap, right: Array, *, iterations: int) -> Array:
    """The solution of `matrix(solution) = right [B, ...]` of each example, symmetric and positive, after so many steps from 0."""

    def ratio(numerator: Array, denominator: Array) -> Array:
        return jnp.where(denominator > 0, numerator / jnp.where(denominator > 0, denominator, 1.0), 0.0)

    def iterate(carry: tuple[Array, Array, Array, Array], _: None) -> tuple[tuple[Array, Array, Array, Array], None]:
        solution, residual, direction, size = carry
        image = matrix(direction)
        step = expand(ratio(size, sum_events(direction * image)), right)
        solution, residual = solution + step * direction, residual - step * image
        new_size = sum_events(residual**2)
        return (solution, residual, residual + expand(ratio(new_size, size), right) * direction, new_size), None

    start = jnp.zeros_like(right), right, right, sum_events(right**2)
    return jax.lax.scan(iterate, start, None, length=iterations)[0][0]
