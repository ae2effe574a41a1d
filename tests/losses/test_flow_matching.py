"""Conditional flow matching: parity, the source handed in, and the marginal loss whose gradient it has."""

import functools
from pathlib import Path as File

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import oracles, paths, times
from genjax.losses.flow_matching import conditional_flow_matching_loss, flow_matching_error

REFERENCE = np.load(File(__file__).parents[1] / "reference" / "losses_samplers_weights.npz")


def oracle():
    return oracles.mixture(*(REFERENCE[f"mixture_{name}"] for name in ("weights", "means", "covs")))


class Recorder:
    """A model of value 0 that notes what it is called with."""

    def __init__(self):
        self.calls = []

    def __call__(self, x, t):
        self.calls.append((x, t))
        return jnp.zeros_like(x)


def normals(*shape, dtype=np.float64):
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def _check_targets(dtype, tolerance):
    noise, data, t = (REFERENCE[f"flow_{name}"].astype(dtype) for name in ("x0", "x1", "t"))
    target = REFERENCE["flow_cfm_sigma0_u_t"]

    @jax.jit
    def run(data, noise, t):
        model = Recorder()
        errors = flow_matching_error(model, data, noise, t)
        reached = flow_matching_error(lambda x, t: jnp.asarray(target, dtype), data, noise, t)
        return errors, reached, *model.calls[0]

    errors, reached, x_t, called_t = run(data, noise, t)
    np.testing.assert_allclose(x_t, REFERENCE["flow_cfm_sigma0_x_t"], atol=tolerance)
    np.testing.assert_array_equal(called_t, t)
    np.testing.assert_allclose(errors, np.mean(target**2, axis=1), rtol=tolerance)
    np.testing.assert_allclose(reached, np.zeros_like(t), atol=tolerance)


def test_parity_in_float64(float64):
    _check_targets(jnp.float64, 1e-10)


def test_parity_in_float32():
    _check_targets(jnp.float32, 1e-5)


def test_the_loss_is_the_error_at_the_times_and_noise_it_drew(float64):
    data = normals(4000, 2)

    @jax.jit
    def run(key, data):
        model = Recorder()
        return conditional_flow_matching_loss(model, key, data), *model.calls[0]

    loss, x_t, t = (np.asarray(value) for value in run(jax.random.key(1), data))
    noise = (x_t - t[:, None] * data) / (1 - t)[:, None]
    assert loss.shape == (4000,)
    np.testing.assert_allclose(loss, np.mean((data - noise) ** 2, axis=1), rtol=1e-8)
    assert abs(noise.mean()) < 4 / 8000**0.5
    assert abs(noise.std() - 1) < 4 / 16000**0.5
    assert np.abs(np.sort(t) - np.linspace(0, 1, 4000)).max() < 1.63 / 4000**0.5


def test_the_source_the_path_and_the_density_are_those_given(float64):
    data, source = normals(2, 500, 3)

    @jax.jit
    def run(key, data, source):
        model, path = Recorder(), paths.cosine()
        density = times.uniform_density(path, start=0.9, end=0.6)
        loss = conditional_flow_matching_loss(model, key, data, noise=source, path=path, density=density)
        return loss, *model.calls[0]

    loss, x_t, t = (np.asarray(value) for value in run(jax.random.key(1), data, source))
    assert np.all((t > 0.6) & (t < 0.9))
    angle = np.pi / 2 * t[:, None]
    np.testing.assert_allclose(x_t, np.cos(angle) * data + np.sin(angle) * source, atol=1e-12)
    velocity = np.pi / 2 * (np.cos(angle) * source - np.sin(angle) * data)
    np.testing.assert_allclose(loss, np.mean(velocity**2, axis=1), rtol=1e-10)


@pytest.mark.parametrize("name", ["linear", "vp"])
def test_the_conditional_loss_has_the_gradient_of_the_marginal_one(name):
    """Lipman et al. 2023, theorem 2: per-example differences of the two gradients have mean zero."""
    path, num, mix = {"linear": paths.linear(), "vp": paths.vp()}[name], 20_000, oracle()
    params = jnp.asarray([[0.4, -0.3], [0.2, 0.7], [0.1, -0.2]])

    generator = np.random.default_rng(0)
    component = generator.choice(3, num, p=REFERENCE["mixture_weights"])
    roots = np.linalg.cholesky(REFERENCE["mixture_covs"])[component]
    data = REFERENCE["mixture_means"][component] + np.einsum("bij,bj->bi", roots, normals(num, 2))
    noise, t = generator.standard_normal((num, 2)), generator.uniform(0.1, 0.9, num)

    @jax.jit
    def gradients(params, data, noise, t):
        def model(params, x, t):
            return jnp.tanh(x @ params[:2] + t[:, None] * params[2:])

        x_t = paths.interpolate(path, data, noise, t)
        marginal_velocity = oracles.velocity(mix, x_t, t, path=path)

        def conditional(params):
            return flow_matching_error(lambda x, t: model(params, x, t), data, noise, t, path=path)

        def marginal(params):
            return jnp.mean((model(params, x_t, t) - marginal_velocity) ** 2, axis=1)

        directions = jnp.eye(6).reshape(6, 3, 2)
        return [jax.vmap(lambda d, f=f: jax.jvp(f, (params,), (d,))[1])(directions) for f in (conditional, marginal)]

    by_pairs, by_marginal = (
        np.asarray(value, np.float64)
        for value in gradients(params, *(value.astype(np.float32) for value in (data, noise, t)))
    )

    def z_scores(values):
        return values.mean(axis=1) / (values.std(axis=1) / num**0.5)

    print(f"{name}: z of the difference {np.abs(z_scores(by_pairs - by_marginal)).max():.2f}")
    assert np.abs(z_scores(by_pairs - by_marginal)).max() < 4
    assert np.abs(z_scores(by_pairs)).max() > 20


def test_the_loss_of_the_oracle_is_the_spread_of_the_velocity(float64):
    """At the minimiser what is left is E Var[dx_t/dt | x_t], for Gaussian data in closed form."""
    std, t, num = 0.5, 0.7, 100_000
    mix = oracles.mixture([1.0], [[0.2]], [std**2])
    data, noise = normals(2, num, 1)
    exact = lambda x, t: oracles.velocity(mix, x, t, path=paths.linear())  # noqa: E731
    loss = jax.jit(functools.partial(flow_matching_error, exact))(0.2 + std * data, noise, np.full(num, t))
    covariance = np.array([[t**2 * std**2 + (1 - t) ** 2, t * std**2 - (1 - t)], [0, std**2 + 1]])
    expected = covariance[1, 1] - covariance[0, 1] ** 2 / covariance[0, 0]
    assert abs(loss.mean() - expected) < 4 * loss.std() / num**0.5


def test_a_batch_of_four_is_four_batches_of_one():
    data, noise = normals(2, 4, 3, dtype=np.float32)
    t = np.linspace(0.1, 0.9, 4, dtype=np.float32)
    error = jax.jit(functools.partial(flow_matching_error, lambda x, t: jnp.sin(x) * t[:, None]))
    parts = [error(*(value[i : i + 1] for value in (data, noise, t))) for i in range(4)]
    np.testing.assert_allclose(error(data, noise, t), np.concatenate(parts), rtol=1e-6)


def test_wrong_shapes_raise():
    data, t = jnp.zeros((4, 2)), jnp.full(4, 0.5)
    model = lambda x, t: x  # noqa: E731
    with pytest.raises(ValueError, match="must agree"):
        flow_matching_error(model, data, jnp.zeros((4, 1)), t)
    with pytest.raises(ValueError, match="must agree"):
        flow_matching_error(model, data, data, t[:, None])
    with pytest.raises(ValueError, match="must agree"):
        conditional_flow_matching_loss(model, jax.random.key(0), data, noise=jnp.zeros((3, 2)))
    with pytest.raises(ValueError, match="model returned shape"):
        conditional_flow_matching_loss(lambda x, t: x[:, :1], jax.random.key(0), data)
