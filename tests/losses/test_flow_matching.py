"""Conditional flow matching: parity, the source handed in, and the marginal loss whose gradient it has."""

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


def _check_targets(dtype, tolerance):
    noise, data, t = (jnp.asarray(REFERENCE[f"flow_{name}"], dtype) for name in ("x0", "x1", "t"))
    target = REFERENCE["flow_cfm_sigma0_u_t"]
    model = Recorder()
    errors = flow_matching_error(model, data, noise, t)
    ((x_t, called_t),) = model.calls
    np.testing.assert_allclose(x_t, REFERENCE["flow_cfm_sigma0_x_t"], atol=tolerance)
    np.testing.assert_array_equal(called_t, t)
    np.testing.assert_allclose(errors, np.mean(target**2, axis=1), rtol=tolerance)
    reached = flow_matching_error(lambda x, t: jnp.asarray(target, dtype), data, noise, t)
    np.testing.assert_allclose(reached, jnp.zeros_like(t), atol=tolerance)


def test_parity_in_float64(float64):
    _check_targets(jnp.float64, 1e-10)


def test_parity_in_float32():
    _check_targets(jnp.float32, 1e-5)


def test_the_loss_is_the_error_at_the_times_and_noise_it_drew(float64):
    data = jax.random.normal(jax.random.key(0), (4000, 2))
    model = Recorder()
    loss = conditional_flow_matching_loss(model, jax.random.key(1), data)
    ((x_t, t),) = model.calls
    noise = (x_t - t[:, None] * data) / (1 - t)[:, None]
    assert loss.shape == (4000,)
    np.testing.assert_allclose(loss, np.mean((data - noise) ** 2, axis=1), rtol=1e-8)
    assert abs(noise.mean()) < 4 / 8000**0.5
    assert abs(noise.std() - 1) < 4 / 16000**0.5
    assert np.abs(np.sort(t) - np.linspace(0, 1, 4000)).max() < 1.63 / 4000**0.5


def test_the_source_the_path_and_the_density_are_those_given(float64):
    path = paths.cosine()
    data, source = jax.random.uniform(jax.random.key(0), (2, 500, 3))
    model = Recorder()
    density = times.uniform_density(path, start=0.9, end=0.6)
    loss = conditional_flow_matching_loss(model, jax.random.key(1), data, noise=source, path=path, density=density)
    ((x_t, t),) = model.calls
    assert np.all((t > 0.6) & (t < 0.9))
    angle = np.pi / 2 * np.asarray(t)[:, None]
    np.testing.assert_allclose(x_t, np.cos(angle) * data + np.sin(angle) * source, atol=1e-12)
    velocity = np.pi / 2 * (np.cos(angle) * source - np.sin(angle) * data)
    np.testing.assert_allclose(loss, np.mean(velocity**2, axis=1), rtol=1e-10)


@pytest.mark.parametrize("name", ["linear", "vp"])
def test_the_conditional_loss_has_the_gradient_of_the_marginal_one(name):
    """Lipman et al. 2023, theorem 2: per-example differences of the two gradients have mean zero."""
    path, num, mix = {"linear": paths.linear(), "vp": paths.vp()}[name], 20_000, oracle()
    data = oracles.sample(mix, jax.random.key(0), num)
    noise = jax.random.normal(jax.random.key(1), (num, 2))
    t = jax.random.uniform(jax.random.key(2), (num,), minval=0.1, maxval=0.9)
    params = jnp.asarray([[0.4, -0.3], [0.2, 0.7], [0.1, -0.2]])

    @jax.jit
    def gradients(params):
        def model(params, x, t):
            return jnp.tanh(x @ params[:2] + t[:, None] * params[2:])

        x_t = paths.interpolate(path, data, noise, t)
        marginal_velocity = oracles.velocity(mix, x_t, t, path=path)

        def conditional(params):
            return flow_matching_error(lambda x, t: model(params, x, t), data, noise, t, path=path)

        def marginal(params):
            return jnp.mean((model(params, x_t, t) - marginal_velocity) ** 2, axis=1)

        directions = jnp.eye(6).reshape(6, 3, 2)
        return [jnp.stack([jax.jvp(f, (params,), (d,))[1] for d in directions]) for f in (conditional, marginal)]

    by_pairs, by_marginal = (np.asarray(value, np.float64) for value in gradients(params))

    def z_scores(values):
        return values.mean(axis=1) / (values.std(axis=1) / num**0.5)

    print(f"{name}: z of the difference {np.abs(z_scores(by_pairs - by_marginal)).max():.2f}")
    assert np.abs(z_scores(by_pairs - by_marginal)).max() < 4
    assert np.abs(z_scores(by_pairs)).max() > 20


def test_the_loss_of_the_oracle_is_the_spread_of_the_velocity(float64):
    """At the minimiser what is left is E Var[dx_t/dt | x_t], for Gaussian data in closed form."""
    std, t, num = 0.5, 0.7, 400_000
    mix = oracles.mixture([1.0], [[0.2]], [std**2])
    data = oracles.sample(mix, jax.random.key(0), num)
    noise = jax.random.normal(jax.random.key(1), (num, 1))
    exact = lambda x, t: oracles.velocity(mix, x, t, path=paths.linear())  # noqa: E731
    loss = jax.jit(lambda: flow_matching_error(exact, data, noise, jnp.full(num, t)))()
    covariance = np.array([[t**2 * std**2 + (1 - t) ** 2, t * std**2 - (1 - t)], [0, std**2 + 1]])
    expected = covariance[1, 1] - covariance[0, 1] ** 2 / covariance[0, 0]
    assert abs(loss.mean() - expected) < 4 * loss.std() / num**0.5


def test_a_batch_of_four_is_four_batches_of_one():
    data, noise = jax.random.normal(jax.random.key(0), (2, 4, 3))
    t = jnp.linspace(0.1, 0.9, 4)
    model = lambda x, t: jnp.sin(x) * t[:, None]  # noqa: E731
    together = flow_matching_error(model, data, noise, t)
    parts = [flow_matching_error(model, *(value[i : i + 1] for value in (data, noise, t))) for i in range(4)]
    np.testing.assert_allclose(together, jnp.concatenate(parts), rtol=1e-6)


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
