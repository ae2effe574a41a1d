"""The exact model: parity, brute force by matrices and quadrature, Tweedie's formulas, the continuity equation."""

import functools
from pathlib import Path as File

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm

from genjax import oracles, paths, predictions
from genjax.arrays import expand
from genjax.typing import Path

REFERENCE = np.load(File(__file__).parent / "reference" / "gaussian_mixture.npz")
WEIGHTS, MEANS, COVS = (REFERENCE[f"mixture_{name}"] for name in ("weights", "means", "covs"))
PATHS = {
    "linear": paths.linear(),
    "cosine": paths.cosine(),
    "vp": paths.vp(),
    "sub_vp": paths.sub_vp(),
    "ve": paths.ve(),
    "edm": paths.edm(),
    "ddpm": paths.ddpm(paths.linear_betas(1000)),
}
KINDS = {**predictions.KINDS, "edm": predictions.edm(0.7)}
every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
BATCH = 15  # one size everywhere, so that each function compiles once for each mixture
ALPHAS, SIGMAS = np.tile([0.9, 0.4, 1.0], 5), np.tile([0.3, 0.9, 2.0], 5)


def parameters(dimension):
    """Weights, means and full covariances of a mixture."""
    if dimension == 2:
        return WEIGHTS, MEANS, COVS
    generator = np.random.default_rng(dimension)
    components = 4 if dimension == 8 else 2
    factors = generator.normal(size=(components, dimension, dimension + 1)) / dimension**0.5
    weights = generator.dirichlet(np.full(components, 3.0))
    means = 1.5 * generator.normal(size=(components, dimension))
    return weights, means, factors @ factors.swapaxes(1, 2)


def drawn(mix, alpha, sigma, num=BATCH):
    data_key, noise_key = jax.random.split(jax.random.key(0))
    data = oracles.sample(mix, data_key, num)
    noise = jax.random.normal(noise_key, data.shape, data.dtype)
    return expand(jnp.asarray(alpha, data.dtype), data) * data + expand(jnp.asarray(sigma, data.dtype), data) * noise


@jax.jit
def everything(mix, x, alpha, sigma):
    return (
        oracles.denoise(mix, x, alpha, sigma),
        oracles.log_density(mix, x, alpha=alpha, sigma=sigma),
        oracles.score(mix, x, alpha=alpha, sigma=sigma),
        oracles.posterior_covariance(mix, x, alpha, sigma),
    )


def at(path, share):
    """The time `share` of the way from noise to data."""
    return path.t_noise + np.asarray(share) * (path.t_data - path.t_noise)


# Parity


def check_parity(tolerance, log_density_tolerance):
    mix = oracles.mixture(WEIGHTS, MEANS, COVS)
    alpha, sigma = (jnp.asarray(np.repeat(values, 64)) for values in REFERENCE["probe_alpha_sigma"].T)
    pair, log_density, *_ = everything(mix, jnp.asarray(REFERENCE["probe_x"].reshape(-1, 2)), alpha, sigma)
    np.testing.assert_allclose(pair.data, REFERENCE["probe_data"].reshape(-1, 2), atol=tolerance)
    np.testing.assert_allclose(pair.noise, REFERENCE["probe_noise"].reshape(-1, 2), atol=tolerance)
    np.testing.assert_allclose(log_density, REFERENCE["probe_log_density"].ravel(), atol=log_density_tolerance)


def test_parity_in_double_precision(float64):
    check_parity(1e-12, 1e-12)


def test_parity_in_single_precision():
    check_parity(1e-5, 1e-4)


@pytest.mark.parametrize(("x64", "tolerance"), [(True, 1e-9), (False, 5e-5)])
def test_parity_of_the_velocity(x64, tolerance):
    """dx/dt on the path from noise (t = 0) to data, which is the peer's clock too."""
    numbers = np.load(File(__file__).parent / "reference" / "losses_samplers_trajectories.npz")
    x, expected = (numbers[f"flow_probe_{name}"] for name in ("x", "velocity"))
    with jax.enable_x64(x64):
        mix = oracles.mixture(WEIGHTS, MEANS, COVS)
        velocity = jax.jit(jax.vmap(functools.partial(oracles.velocity, mix, path=paths.linear())))
        found = velocity(x, numbers["flow_probe_t"])
    difference = np.abs(np.asarray(found) - expected).max()
    print(f"velocity, {found.dtype}: {difference:.1e}")
    assert difference < tolerance


# Brute force


@pytest.mark.parametrize("dimension", [2, 8])
def test_everything_is_bayes_rule_by_matrices(dimension, float64):
    """Joint Gaussians of (data, x) for each component, conditioned by inverting full matrices."""
    weights, means, covs = parameters(dimension)
    mix = oracles.mixture(weights, means, covs)
    x = drawn(mix, ALPHAS, SIGMAS)
    found, log_density, _, found_covariance = everything(mix, x, ALPHAS, SIGMAS)
    for i, (point, alpha, sigma) in enumerate(zip(np.asarray(x), ALPHAS, SIGMAS, strict=True)):
        marginals = alpha**2 * covs + sigma**2 * np.eye(dimension)
        densities = weights * [
            multivariate_normal(alpha * m, c).pdf(point) for m, c in zip(means, marginals, strict=True)
        ]
        gains = alpha * covs @ np.linalg.inv(marginals)
        centres = means + np.einsum("kij,kj->ki", gains, point - alpha * means)
        second = covs - alpha * gains @ covs + centres[:, :, None] * centres[:, None, :]
        mean, second = (np.tensordot(densities / densities.sum(), value, 1) for value in (centres, second))
        assert float(log_density[i]) == pytest.approx(np.log(densities.sum()), rel=1e-10)
        np.testing.assert_allclose(found.data[i], mean, rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(found.noise[i], (point - alpha * mean) / sigma, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(found_covariance[i], second - np.outer(mean, mean), rtol=1e-8, atol=1e-10)


def test_one_dimension_is_an_integral(float64):
    weights, means, covs = parameters(1)
    mix = oracles.mixture(weights, means, covs)
    x = np.linspace(-2.0, 2.5, BATCH)
    found, log_density, _, covariance = everything(mix, jnp.asarray(x[:, None]), ALPHAS, SIGMAS)
    data = np.linspace(-15, 15, 20_001)
    components = [w * norm.pdf(data, m[0], c[0, 0] ** 0.5) for w, m, c in zip(weights, means, covs, strict=True)]
    for i, (point, alpha, sigma) in enumerate(zip(x, ALPHAS, SIGMAS, strict=True)):
        joint = sum(components) * norm.pdf(point, alpha * data, sigma)
        mass = np.trapezoid(joint, data)
        mean = np.trapezoid(data * joint, data) / mass
        variance = np.trapezoid((data - mean) ** 2 * joint, data) / mass
        assert float(log_density[i]) == pytest.approx(np.log(mass), abs=1e-9)
        assert float(found.data[i, 0]) == pytest.approx(mean, abs=1e-9)
        assert float(covariance[i, 0, 0]) == pytest.approx(variance, abs=1e-9)


@jax.jit
def gradient_and_jacobian(mix, x, alpha, sigma):
    def data_at(x, alpha, sigma):
        return oracles.denoise(mix, x[None], alpha, sigma).data[0]

    gradient = jax.grad(lambda x: oracles.log_density(mix, x, alpha=alpha, sigma=sigma).sum())(x)
    return gradient, jax.vmap(jax.jacfwd(data_at))(x, alpha, sigma)


@pytest.mark.parametrize("dimension", [2, 8])
def test_the_score_is_the_gradient_and_tweedie_holds(dimension, float64):
    """score = grad log p = -E[noise | x] / sigma, and Cov[data | x] = sigma^2 / alpha d E[data | x] / dx."""
    mix = oracles.mixture(*parameters(dimension))
    x = drawn(mix, ALPHAS, SIGMAS)
    pair, _, score, covariance = everything(mix, x, ALPHAS, SIGMAS)
    gradient, jacobian = gradient_and_jacobian(mix, x, ALPHAS, SIGMAS)
    alpha, sigma = ALPHAS[:, None], SIGMAS[:, None]
    np.testing.assert_allclose(score, gradient, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(score, -pair.noise / sigma, rtol=1e-11)
    np.testing.assert_allclose(alpha * pair.data + sigma * pair.noise, x, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(covariance, (sigma**2 / alpha)[:, None] * jacobian, rtol=1e-8, atol=1e-12)
    assert np.all(np.linalg.eigvalsh(covariance) > 0)


def test_the_density_of_the_data_is_the_default(float64):
    mix = oracles.mixture(WEIGHTS, MEANS, COVS)
    x = drawn(mix, 1.0, 0.0)
    expected = sum(
        w * multivariate_normal(m, c).pdf(np.asarray(x)) for w, m, c in zip(WEIGHTS, MEANS, COVS, strict=True)
    )
    np.testing.assert_allclose(oracles.log_density(mix, x), np.log(expected), rtol=1e-11)
    _, _, score, _ = everything(mix, x, np.ones(BATCH), np.zeros(BATCH))
    np.testing.assert_allclose(oracles.score(mix, x), score, rtol=1e-12)


# On paths


def path_at(index):
    """The path at a traced index, so that one compilation serves all of them."""

    def choose(name):
        return lambda t: jax.lax.switch(index, [getattr(path, name) for path in PATHS.values()], t)

    return Path(choose("alpha"), choose("sigma"), 0.0, 1.0)


@jax.jit
def terms_of_continuity(index, mix, x, t):
    """`d/dt log p`, `div v` and `v . grad log p`, by differentiation."""
    path = path_at(index)

    def log_p(x, t):
        return oracles.log_density(mix, x[None], alpha=path.alpha(t), sigma=path.sigma(t))[0]

    def velocity(x, t):
        return oracles.velocity(mix, x[None], t, path=path)[0]

    def terms(x, t):
        gradient, rate = jax.grad(log_p, argnums=(0, 1))(x, t)
        divergence = jnp.trace(jax.jacfwd(velocity)(x, t))
        return rate, divergence, velocity(x, t) @ gradient

    return jax.vmap(terms)(x, t)


@pytest.mark.parametrize("name", PATHS)
def test_the_velocity_carries_the_density(name, float64):
    """The continuity equation `d/dt log p + div v + v . grad log p = 0`."""
    path, mix = PATHS[name], oracles.mixture(WEIGHTS, MEANS, COVS)
    times = jnp.asarray(at(path, np.array([0.15035, 0.50035, 0.85035])))
    x = drawn(mix, path.alpha(times), path.sigma(times), num=3)
    rate, divergence, advection = terms_of_continuity(list(PATHS).index(name), mix, x, times)
    scale = np.abs(rate) + np.abs(divergence) + np.abs(advection)
    assert np.all(np.abs(rate + divergence + advection) <= 1e-10 * scale)
    assert np.all(np.abs(rate) > 1e-4 * scale)  # so that the balance is not one of zeros


@jax.jit
def exact_and_by_kind(index, mix, x, t):
    """The exact pair and the pairs of the models of every kind; velocity and score, of models and exact."""
    path = path_at(index)
    knot = paths.knots(path, t)
    models = {name: oracles.model(mix, path, kind) for name, kind in KINDS.items()}
    pairs = {name: predictions.denoiser(models[name], path, kind)(x, knot) for name, kind in KINDS.items()}
    of_models = [models[name](x, jnp.full(BATCH, t)) for name in ("velocity", "score")]
    score = oracles.score(mix, x, alpha=knot.alpha, sigma=knot.sigma)
    return oracles.denoiser(mix)(x, knot), pairs, of_models, [oracles.velocity(mix, x, t, path=path), score]


@pytest.mark.parametrize("name", PATHS)
def test_model_and_denoiser_agree_for_every_kind(name, float64):
    path, mix = PATHS[name], oracles.mixture(WEIGHTS, MEANS, COVS)
    t = jnp.asarray(at(path, 0.40035))
    knot = paths.knots(path, t)
    x = drawn(mix, knot.alpha, knot.sigma)
    exact, pairs, *velocity_and_score = exact_and_by_kind(list(PATHS).index(name), mix, x, t)
    scale = float(1 + 1 / knot.alpha + knot.sigma / knot.alpha)
    for kind, found in pairs.items():
        for value, expected in zip(found, exact, strict=True):
            np.testing.assert_allclose(value, expected, atol=1e-11 * scale, err_msg=kind)
    for value, expected in zip(*velocity_and_score, strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-11)


@every_path
def test_the_ends_of_a_path_are_finite(path):
    mix = oracles.mixture(*parameters(8))
    for end in (path.t_noise, path.t_data):
        knots = paths.knots(path, jnp.full(BATCH, end))
        found = everything(mix, drawn(mix, knots.alpha, knots.sigma), knots.alpha, knots.sigma)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(found))


def test_pure_noise_tells_nothing_of_the_data_and_clean_data_tell_all(float64):
    mix = oracles.mixture(WEIGHTS, MEANS, COVS)
    x, one, zero = drawn(mix, 1.0, 1.0), np.ones(BATCH), np.zeros(BATCH)
    blind, *_ = everything(mix, x, zero, one)
    clean, *_, covariance = everything(mix, x, one, zero)
    np.testing.assert_allclose(blind.data, np.broadcast_to(WEIGHTS @ MEANS, x.shape), rtol=1e-13)
    np.testing.assert_allclose(blind.noise, x, rtol=1e-13)
    np.testing.assert_allclose(clean.data, x, rtol=1e-12)
    np.testing.assert_array_equal(clean.noise, 0.0)
    np.testing.assert_allclose(covariance, 0.0, atol=1e-14)


# Sampling


@pytest.mark.parametrize("dimension", [2, 8])
def test_samples_have_the_moments(dimension):
    weights, means, covs = parameters(dimension)
    mean = weights @ means
    spread = means - mean
    covariance = np.einsum("k,kij->ij", weights, covs + spread[:, :, None] * spread[:, None, :])
    num = 20_000
    x = np.asarray(oracles.sample(oracles.mixture(weights, means, covs), jax.random.key(1), num), np.float64)
    assert np.all(np.abs(x.mean(axis=0) - mean) < 4 * np.sqrt(np.diag(covariance) / num))
    products = (x - mean)[:, :, None] * (x - mean)[:, None, :]
    assert np.all(np.abs(products.mean(axis=0) - covariance) < 4 * products.std(axis=0) / np.sqrt(num))


def test_samples_have_the_weights_and_the_shape_of_each_component():
    """Components 40 apart, so that each draw tells its component."""
    means = 40 * np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    mix = oracles.mixture(WEIGHTS, means, COVS)
    num = 20_000
    x = np.asarray(oracles.sample(mix, jax.random.key(2), num), np.float64)
    nearest = np.argmin(np.linalg.norm(x[:, None] - means[None], axis=-1), axis=1)
    for k, weight in enumerate(WEIGHTS):
        own = x[nearest == k] - means[k]
        assert abs(len(own) / num - weight) < 4 * np.sqrt(weight * (1 - weight) / num)
        products = own[:, :, None] * own[:, None, :]
        assert np.all(np.abs(products.mean(axis=0) - COVS[k]) < 4 * products.std(axis=0) / np.sqrt(len(own)))


def test_more_samples_begin_with_the_fewer():
    mix, key = oracles.mixture(WEIGHTS, MEANS, COVS), jax.random.key(0)
    draw = jax.jit(oracles.sample, static_argnums=2)
    np.testing.assert_array_equal(draw(mix, key, 64)[:8], draw(mix, key, 8))


# As functions of arrays


@pytest.mark.parametrize("dimension", [2, 8])
def test_levels_may_differ_within_a_batch(dimension, float64):
    mix = oracles.mixture(*parameters(dimension))
    x = drawn(mix, ALPHAS, SIGMAS)
    batched = everything(mix, x, ALPHAS, SIGMAS)
    for i in range(3):
        alone = everything(mix, x, float(ALPHAS[i]), float(SIGMAS[i]))
        for whole, one in zip(jax.tree.leaves(batched), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(whole[i], one[i], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("x64", "dtype"), [(False, jnp.float32), (True, jnp.float64)])
def test_no_silent_promotion(x64, dtype):
    with jax.enable_x64(x64), jax.numpy_dtype_promotion("strict"):
        mix = oracles.mixture(WEIGHTS, MEANS, COVS)
        x, level = jax.ShapeDtypeStruct((3, 2), dtype), jax.ShapeDtypeStruct((3,), dtype)
        found = [jax.eval_shape(functools.partial(everything, mix), x, level, level)]
        found += [jax.eval_shape(functools.partial(oracles.velocity, mix, path=paths.vp()), x, level)]
        found += [jax.eval_shape(oracles.model(mix, paths.vp(), kind), x, level) for kind in KINDS.values()]
        found += [jax.eval_shape(functools.partial(oracles.sample, mix, num=3), jax.random.key(0))]
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype(dtype)}


def test_covariances_may_be_multiples_of_the_identity(float64):
    spherical = oracles.mixture([0.3, 0.7], [[0.0, 1.0], [2.0, 0.0]], [0.5, 2.0])
    full = oracles.mixture([0.3, 0.7], [[0.0, 1.0], [2.0, 0.0]], np.array([0.5, 2.0])[:, None, None] * np.eye(2))
    x = jnp.asarray([[0.3, -0.4]])
    np.testing.assert_allclose(oracles.log_density(spherical, x), oracles.log_density(full, x), rtol=1e-13)


def test_a_weight_of_zero_is_no_component(float64):
    with_empty = oracles.mixture([0.4, 0.0, 0.6], [[0.0, 0.0], [9.0, 9.0], [1.0, 1.0]], [1.0, 1.0, 1.0])
    without = oracles.mixture([0.4, 0.6], [[0.0, 0.0], [1.0, 1.0]], [1.0, 1.0])
    x = jnp.linspace(0.0, 9.0, 2 * BATCH).reshape(BATCH, 2)
    both = (everything(mix, x, ALPHAS, SIGMAS) for mix in (with_empty, without))
    for a, b in zip(*map(jax.tree.leaves, both), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("weights", "means", "covs", "message"),
    [
        ([0.5, 0.5], [[0.0]], [1.0], "must be"),
        ([1.0], [0.0], [1.0], "must be"),
        ([1.0], [[0.0, 0.0]], [[1.0, 1.0]], "must be"),
        ([0.5, 0.6], [[0.0], [1.0]], [1.0, 1.0], "sum to 1"),
        ([-0.5, 1.5], [[0.0], [1.0]], [1.0, 1.0], "at least 0"),
        ([np.nan, 1.0], [[0.0], [1.0]], [1.0, 1.0], "sum to 1"),
        ([1.0], [[0.0, 0.0]], [[[1.0, 0.5], [0.0, 1.0]]], "symmetric"),
        ([1.0], [[0.0, 0.0]], [[[1.0, 2.0], [2.0, 1.0]]], "semi-definite"),
    ],
)
def test_what_is_no_mixture_is_refused(weights, means, covs, message):
    with pytest.raises(ValueError, match=message):
        oracles.mixture(weights, means, covs)
