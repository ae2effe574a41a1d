"""Score matching: four losses with one minimiser, and the constants by which their means differ.

Expectations are exact: sums over a fine grid of the plane, over all 2^D signs, or over draws whose first and second moments
have been made those of their distribution.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import oracles, paths, predictions
from genjax.arrays import example_keys, normal
from genjax.losses import denoising
from genjax.losses.score_matching import (
    denoising_score_matching_error,
    denoising_score_matching_loss,
    explicit_score_matching_error,
    implicit_score_matching_error,
    sliced_score_matching_error,
    sliced_score_matching_loss,
)
from genjax.vector_fields import draw_probes

pytestmark = pytest.mark.usefixtures("float64")

SIGMA = 0.6
SIGNS = np.asarray(list(itertools.product([-1.0, 1.0], repeat=2)))


def draws(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def bent_score(theta):
    """A score model that is no gradient and fits nothing; `theta [2, 2]`."""
    return lambda x: jnp.tanh(x @ theta) - 0.5 * x @ theta.T


THETAS = [draws(2, 2, seed=seed) for seed in (1, 2)]


def two_modes(dimension=2):
    means = np.array([[-1.0, 0.5], [1.2, -0.3]])[:, :dimension]
    return oracles.mixture([0.3, 0.7], means, [0.2, 0.4])


def over_signs(score, data, **options):
    """The sliced error's mean over all Rademacher directions."""
    probes = jnp.broadcast_to(SIGNS[:, None], (4, *data.shape))
    errors = jax.vmap(lambda probe: sliced_score_matching_error(score, data, probe, **options))(probes)
    return jnp.mean(errors, axis=0)


# Constants between the means


def grid(low, high, num):
    """Points `[num^2, 2]` of a square, and the area that each stands for."""
    line = np.linspace(low, high, num)
    return jnp.asarray(np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)), (line[1] - line[0]) ** 2


def test_implicit_is_explicit_less_half_the_fisher_information():
    mix = two_modes()
    points, area = grid(-6.0, 6.0, 161)

    @jax.jit
    def run(theta):
        density, target, score = (
            jnp.exp(oracles.log_density(mix, points)),
            oracles.score(mix, points),
            bent_score(theta),
        )
        implicit = implicit_score_matching_error(score, points)
        explicit = explicit_score_matching_error(score, points, target)
        return [area * density @ values for values in (implicit, explicit, -0.5 * jnp.sum(target**2, axis=1))]

    for theta in THETAS:
        implicit, explicit, expected = run(theta)
        assert expected < -0.5
        np.testing.assert_allclose(implicit - explicit, expected, atol=1e-8)


@pytest.mark.parametrize("variance_reduced", [True, False])
def test_sliced_is_implicit_in_the_mean_over_directions(variance_reduced):
    data = jnp.asarray(draws(16, 2, seed=3))

    @jax.jit
    def both(theta):
        sliced = over_signs(bent_score(theta), data, variance_reduced=variance_reduced)
        return sliced, implicit_score_matching_error(bent_score(theta), data)

    for theta in THETAS:
        np.testing.assert_allclose(*both(theta), atol=1e-12)


def test_denoising_is_explicit_at_the_noised_density_plus_a_constant():
    """Data and noise on the line, so that a grid of the plane holds the pairs."""
    mix = two_modes(1)
    pairs, area = grid(-6.5, 6.5, 261)
    data, noise = pairs[:, :1], pairs[:, 1:]

    @jax.jit
    def run(theta):
        density = area * jnp.exp(oracles.log_density(mix, data) - 0.5 * noise[:, 0] ** 2) / (2 * jnp.pi) ** 0.5
        target = oracles.score(mix, data + SIGMA * noise, sigma=SIGMA)
        score = lambda x: jnp.tanh(theta[0, 0] * x) + theta[0, 1] * x  # noqa: E731
        denoising = density @ denoising_score_matching_error(score, data, noise, sigma=SIGMA)
        explicit = density @ explicit_score_matching_error(score, data + SIGMA * noise, target)
        return denoising - explicit, 0.5 * (1 / SIGMA**2 - density @ target[:, 0] ** 2)

    for theta in THETAS:
        np.testing.assert_allclose(*run(theta), atol=1e-8)


# One minimiser

MEAN = np.asarray([0.4, -0.7])
COVARIANCE = np.asarray([[0.8, 0.3], [0.3, 0.5]])


def moment_matched(num=64):
    """Data and noise `[num, 2]` with exactly the mean and covariance of N(MEAN, COVARIANCE) and of N(0, I), uncorrelated."""
    z = draws(num, 4, seed=4)
    z = z - z.mean(axis=0)
    z = jnp.asarray(z @ np.linalg.inv(np.linalg.cholesky(z.T @ z / num)).T)
    return MEAN[None] + z[:, :2] @ np.linalg.cholesky(COVARIANCE).T, z[:, 2:]


def minimiser(mean_error):
    """`(A, b)` of the linear score `A x + b` that minimises a loss which is quadratic in them, by one Newton step."""

    def loss(flat):
        return jnp.mean(mean_error(lambda x: x @ flat[:4].reshape(2, 2).T + flat[None, 4:]))

    hessian, gradient = jax.jit(lambda zero: (jax.hessian(loss)(zero), jax.grad(loss)(zero)))(np.zeros(6))
    flat = -np.linalg.solve(hessian, gradient)
    return flat[:4].reshape(2, 2), flat[4:]


ERRORS = {
    "explicit": lambda score, data, noise: explicit_score_matching_error(
        score, data, -(data - MEAN[None]) @ np.linalg.inv(COVARIANCE)
    ),
    "implicit": lambda score, data, noise: implicit_score_matching_error(score, data),
    "sliced": lambda score, data, noise: over_signs(score, data, variance_reduced=False),
    "sliced, variance reduced": lambda score, data, noise: over_signs(score, data),
    "denoising": lambda score, data, noise: denoising_score_matching_error(score, data, noise, sigma=SIGMA),
}


@pytest.mark.parametrize("name", ERRORS)
def test_the_minimiser_is_the_score(name):
    """`A = -C^-1`, `b = C^-1 m`: the denoising loss's at the noised covariance, the others' at that of the data."""
    data, noise = moment_matched()
    matrix, offset = minimiser(lambda score: ERRORS[name](score, data, noise))
    precision = np.linalg.inv(COVARIANCE + (SIGMA**2 * np.eye(2) if name == "denoising" else 0))
    np.testing.assert_allclose(matrix, -precision, atol=1e-10)
    np.testing.assert_allclose(offset, precision @ MEAN, atol=1e-10)


# One value an example


def test_values_by_hand():
    score, x = lambda x: -3.0 * x, jnp.asarray([[1.0, 2.0], [0.0, -1.0]])
    probe = jnp.asarray([[1.0, -1.0], [2.0, 0.5]])
    np.testing.assert_allclose(explicit_score_matching_error(score, x, -x), [10.0, 2.0])
    np.testing.assert_allclose(implicit_score_matching_error(score, x), [-6 + 22.5, -6 + 4.5])
    np.testing.assert_allclose(sliced_score_matching_error(score, x, probe), [-6 + 22.5, -12.75 + 4.5])
    plain = sliced_score_matching_error(score, x, probe, variance_reduced=False)
    np.testing.assert_allclose(plain, [-6 + 4.5, -12.75 + 1.125])
    sigma = jnp.asarray([0.5, 2.0])  # errors (-4.5, -4.5) + (2, -2) and (-12, 0) + (1, 0.25)
    np.testing.assert_allclose(
        denoising_score_matching_error(score, x, probe, sigma=sigma), [(2.5**2 + 6.5**2) / 2, (11.0**2 + 0.25**2) / 2]
    )


def test_times_the_variance_it_is_half_the_error_of_the_noise():
    data, noise = (jnp.asarray(draws(5, 2, seed=seed)) for seed in (7, 8))
    sigma = jnp.linspace(0.3, 2.0, 5)
    score = bent_score(THETAS[0])
    found = sigma**2 * denoising_score_matching_error(score, data, noise, sigma=sigma)
    of_noise = denoising.denoising_error(
        lambda x, t: score(x), data, noise, sigma, path=paths.edm(), predict=predictions.score, error=predictions.noise
    )
    np.testing.assert_allclose(found, of_noise, rtol=1e-10)  # half a sum over D = 2 is their mean


def test_drawing_losses_are_the_errors_at_their_draws_and_invariant_to_the_batch():
    key, score = jax.random.key(0), lambda x: jnp.tanh(x)
    data = jnp.asarray(draws(8, 2, 2, 1, seed=9))
    sliced = lambda key, data: sliced_score_matching_loss(  # noqa: E731
        score, key, data, distribution="gaussian", variance_reduced=False
    )
    denoised = lambda key, data: denoising_score_matching_loss(score, key, data, sigma=SIGMA)  # noqa: E731
    probe = draw_probes(key, data, distribution="gaussian")
    noise = normal(key, data.shape, data.dtype)
    expected = {
        sliced: sliced_score_matching_error(score, data, probe, variance_reduced=False),
        denoised: denoising_score_matching_error(score, data, noise, sigma=SIGMA),
    }
    for loss, errors in expected.items():
        together = loss(key, data)
        assert together.shape == (8,)
        np.testing.assert_array_equal(together, errors)
        parts = [loss(example_keys(key, 4, start), data[start : start + 4]) for start in (0, 4)]
        np.testing.assert_allclose(together, jnp.concatenate(parts), rtol=1e-12)


def test_the_exact_implicit_loss_does_not_depend_on_the_chunk():
    score, data = bent_score(THETAS[0]), jnp.asarray(draws(6, 2))
    whole, chunked = (implicit_score_matching_error(score, data, chunk=chunk) for chunk in (None, 1))
    np.testing.assert_allclose(whole, chunked, rtol=1e-12)


def test_shapes_that_do_not_fit_raise():
    data = jnp.ones((4, 2))
    with pytest.raises(ValueError, match="they must agree"):
        explicit_score_matching_error(lambda x: x, data, jnp.ones((4, 1)))
    with pytest.raises(ValueError, match="must agree"):
        denoising_score_matching_error(lambda x: x, data, jnp.ones((4, 1)), sigma=SIGMA)
