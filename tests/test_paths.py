"""Paths: parity of tables, ends, transitions and posteriors from Bayes' rule, the SDE of the marginals, log SNR."""

import functools
from pathlib import Path as File

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from genjax import oracles, paths
from genjax.typing import Path

REFERENCE = File(__file__).parent / "reference"
PATHS = {
    "linear": paths.linear(),
    "linear_sigma_min": paths.linear(0.1),
    "cosine": paths.cosine(),
    "vp": paths.vp(),
    "sub_vp": paths.sub_vp(),
    "ve": paths.ve(),
    "edm": paths.edm(),
    "ddpm_linear": paths.ddpm(paths.linear_betas(1000)),
    "ddpm_cosine": paths.ddpm(paths.cosine_betas(1000)),
    "ddpm_zero_snr": paths.ddpm(paths.zero_terminal_snr(paths.scaled_linear_betas(1000))),
}
every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
STEP_PAIRS = [(0.1, 0.2), (0.2, 0.7), (0.6, 0.6001), (0.05, 0.95)]  # shares of the way from noise to data
INSIDE = np.array([0.05035, 0.25035, 0.50035, 0.75035, 0.95035])  # between the knots of a schedule of 1000 steps


def reference(name):
    return np.load(REFERENCE / f"{name}.npz")


def check(name, found, expected, tolerance, scale=1.0):
    """The largest difference in units of `scale`, which may be an array. NumPy's, as JAX may round to single precision."""
    difference = (np.abs(np.asarray(found) - expected) / scale).max()
    print(f"{name}, {found.dtype}: {difference:.1e}")
    assert difference < tolerance


def at(path, share):
    """The time `share` of the way from noise to data."""
    return path.t_noise + np.asarray(share) * (path.t_data - path.t_noise)


def knot(path, share):
    return paths.knots(path, jnp.asarray(at(path, share)))


def slope(function, t, h=1e-6):
    """Central difference."""
    return (np.asarray(function(jnp.asarray(t + h))) - np.asarray(function(jnp.asarray(t - h)))) / (2 * h)


# Ends


@every_path
def test_alpha_falls_and_sigma_rises_towards_the_noise(path):
    knots = knot(path, np.linspace(0, 1, 101))
    assert np.all(np.diff(knots.alpha) >= 0)
    assert np.all(np.diff(knots.sigma) <= 0)
    assert np.all(np.diff(paths.log_snr(path, knots.t)) > 0)


@pytest.mark.parametrize("name", [name for name in PATHS if name not in ("ve", "linear_sigma_min")])
def test_the_data_end_is_clean(name):
    end = knot(PATHS[name], 1.0)
    assert (float(end.alpha), float(end.sigma)) == (1.0, 0.0)
    assert paths.log_snr(PATHS[name], end.t) == np.inf


@pytest.mark.parametrize("name", ["linear", "cosine", "ddpm_zero_snr"])
def test_the_noise_end_is_pure_noise(name):
    end = knot(PATHS[name], 0.0)
    assert (float(end.alpha), float(end.sigma)) == (0.0, 1.0)
    assert paths.log_snr(PATHS[name], end.t) == -np.inf


def test_the_exploding_paths_end_at_their_levels(float64):
    ends = knot(paths.ve(0.02, 30.0), np.array([0.0, 1.0]))
    np.testing.assert_allclose(ends.sigma, [30.0, 0.02], rtol=1e-14)
    np.testing.assert_array_equal(ends.alpha, 1.0)
    assert float(knot(paths.edm(40.0), 0.0).sigma) == 40.0


def test_lipmans_path_ends_at_sigma_min(float64):
    """`x_t = t data + (1 - (1 - sigma_min) t) noise`, whose velocity is constant in t."""
    ends = knot(PATHS["linear_sigma_min"], np.array([0.0, 1.0]))
    np.testing.assert_allclose(ends.alpha, [0.0, 1.0])
    np.testing.assert_allclose(ends.sigma, [1.0, 0.1], rtol=1e-14)
    t, data, noise = jnp.asarray([0.2, 0.9]), jnp.asarray([[2.0], [3.0]]), jnp.asarray([[-1.0], [4.0]])
    velocity = paths.velocity(PATHS["linear_sigma_min"], data, noise, t)
    np.testing.assert_allclose(velocity, data - 0.9 * noise, rtol=1e-14)


@pytest.mark.parametrize("name", ["cosine", "vp", "ddpm_linear", "ddpm_cosine", "ddpm_zero_snr"])
def test_variance_is_preserved(name, float64):
    share = np.arange(101) / 100  # knots of the discrete schedules, between which the variance dips
    knots = knot(PATHS[name], share)
    np.testing.assert_allclose(knots.alpha**2 + knots.sigma**2, 1.0, atol=1e-13)


def test_sub_vp_has_the_smaller_variance_of_vp(float64):
    vp, sub_vp = (knot(PATHS[name], INSIDE) for name in ("vp", "sub_vp"))
    np.testing.assert_array_equal(sub_vp.alpha, vp.alpha)
    np.testing.assert_allclose(sub_vp.sigma, vp.sigma**2, rtol=1e-14)


# Parity


OPEN = {  # paths of the peer that have no name here: a path is any two functions
    "polynomial2": Path(alpha=lambda t: t**2, sigma=lambda t: 1 - t**2, t_data=1.0, t_noise=0.0),
    "linear_vp": Path(alpha=lambda t: t, sigma=lambda t: jnp.sqrt(1 - t**2), t_data=1.0, t_noise=0.0),
}


@pytest.mark.parametrize(("x64", "tolerance"), [(True, 1e-10), (False, 1e-5)])
@pytest.mark.parametrize(
    ("peer", "path", "sign"),
    [
        ("cond_ot", PATHS["linear"], 1),
        ("cosine", PATHS["cosine"], -1),
        ("vp", PATHS["vp"], -1),
        ("polynomial2", OPEN["polynomial2"], 1),
        ("linear_vp", OPEN["linear_vp"], 1),
    ],
    ids=["cond_ot", "cosine", "vp", "polynomial2", "linear_vp"],
)
def test_parity_with_flow_matching_paths(peer, path, sign, x64, tolerance):
    """The peer's clock runs from noise (0) to data (1) on every path: where ours runs back, t is 1 - t and a slope -1 of it."""
    numbers = reference("flow_matching_paths")
    grid_t, t, data, noise = (numbers[name] for name in ("grid_t", "t", "data", "noise"))
    if sign == -1:
        grid_t, t = 1 - grid_t, 1 - t

    @jax.jit
    def ours(grid_t, t, data, noise):
        d_alpha, d_sigma = paths.derivatives(path, grid_t)
        return {
            "alpha": path.alpha(grid_t),
            "sigma": path.sigma(grid_t),
            "d_alpha": sign * d_alpha,
            "d_sigma": sign * d_sigma,
            "x_t": paths.interpolate(path, data, noise, t),
            "dx_t": sign * paths.velocity(path, data, noise, t),
        }

    with jax.enable_x64(x64):
        found = ours(grid_t, t, data, noise)
    for name, value in found.items():
        expected = numbers[f"{peer}_{name}"]
        check(f"{peer} {name}", value, expected, tolerance, scale=1.0 if x64 else np.maximum(1, np.abs(expected)))


@pytest.mark.parametrize(("x64", "tolerance"), [(True, 1e-12), (False, 1e-5)])
@pytest.mark.parametrize(("name", "peer"), [("vp", "vp"), ("sub_vp", "subvp"), ("ve", "ve")])
def test_parity_with_sdes(name, peer, x64, tolerance):
    numbers, path = reference("sde_constants"), PATHS[name]
    stays = np.ones_like(numbers["t"])
    expected = {
        "alpha": numbers["vp_alpha"] if name != "ve" else stays,
        "sigma": numbers[f"{peer}_sigma"],
        "drift": numbers["drift_coefficient"] if name != "ve" else 0 * stays,
        "diffusion": numbers[f"{peer}_g"],
    }
    if name != "ve":
        expected["beta"] = numbers["beta"]

    @jax.jit
    def ours(t):
        drift, diffusion = paths.drift_and_diffusion(path, t)
        found = {"alpha": path.alpha(t), "sigma": path.sigma(t), "drift": drift, "diffusion": diffusion}
        return found | ({"beta": -2 * drift} if name != "ve" else {})  # their drift is -beta / 2 x

    with jax.enable_x64(x64):
        found = ours(numbers["t"])
    for quantity, value in found.items():
        scale = np.where(expected[quantity] == 0, 1, np.abs(expected[quantity]))
        check(f"{name} {quantity}", value, expected[quantity], tolerance, scale=scale)


def test_parity_of_discrete_sdes(float64):
    """The chains that score_sde takes for VE and VP: levels of the path at 1000 even times, and betas a thousandth of beta(t)."""
    numbers = reference("sde_constants")
    levels = PATHS["ve"].sigma(jnp.linspace(0, 1, 1000))
    np.testing.assert_allclose(levels, numbers["ve_discrete_sigmas"], rtol=1e-12)
    betas = paths.linear_betas(1000, 0.1 / 1000, 20 / 1000)
    np.testing.assert_allclose(betas, numbers["vp_discrete_betas"], rtol=1e-12)


@pytest.mark.parametrize(
    ("peer", "schedule"),
    [
        ("linear", paths.linear_betas),
        ("scaled_linear", functools.partial(paths.scaled_linear_betas, start=1e-4, end=0.02)),
        ("squaredcos_cap_v2", paths.cosine_betas),
    ],
)
@pytest.mark.parametrize("zero_snr", [False, True])
def test_parity_of_beta_schedules(peer, schedule, zero_snr, float64):
    numbers = reference("beta_tables")
    rows, peer = numbers["rows"], f"{peer}_zero_snr" if zero_snr else peer
    betas = paths.zero_terminal_snr(schedule(1000)) if zero_snr else schedule(1000)
    assert betas.dtype == np.float64
    np.testing.assert_allclose(betas[rows], numbers[f"{peer}_betas"], atol=1e-12)
    t = jnp.asarray((rows + 1) / 1000)
    np.testing.assert_allclose(paths.ddpm(betas).alpha(t) ** 2, numbers[f"{peer}_alphas_cumprod"], atol=1e-12)


@pytest.mark.parametrize("schedule", [paths.linear_betas, paths.scaled_linear_betas, paths.cosine_betas])
def test_zero_terminal_snr_is_exactly_zero(schedule):
    betas = schedule(500)
    rescaled = paths.zero_terminal_snr(betas)
    assert rescaled[-1] == 1.0
    assert rescaled[0] == pytest.approx(betas[0], rel=1e-9)
    assert float(paths.ddpm(rescaled).alpha(jnp.asarray(1.0))) == 0.0


@pytest.mark.parametrize(("chain", "path"), [("linear", "ddpm_linear"), ("squaredcos_cap_v2", "ddpm_cosine")])
@pytest.mark.parametrize(("x64", "tolerance"), [(True, 1e-10), (False, 1e-5)])
def test_parity_of_the_snr_of_chains(chain, path, x64, tolerance):
    numbers = reference("losses_samplers_weights")
    with jax.enable_x64(x64):
        snr = jax.jit(lambda t: jnp.exp(paths.log_snr(PATHS[path], t)))((numbers["min_snr_index"] + 1) / 1000)
    expected = numbers[f"min_snr_{chain}_snr"]
    check(f"SNR of {chain}", snr, expected, tolerance, scale=expected)


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize(("x64", "tolerance"), [(True, 1e-10), (False, 1e-5)])
def test_parity_of_ddpm_steps(strided, x64, tolerance):
    """The noisy examples, and the mean and variances of single steps from t to t - 1 and of steps to the next visited t.

    An index i of the peer is our i + 1 of 1000, and its -1 the data.
    """
    numbers, path, prefix = reference("ddpm_steps"), PATHS["ddpm_linear"], "strided_" if strided else ""
    visited = numbers[f"{prefix}timesteps"]
    following = np.append(visited[1:], -1) if strided else visited - 1
    expected = {name: numbers[f"{prefix}{name}"] for name in ("x_t", "mean", "variance_small", "variance_large")}

    @jax.jit
    @jax.vmap
    def step(now, then, x_t):
        now, then = paths.knots(path, now), paths.knots(path, then)
        estimate = oracles.denoise(mix, x_t, now.alpha, now.sigma).data
        posterior = paths.posterior(x_t, estimate, now, then)
        small = jnp.maximum(posterior.variance, 1e-20)  # the peer's clamp
        return {
            "x_t": paths.interpolate(path, jnp.asarray(numbers["data"]), jnp.asarray(numbers["noise"]), now.t),
            "mean": posterior.mean,
            "variance_small": small,
            "variance_large": paths.transition(x_t, then, now).variance,
            "data_prediction": estimate,
            "std_small_log": jnp.sqrt(small),  # by this name the peer returns a standard deviation
        }

    if not strided:
        expected |= {name: numbers[name] for name in ("data_prediction", "std_small_log")}
    with jax.enable_x64(x64):
        mix = oracles.mixture(*(numbers[f"mixture_{name}"] for name in ("weights", "means", "covs")))
        times = ((index + 1) / 1000 for index in (visited, following))
        found = step(*(jnp.asarray(values) for values in (*times, numbers[f"{prefix}x_t"])))
    for name, value in expected.items():
        check(f"{prefix}{name}", found[name], value, tolerance)


# The chain of betas


def test_ddpm_multiplies_its_betas(float64):
    betas = np.array([0.1, 0.3, 0.2, 1.0])
    knots = paths.knots(paths.ddpm(betas), jnp.arange(5) / 4)
    np.testing.assert_allclose(knots.alpha**2, [1, 0.9, 0.9 * 0.7, 0.9 * 0.7 * 0.8, 0], rtol=1e-14)
    for k, beta in enumerate(betas[:3]):
        before, after = (type(knots)(*(values[i] for values in knots)) for i in (k, k + 1))
        step = paths.transition(jnp.ones((1, 1)), before, after)
        np.testing.assert_allclose(step.mean, np.sqrt(1 - beta), rtol=1e-13)
        np.testing.assert_allclose(step.variance, beta, rtol=1e-13)


def test_ddpm_single_precision_knots_are_the_tables():
    betas = paths.linear_betas(1000)
    path, t = paths.ddpm(betas), jnp.arange(1, 1001, dtype=jnp.float32) / 1000
    alpha_bar = np.cumprod(1 - betas)
    np.testing.assert_allclose(path.alpha(t), np.sqrt(alpha_bar), atol=3e-7)
    np.testing.assert_allclose(path.sigma(t), np.sqrt(1 - alpha_bar), atol=2e-6)


def test_ddpm_slope_at_a_knot_is_the_cleaner_sides(float64):
    betas = np.array([0.1, 0.3, 0.2, 0.4])
    alphas = np.sqrt(np.concatenate([[1.0], np.cumprod(1 - betas)]))
    d_alpha, _ = paths.derivatives(paths.ddpm(betas), jnp.arange(1, 5) / 4)
    np.testing.assert_allclose(d_alpha, 4 * np.diff(alphas), rtol=1e-12)


@pytest.mark.parametrize("name", ["ddpm_linear", "ddpm_cosine", "ddpm_zero_snr"])
def test_ddpm_slopes_in_single_precision(name):
    """Differences of neighbours a thousandth apart, to the precision of a float32 all the same."""
    single = paths.derivatives(PATHS[name], jnp.asarray(INSIDE, jnp.float32))
    with jax.enable_x64(True):
        double = paths.derivatives(PATHS[name], jnp.asarray(INSIDE))
    np.testing.assert_allclose(single, double, rtol=1e-6)


@pytest.mark.parametrize("betas", [[], [[0.1]], [0.0], [0.1, 1.1], [-0.1], [np.nan]])
def test_bad_betas_are_refused(betas):
    with pytest.raises(ValueError, match="betas must be"):
        paths.ddpm(np.asarray(betas))


def test_the_last_step_of_the_usual_schedule_is_almost_noise(float64):
    """1000 linear betas, 1e-4 to 0.02: x_T given data ~ N(6.35e-3 data, 1 - 4.04e-5), whose KL to N(0, 1) follows."""
    path, data = PATHS["ddpm_linear"], 1.7
    last = paths.transition(jnp.full((1, 1), data), knot(path, 1.0), knot(path, 0.0))
    mean, variance = float(last.mean[0, 0]), float(last.variance)
    assert mean / data == pytest.approx(6.35e-3, abs=0.005e-3)
    assert 1 - variance == pytest.approx(4.04e-5, abs=0.005e-5)

    def integrand(x):
        log_ratio = norm.logpdf(x, mean, variance**0.5) - norm.logpdf(x)
        return norm.pdf(x, mean, variance**0.5) * log_ratio

    integral, _ = quad(integrand, -12, 12, epsabs=1e-14)
    closed = 0.5 * (variance + mean**2 - 1 - np.log(variance))
    assert integral == pytest.approx(closed, rel=1e-6)
    assert closed == pytest.approx(0.5 * 4.04e-5 * data**2, rel=2e-3)  # 2.02e-5 data^2 nats a dimension


# Transitions and posteriors


@every_path
@pytest.mark.parametrize("shares", STEP_PAIRS)
def test_marginal_is_the_transition_of_the_marginal(path, shares, float64):
    noisier, cleaner = (knot(path, share) for share in shares)
    step = paths.transition(cleaner.alpha * jnp.ones((1, 1)), cleaner, noisier)
    scale = float(noisier.alpha / cleaner.alpha)
    np.testing.assert_allclose(step.mean, noisier.alpha, rtol=1e-12)
    np.testing.assert_allclose(scale**2 * cleaner.sigma**2 + step.variance, noisier.sigma**2, rtol=1e-11)


@every_path
def test_transitions_compose(path, float64):
    noisy, middle, clean = (knot(path, share) for share in (0.1, 0.4, 0.9))
    x = jnp.asarray([[1.3, -0.2]])
    first = paths.transition(x, clean, middle)
    second = paths.transition(first.mean, middle, noisy)
    both = paths.transition(x, clean, noisy)
    np.testing.assert_allclose(second.mean, both.mean, rtol=1e-12)
    carried = (noisy.alpha / middle.alpha) ** 2 * first.variance
    np.testing.assert_allclose(carried + second.variance, both.variance, rtol=1e-12)


@every_path
@pytest.mark.parametrize("shares", STEP_PAIRS)
def test_posterior_is_bayes_rule(path, shares, float64):
    """q(x_s | x_t, data) is proportional to q(x_t | x_s) q(x_s | data): precisions add."""
    now, then = (knot(path, share) for share in shares)
    generator = np.random.default_rng(0)
    x_t, data = (jnp.asarray(generator.normal(size=(5, 3))) for _ in range(2))
    unit = paths.transition(jnp.ones((1, 1)), then, now)
    scale, variance = float(unit.mean[0, 0]), float(unit.variance)
    precision = 1 / then.sigma**2 + scale**2 / variance
    mean = (then.alpha * data / then.sigma**2 + scale * x_t / variance) / precision
    bayes = paths.posterior(x_t, data, now, then)
    np.testing.assert_allclose(bayes.variance, 1 / precision, rtol=1e-9)
    np.testing.assert_allclose(bayes.mean, mean, rtol=1e-8, atol=1e-9)


@every_path
def test_posterior_to_clean_data_is_the_data(path):
    now, then = knot(path, 0.5), knot(path, 1.0)
    data = jnp.asarray([[1.0, 2.0]])
    step = paths.posterior(jnp.zeros((1, 2)), data, now, then._replace(sigma=jnp.zeros(())))
    np.testing.assert_array_equal(step.mean, data)
    assert float(step.variance) == 0.0


@pytest.mark.parametrize("name", ["linear", "cosine", "ddpm_zero_snr"])
def test_posterior_from_pure_noise_is_the_marginal(name):
    now, then = knot(PATHS[name], 0.0), knot(PATHS[name], 0.3)
    data = jnp.asarray([[1.0, 2.0]])
    step = paths.posterior(jnp.full((1, 2), 5.0), data, now, then)
    np.testing.assert_allclose(step.mean, then.alpha * data, rtol=1e-6)
    np.testing.assert_allclose(step.variance, then.sigma**2, rtol=1e-6)
    assert not np.isfinite(paths.transition(data, now, now).variance)  # singular where alpha_now = 0


# The SDE and the velocity


@every_path
def test_drift_and_diffusion_carry_the_marginals(path, float64):
    t = at(path, INSIDE)
    drift, diffusion = paths.drift_and_diffusion(path, jnp.asarray(t))
    alpha, sigma = path.alpha(jnp.asarray(t)), path.sigma(jnp.asarray(t))
    np.testing.assert_allclose(slope(path.alpha, t), drift * alpha, rtol=1e-6, atol=1e-8)
    towards_noise = np.sign(path.t_noise - path.t_data)
    variance_slope = slope(lambda t: path.sigma(t) ** 2, t)
    np.testing.assert_allclose(
        variance_slope, 2 * drift * sigma**2 + towards_noise * diffusion**2, rtol=1e-6, atol=1e-8
    )


def test_vp_has_the_sde_of_its_betas(float64):
    t = jnp.asarray(INSIDE)
    beta = 0.3 + t * (12 - 0.3)
    drift, diffusion = paths.drift_and_diffusion(paths.vp(0.3, 12.0), t)
    np.testing.assert_allclose(drift, -beta / 2, rtol=1e-12)
    np.testing.assert_allclose(diffusion**2, beta, rtol=1e-12)


@every_path
def test_a_short_step_has_variance_g_squared_dt(path, float64):
    ratios = []
    for dt in (1e-4, 5e-5):
        shares = INSIDE, INSIDE - dt
        clean, noisy = (paths.knots(path, jnp.asarray(at(path, share))) for share in shares)
        _, diffusion = paths.drift_and_diffusion(path, clean.t)
        variance = paths.transition(jnp.ones_like(clean.t), clean, noisy).variance
        ratios.append(np.asarray(variance / (diffusion**2 * jnp.abs(noisy.t - clean.t))) - 1)
    assert np.abs(ratios[0]).max() < 0.01
    np.testing.assert_allclose(ratios[1], ratios[0] / 2, rtol=0.05, atol=1e-7)  # first order in dt


@pytest.mark.parametrize("name", ["linear", "cosine", "ddpm_zero_snr"])
def test_drift_and_diffusion_are_infinite_where_alpha_is_zero(name):
    path = PATHS[name]
    drift, diffusion = paths.drift_and_diffusion(path, jnp.asarray(path.t_noise))
    assert np.isinf(drift)
    assert np.isinf(diffusion)


@every_path
def test_velocity_is_the_slope_of_x_t(path, float64):
    generator = np.random.default_rng(1)
    data, noise = (jnp.asarray(generator.normal(size=(len(INSIDE), 2, 3))) for _ in range(2))
    t = at(path, INSIDE)
    expected = slope(lambda t: paths.interpolate(path, data, noise, t), t)
    found = paths.velocity(path, data, noise, jnp.asarray(t))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_vp_velocity_is_singular_at_the_data_and_sub_vp_velocity_is_not():
    zero = jnp.asarray(0.0)
    assert np.isinf(paths.derivatives(PATHS["vp"], zero)[1])
    assert np.isfinite(paths.derivatives(PATHS["sub_vp"], zero)[1])


# Log SNR


@every_path
def test_log_snr_and_its_inverse_in_double_precision(path, float64):
    t = jnp.asarray(at(path, np.linspace(0.01, 0.99, 50)))
    value = paths.log_snr(path, t)
    np.testing.assert_allclose((path.alpha(t) / path.sigma(t)) ** 2, np.exp(value), rtol=1e-12)
    back = paths.time_of_log_snr(path, value)
    np.testing.assert_allclose(back, t, rtol=0, atol=1e-12 * abs(path.t_noise - path.t_data))


@pytest.mark.parametrize("name", ["linear", "vp", "ve", "edm", "ddpm_linear"])
def test_the_inverse_of_log_snr_in_single_precision(name):
    """To 4e-6 of the clock's length; values off the path give exactly its ends."""
    path = PATHS[name]
    t = jnp.asarray(at(path, np.linspace(0.01, 0.99, 50)), jnp.float32)
    ends = np.asarray([path.t_noise, path.t_data], np.float32)
    at_ends = np.asarray(paths.log_snr(path, jnp.asarray(ends)))
    beyond = np.where(np.isinf(at_ends), at_ends, at_ends + np.array([-1, 1], np.float32))
    values = jnp.concatenate([paths.log_snr(path, t), jnp.asarray([*beyond, -np.inf, np.inf], jnp.float32)])
    back = paths.time_of_log_snr(path, values)
    assert back.dtype == jnp.float32
    np.testing.assert_allclose(back[:50], t, rtol=0, atol=4e-6 * abs(path.t_noise - path.t_data))
    np.testing.assert_array_equal(back[50:], [*ends, *ends])


@every_path
def test_bisection_finds_what_the_closed_form_does(path, float64):
    t = jnp.asarray(at(path, np.linspace(0.01, 0.99, 20)))
    value = paths.log_snr(path, t)
    bisected = paths.time_of_log_snr(path._replace(time_of_ratio=None), value)
    np.testing.assert_allclose(
        bisected, paths.time_of_log_snr(path, value), atol=1e-12 * abs(path.t_noise - path.t_data)
    )


# As functions of arrays


@pytest.mark.parametrize("entries", [1, 2, 3, 4, 9, 10, 1001])
def test_the_search_of_a_table_is_that_of_numpy(entries, float64):
    table = np.sort(np.random.default_rng(0).normal(size=entries))
    values = np.concatenate([table, (table[1:] + table[:-1]) / 2, [-np.inf, table[0] - 1, table[-1] + 1, np.inf]])
    for last in (table[-1], np.inf):
        ascending = np.append(table[:-1], last)
        found = paths._count_below(ascending)(jnp.asarray(values))
        np.testing.assert_array_equal(found, np.searchsorted(ascending, values))


@every_path
@pytest.mark.parametrize("event_shape", [(), (2, 2, 1)])
def test_a_scalar_time_is_a_batch_of_that_time(path, event_shape):
    generator = np.random.default_rng(2)
    data, noise = (jnp.asarray(generator.normal(size=(4, *event_shape)), jnp.float32) for _ in range(2))
    t = float(at(path, 0.3))
    for function in (paths.interpolate, paths.velocity):
        batched = function(path, data, noise, jnp.full(4, t))
        assert batched.shape == data.shape
        np.testing.assert_allclose(batched, function(path, data, noise, t), rtol=1e-5, atol=1e-6)


@every_path
def test_the_gradient_of_x_t_in_time_is_the_velocity(path, float64):
    data, noise = jnp.asarray([[0.3, -1.0]]), jnp.asarray([[1.1, 0.4]])

    def total(t):
        return paths.interpolate(path, data, noise, t).sum()

    t = jnp.asarray(at(path, INSIDE))
    repeated = (jnp.broadcast_to(value, (len(INSIDE), 2)) for value in (data, noise))
    found = jax.jit(jax.vmap(jax.grad(total)))(t)
    np.testing.assert_allclose(found, paths.velocity(path, *repeated, t).sum(axis=1), rtol=1e-12)


def results_of_every_function(path, data, t):
    now, then = (paths.knots(path, t[i]) for i in (0, 1))
    return (
        paths.interpolate(path, data, data, t),
        paths.velocity(path, data, data, t),
        paths.log_snr(path, t),
        paths.time_of_log_snr(path, t),
        paths.drift_and_diffusion(path, t),
        paths.transition(data, then, now),
        paths.posterior(data, data, now, then),
    )


@every_path
@pytest.mark.parametrize(("x64", "dtype"), [(False, jnp.float32), (True, jnp.float32), (True, jnp.float64)])
def test_no_silent_promotion(path, x64, dtype):
    """Single precision stays single when double is enabled, too."""
    with jax.enable_x64(x64), jax.numpy_dtype_promotion("strict"):
        data, t = jax.ShapeDtypeStruct((2, 3), dtype), jax.ShapeDtypeStruct((2,), dtype)
        results = jax.eval_shape(functools.partial(results_of_every_function, path), data, t)
    assert {leaf.dtype for leaf in jax.tree.leaves(results)} == {jnp.dtype(dtype)}
