"""Flow and bridge matching: parity, the source handed in, coupled pairs, and the marginal loss whose gradient they have."""

import functools
from pathlib import Path as File

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import couplings, oracles, paths, times
from genjax.losses.flow_matching import (
    bridge_matching_error,
    bridge_matching_loss,
    brownian_spread,
    conditional_flow_matching_loss,
    constant_spread,
    flow_matching_error,
)
from genjax.typing import Path

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


def on_a_bridge(spread, path=None):
    return lambda model, data, source, noise, t: bridge_matching_error(
        model, data, source, noise, t, spread=spread, path=path
    )


def on_lipmans_path(sigma):
    """The peer's class ignores its source: the path's own noise takes its place."""
    return lambda model, data, source, noise, t: flow_matching_error(model, data, noise, t, path=paths.linear(sigma))


PEERS = {  # classes of torchcfm; on `cosine` their clock runs back, so that t is our 1 - t and u_t minus our velocity
    "cfm_sigma0": (lambda model, data, source, noise, t: flow_matching_error(model, data, source, t), 1),
    "cfm_sigma0p1": (on_a_bridge(constant_spread(0.1)), 1),
    "lipman_sigma0": (on_lipmans_path(0.0), 1),
    "lipman_sigma0p1": (on_lipmans_path(0.1), 1),
    "vp_sigma0": (on_a_bridge(constant_spread(0.0), paths.cosine()), -1),
    "vp_sigma0p1": (on_a_bridge(constant_spread(0.1), paths.cosine()), -1),
    "sb_sigma1": (on_a_bridge(brownian_spread(1.0)), 1),
    "sb_sigma0p5": (on_a_bridge(brownian_spread(0.5)), 1),
}


@pytest.mark.parametrize("x64", [True, False])
@pytest.mark.parametrize("peer", PEERS)
def test_parity_of_noisy_examples_and_targets(peer, x64):
    """x0 of the peer is our source, x1 the data, eps the noise. Its u_t of a Schrodinger bridge has 1e-8 in a denominator."""
    error, sign = PEERS[peer]
    source, data, noise, t, x_t, u_t = (
        REFERENCE[f"flow_{n}"] for n in ("x0", "x1", "eps", "t", f"{peer}_x_t", f"{peer}_u_t")
    )
    t = t if sign == 1 else 1 - t

    @jax.jit
    def run(data, source, noise, t, u_t):
        recorder = Recorder()
        at_rest = error(recorder, data, source, noise, t)
        return at_rest, error(lambda x, t: sign * u_t, data, source, noise, t), *recorder.calls[0]

    with jax.enable_x64(x64):
        at_rest, reached, found_x_t, called_t = (np.asarray(value) for value in run(data, source, noise, t, u_t))
    tolerance = 1e-10 if x64 else 1e-5
    of_u_t = max(tolerance, 1e-5) if peer.startswith("sb") else tolerance
    print(f"{peer}, {found_x_t.dtype}: x_t {np.abs(found_x_t - x_t).max():.1e}, u_t {np.sqrt(reached.max()):.1e}")
    assert np.abs(found_x_t - x_t).max() < tolerance
    assert np.sqrt(reached.max()) < of_u_t
    np.testing.assert_allclose(at_rest, np.mean(u_t**2, axis=1), rtol=10 * of_u_t)
    np.testing.assert_allclose(called_t, t, rtol=1e-7)


@pytest.mark.parametrize(("label", "sigma"), [("sb_sigma1", 1.0), ("sb_sigma0p5", 0.5)])
def test_parity_of_the_weight_of_the_score(label, sigma, float64):
    """`lambda_t = 2 sigma_t / sigma^2` (Tong et al. 2024, arXiv 2307.03672), where the peer adds 1e-8 to sigma^2."""
    weight = 2 * brownian_spread(sigma)(jnp.asarray(REFERENCE["flow_t"])) / (sigma**2 + 1e-8)
    np.testing.assert_allclose(weight, REFERENCE[f"flow_{label}_lambda"], rtol=1e-10)


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


# Bridges

SPREADS = {"constant": constant_spread(0.3), "brownian": brownian_spread(0.7)}
every_spread = pytest.mark.parametrize("spread", SPREADS.values(), ids=SPREADS)


def bridges(num, dimension=2, dtype=np.float64):
    """Data, a source that is not Gaussian, noise, and times off the ends."""
    generator = np.random.default_rng(3)
    data, noise = generator.normal(size=(2, num, dimension))
    source = generator.exponential(size=(num, dimension)) - 2
    return tuple(jnp.asarray(value, dtype) for value in (data, source, noise, generator.uniform(0.05, 0.95, num)))


@every_spread
@pytest.mark.parametrize("path", [paths.linear(), paths.cosine()], ids=["linear", "cosine"])
def test_the_target_is_the_velocity_of_the_conditional_gaussian(spread, path, float64):
    """`u(x) = s'/s (x - mean) + mean'` of N(mean_t, s_t^2), by differentiation in t of each of the two."""
    data, source, noise, t = bridges(50)

    def formula(x, t):
        mean = functools.partial(paths.interpolate, path, data, source)
        (mean, d_mean), (s, d_s) = (jax.jvp(f, (t,), (jnp.ones_like(t),)) for f in (mean, spread))
        return (d_s / s)[:, None] * (x - mean) + d_mean

    def along(t):
        return paths.interpolate(path, data, source, t) + spread(t)[:, None] * noise

    x_t, slope = jax.jvp(along, (t,), (jnp.ones_like(t),))
    model = Recorder()
    at_rest = bridge_matching_error(model, data, source, noise, t, spread=spread, path=path)
    np.testing.assert_allclose(model.calls[0][0], x_t, rtol=1e-12)
    np.testing.assert_array_equal(model.calls[0][1], t)
    np.testing.assert_allclose(at_rest, np.mean(slope**2, axis=1), rtol=1e-10)
    reached = bridge_matching_error(formula, data, source, noise, t, spread=spread, path=path)
    np.testing.assert_allclose(reached, 0.0, atol=1e-20)


def test_a_constant_spread_blurs_x_t_and_leaves_the_velocity(float64):
    """I-CFM: N(t data + (1 - t) source, sigma^2), velocity `data - source` (Tong et al. 2024)."""
    data, source, noise, t = bridges(50)
    model = Recorder()
    errors = bridge_matching_error(model, data, source, noise, t, spread=constant_spread(0.3))
    expected = t[:, None] * data + (1 - t)[:, None] * source + 0.3 * noise
    np.testing.assert_allclose(model.calls[0][0], expected, rtol=1e-12)
    np.testing.assert_allclose(errors, np.mean((data - source) ** 2, axis=1), rtol=1e-12)


def test_the_velocity_of_a_brownian_bridge(float64):
    """`(1 - 2 t) / (2 t (1 - t)) (x - t data - (1 - t) source) + data - source` (Tong et al. 2024)."""
    data, source, noise, t = bridges(50)

    def written_out(x, t):
        t = t[:, None]
        return (1 - 2 * t) / (2 * t * (1 - t)) * (x - t * data - (1 - t) * source) + data - source

    errors = bridge_matching_error(written_out, data, source, noise, t, spread=brownian_spread(0.7))
    np.testing.assert_allclose(errors, 0.0, atol=1e-20)


def test_the_deviation_of_a_brownian_bridge(float64):
    """That of Brownian motion sigma W given both of its ends: `Var W_t - Cov(W_t, W_1)^2 / Var W_1 = t - t^2`."""
    t = jnp.asarray([0.0, 0.1, 0.5, 0.9, 1.0])
    np.testing.assert_allclose(brownian_spread(0.7)(t) ** 2, 0.49 * (t - t**2), rtol=1e-12)


@pytest.mark.parametrize("spread", [constant_spread(0.0), brownian_spread(0.0)], ids=["constant", "brownian"])
def test_bridges_that_do_not_spread_are_flow_matching(spread):
    data, source, noise, t = bridges(50, dtype=np.float32)
    model = lambda x, t: jnp.sin(x) * t[:, None]  # noqa: E731
    errors = bridge_matching_error(model, data, source, noise, t, spread=spread)
    np.testing.assert_allclose(errors, flow_matching_error(model, data, source, t), rtol=1e-6)


def test_the_ends_of_a_brownian_bridge_are_singular():
    data, source, noise, _ = bridges(2, dtype=np.float32)
    error = functools.partial(bridge_matching_error, Recorder(), data, source, noise, spread=brownian_spread(1.0))
    assert np.all(np.isinf(error(jnp.asarray([0.0, 1.0]))))
    margin = jnp.finfo(jnp.float32).epsneg  # the nearest that `times.uniform_density` draws
    assert np.all(np.isfinite(error(jnp.stack([margin, 1 - margin]))))


@every_spread
def test_the_best_constant_is_the_mean_velocity(spread, float64):
    """Over models that do not look at x the minimiser is `mean(data - source + s' noise)`."""
    data, source, noise, t = bridges(400)
    slope = jax.jvp(spread, (t,), (jnp.ones_like(t),))[1]
    best = jnp.mean(data - source + slope[:, None] * noise, axis=0)

    def loss(constant):
        model = lambda x, t: jnp.broadcast_to(constant, x.shape)  # noqa: E731
        return jnp.mean(bridge_matching_error(model, data, source, noise, t, spread=spread))

    np.testing.assert_allclose(jax.grad(loss)(best), 0.0, atol=1e-12)
    assert loss(best) < loss(best + 0.01)


@every_spread
def test_bridges_have_the_gradient_of_the_marginal_loss(spread):
    """From N(0, I) a bridge on `linear()` is a Gaussian path, of deviation `sqrt((1 - t)^2 + s^2)`: its oracle is known."""
    num, mix = 20_000, oracle()
    as_path = Path(lambda t: t, lambda t: jnp.sqrt((1 - t) ** 2 + spread(t) ** 2), t_data=1.0, t_noise=0.0)
    keys = jax.random.split(jax.random.key(0), 4)
    data = oracles.sample(mix, keys[0], num)
    source, noise = (jax.random.normal(key, data.shape) for key in keys[1:3])
    t = jax.random.uniform(keys[3], (num,), minval=0.1, maxval=0.9)
    params = jnp.asarray([[0.4, -0.3], [0.2, 0.7], [0.1, -0.2]])

    @jax.jit
    def gradients(params):
        def model(params, x, t):
            return jnp.tanh(x @ params[:2] + t[:, None] * params[2:])

        def conditional(params):
            return bridge_matching_error(functools.partial(model, params), data, source, noise, t, spread=spread)

        x_t = t[:, None] * data + (1 - t)[:, None] * source + spread(t)[:, None] * noise
        marginal_velocity = oracles.velocity(mix, x_t, t, path=as_path)

        def marginal(params):
            return jnp.mean((model(params, x_t, t) - marginal_velocity) ** 2, axis=1)

        directions = jnp.eye(6).reshape(6, 3, 2)
        return [jax.vmap(lambda d, f=f: jax.jvp(f, (params,), (d,))[1])(directions) for f in (conditional, marginal)]

    by_pairs, by_marginal = (np.asarray(value, np.float64) for value in gradients(params))

    def z_scores(values):
        return values.mean(axis=1) / (values.std(axis=1) / num**0.5)

    assert np.abs(z_scores(by_pairs - by_marginal)).max() < 4
    assert np.abs(z_scores(by_pairs)).max() > 20


def test_from_points_to_points_the_minimiser_is_a_weighted_mean_of_bridges(float64):
    """A source of two points, not Gaussian, and coupled: `E[u | x] = sum_ij r_ij u_ij`, `r_ij ~ P_ij N(x; mean_ij, s^2)`.

    What is left of the error of that field is uncorrelated with every function of x and t.
    """
    num, spread = 40_000, brownian_spread(0.8)
    starts, ends = np.array([-1.0, 1.0]), np.array([-0.5, 2.0])
    plan = np.array([[0.4, 0.1], [0.2, 0.3]])
    generator = np.random.default_rng(0)
    i, j = np.unravel_index(generator.choice(4, num, p=plan.ravel()), (2, 2))
    data, source, noise = (jnp.asarray(value)[:, None] for value in (ends[j], starts[i], generator.normal(size=num)))
    t = jnp.asarray(generator.uniform(0.05, 0.95, num))

    def field(x, t):
        x, t = x[:, :, None], t[:, None, None]
        means = (1 - t) * starts[None, :, None] + t * ends[None, None, :]
        s, d_s = jax.jvp(spread, (t,), (jnp.ones_like(t),))
        weights = jax.nn.softmax(jnp.log(plan)[None] - 0.5 * ((x - means) / s) ** 2, axis=(1, 2))
        velocities = d_s / s * (x - means) + (ends[None, :] - starts[:, None])[None]
        return jnp.sum(weights * velocities, axis=(1, 2))[:, None]

    @jax.jit
    def slopes(weights):
        """Slope of the error of `field + weights . probes` at weights 0: -2 probes (u - field)."""

        def error(weights):
            def model(x, t):
                probes = jnp.stack([jnp.ones_like(x), x, jnp.sin(3 * x), x * t[:, None]])
                return field(x, t) + jnp.tensordot(weights, probes, 1)

            return bridge_matching_error(model, data, source, noise, t, spread=spread)

        return jax.jacfwd(error)(weights)

    values = np.asarray(slopes(jnp.zeros(4)))
    assert np.abs(values.mean(axis=0) / (values.std(axis=0) / num**0.5)).max() < 4


# The tier that draws


@every_spread
def test_the_bridge_loss_is_the_error_at_what_it_drew(spread, float64):
    data, source, _, _ = bridges(4000)

    @jax.jit
    def run(key):
        model = Recorder()
        return bridge_matching_loss(model, key, data, source, spread=spread), *model.calls[0]

    loss, x_t, t = run(jax.random.key(1))
    noise = (x_t - t[:, None] * data - (1 - t)[:, None] * source) / spread(t)[:, None]
    expected = bridge_matching_error(Recorder(), data, source, noise, t, spread=spread)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert abs(noise.mean()) < 4 / 8000**0.5
    assert abs(noise.std() - 1) < 4 / 16000**0.5
    assert np.abs(np.sort(t) - np.linspace(0, 1, 4000)).max() < 1.63 / 4000**0.5


def test_the_bridge_loss_takes_path_density_and_coupling(float64):
    data, source, _, _ = bridges(64)
    path = paths.cosine()
    density = times.uniform_density(path, start=0.9, end=0.6)

    @jax.jit
    def run(key):
        model = Recorder()
        spread = constant_spread(0.0)
        coupling = couplings.optimal
        bridge_matching_loss(model, key, data, source, spread=spread, path=path, density=density, coupling=coupling)
        return model.calls[0]

    x_t, t = run(jax.random.key(1))
    assert np.all((t > 0.6) & (t < 0.9))
    paired = source[couplings.optimal(jax.random.key(0), source, data)]
    np.testing.assert_allclose(x_t, paths.interpolate(path, data, paired, t), rtol=1e-10)


def test_the_coupling_sees_the_labels_and_its_own_key():
    data, source, _, _ = bridges(8, dtype=np.float32)
    label, seen = jnp.arange(8) % 3, []

    def coupling(key, source, data, *, label=None):
        seen.append((key, source, data, label))
        return jnp.arange(8)

    def loss(**options):
        return bridge_matching_loss(
            lambda x, t: x, jax.random.key(1), data, source, spread=constant_spread(0.3), **options
        )

    coupled = loss(coupling=coupling, label=label)
    key, *arrays = seen[0]
    for given, expected in zip(arrays, (source, data, label), strict=True):
        np.testing.assert_array_equal(given, expected)
    assert key != jax.random.key(1)
    np.testing.assert_array_equal(coupled, loss())  # the other draws are those without a coupling


def test_optimal_pairs_leave_less_to_regress():
    """OT-CFM: the loss of the best field, which is the conditional variance of the velocity, falls (here to a constant)."""
    data, source, _, _ = bridges(256, dtype=np.float32)

    def constant_field(coupling):
        loss = bridge_matching_loss(
            lambda x, t: jnp.broadcast_to(jnp.mean(data - source, axis=0, keepdims=True), x.shape),
            jax.random.key(0),
            data,
            source,
            spread=constant_spread(0.0),
            coupling=coupling,
        )
        return float(jnp.mean(loss))

    entropic = couplings.entropic(0.5)
    assert constant_field(couplings.optimal) < constant_field(entropic) < constant_field(couplings.independent)


def test_wrong_shapes_of_bridges_raise():
    data, t, spread = jnp.zeros((4, 2)), jnp.full(4, 0.5), constant_spread(0.1)
    model = lambda x, t: x  # noqa: E731
    for arrays in ((data[:, :1], data, t), (data, data[:3], t), (data, data, t[:, None])):
        with pytest.raises(ValueError, match="must agree"):
            bridge_matching_error(model, data, *arrays, spread=spread)
    with pytest.raises(ValueError, match="model returned shape"):
        bridge_matching_error(lambda x, t: x[:, :1], data, data, data, t, spread=spread)
    with pytest.raises(ValueError, match="must agree"):
        bridge_matching_loss(model, jax.random.key(0), data, data[:3], spread=spread)
