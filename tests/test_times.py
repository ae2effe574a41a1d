"""Time grids: parity, direction, spacing; time densities: their distributions, pairs, strata and ranges."""

import functools
from pathlib import Path as File

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from genjax import oracles, paths, samplers, times

REFERENCE = File(__file__).parent / "reference"
KEY = jax.random.key(11)
PATHS = {
    "linear": paths.linear(),
    "cosine": paths.cosine(),
    "vp": paths.vp(),
    "sub_vp": paths.sub_vp(),
    "ve": paths.ve(),
    "edm": paths.edm(),
    "ddpm": paths.ddpm(paths.linear_betas(1000)),
}
every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
DENSITIES = {
    "uniform": times.uniform_density,
    "low_discrepancy": times.low_discrepancy_density,
    "antithetic": times.antithetic_density,
    "logit_normal": times.logit_normal_density,
    "cosmap": times.cosmap_density,
}
NUM = 4000


def share(path, t):
    """How far t is on the way from noise (0) to data (1)."""
    return (np.asarray(t, np.float64) - path.t_noise) / (path.t_data - path.t_noise)


def ratio(path, t):
    """sigma / alpha."""
    return np.asarray(path.sigma(t) / path.alpha(t))


def agrees(draws, distribution):
    return stats.kstest(np.asarray(draws), distribution).pvalue > 1e-3


# Grids


@every_path
@pytest.mark.parametrize("grid", [times.uniform, times.quadratic, times.karras, times.log_snr, times.beta_quantiles])
@pytest.mark.parametrize("steps", [1, 5])
def test_grids_run_from_noise_to_data(path, grid, steps):
    t = grid(path, steps)
    assert t.shape == (steps + 1,)
    assert t.dtype == jnp.float32
    assert float(t[-1]) == path.t_data
    shares = share(path, t)
    assert np.all(np.diff(shares) >= 0)
    assert np.all((shares >= 0) & (shares <= 1))
    if grid in (times.uniform, times.quadratic):
        assert float(t[0]) == path.t_noise
        expected = np.linspace(0, 1, steps + 1) if grid is times.uniform else 1 - np.linspace(1, 0, steps + 1) ** 2
        np.testing.assert_allclose(shares, expected, atol=1e-6)


@pytest.mark.parametrize("grid", [times.uniform, times.quadratic])
def test_grids_between_other_ends(grid):
    t = grid(paths.vp(), 4, start=0.9, end=0.1)
    np.testing.assert_allclose([t[0], t[-1]], [0.9, 0.1], rtol=1e-6)


@pytest.mark.parametrize("name", ["edm", "cosine", "linear", "vp"])
@pytest.mark.parametrize("steps", [10, 18])
def test_karras_grid_is_the_peers_in_sigma_over_alpha(name, steps, float64):
    sigmas = np.load(REFERENCE / "sigma_grids.npz")[f"karras_{steps}"]
    sigmas, path = (sigmas if name != "vp" else sigmas[sigmas < 100]), PATHS[name]
    t = times.karras(path, steps)
    tolerance = {"rtol": 1e-10, "atol": 1e-10} if name != "vp" else {"rtol": 1e-9}
    np.testing.assert_allclose(ratio(path, t), sigmas, **tolerance)


def test_karras_grid_without_the_data_end(float64):
    path = paths.edm()
    np.testing.assert_allclose(times.karras(path, 9, append_data=False), times.karras(path, 10)[:-1], rtol=1e-12)


def test_log_snr_grid_parity_on_a_beta_table(float64):
    """The peer's grid is uniform in log SNR between the two ends of the table, then 0."""
    sigmas = np.load(REFERENCE / "sigma_grids.npz")["diffusers_lu_linear_betas_10"]
    low, high = -2 * np.log(sigmas[0]), -2 * np.log(sigmas[-2])
    for path in (paths.ddpm(paths.linear_betas(1000)), paths.cosine()):
        t = times.log_snr(path, len(sigmas) - 1, low=low, high=high)
        found = ratio(path, t)
        np.testing.assert_allclose(found[:-1], sigmas[:-1], rtol=1e-9)
        assert found[-1] == 0


ALPHA_BAR = np.cumprod(1 - paths.linear_betas(1000))
TABLE_MAX, TABLE_MIN = np.sqrt(1 / ALPHA_BAR - 1)[[-1, 0]]  # 157.4 and 0.0100, the range of the grids of diffusers
GRIDS = {  # of k-diffusion, from sigma 80 to 0.002 but for vp, and of diffusers
    "karras_10": ("edm", lambda path: times.karras(path, 10)),
    "karras_18": ("edm", lambda path: times.karras(path, 18)),
    "exponential_10": ("edm", lambda path: times.log_snr(path, 10, low=-2 * np.log(80), high=-2 * np.log(0.002))),
    "polyexponential_rho1p5_10": (
        "edm",
        lambda path: times.log_snr(path, 10, low=-2 * np.log(80), high=-2 * np.log(0.002), rho=1.5),
    ),
    # even times down to 0.001, then the data; the peer's beta_d is beta_max - beta_min
    "vp_10": ("vp", lambda path: jnp.append(times.uniform(path, 9, end=1e-3), 0.0)),
    "diffusers_karras_linear_betas_10": (
        "ddpm",
        lambda path: times.karras(path, 10, sigma_min=TABLE_MIN, sigma_max=TABLE_MAX),
    ),
    "diffusers_exponential_linear_betas_10": (
        "ddpm",
        lambda path: times.log_snr(path, 10, low=-2 * np.log(TABLE_MAX), high=-2 * np.log(TABLE_MIN)),
    ),
    "diffusers_beta_linear_betas_10": (
        "ddpm",
        lambda path: times.beta_quantiles(path, 10, sigma_min=TABLE_MIN, sigma_max=TABLE_MAX),
    ),
    "diffusers_lu_linear_betas_10": (  # the same as its exponential one
        "ddpm",
        lambda path: times.log_snr(path, 10, low=-2 * np.log(TABLE_MAX), high=-2 * np.log(TABLE_MIN)),
    ),
}


@pytest.mark.parametrize(("x64", "tolerance"), [(True, 1e-10), (False, 1e-5)])
@pytest.mark.parametrize("name", GRIDS)
def test_parity_of_grids(name, x64, tolerance):
    """sigma / alpha at the knots; the last is 0."""
    path, grid = PATHS[GRIDS[name][0]], GRIDS[name][1]
    with jax.enable_x64(x64):
        knots = jax.jit(lambda: paths.knots(path, grid(path)))()
    found, expected = np.asarray(knots.sigma / knots.alpha), np.load(REFERENCE / "sigma_grids.npz")[name]
    difference = np.abs(found[:-1] / expected[:-1] - 1).max()
    print(f"{name}, {found.dtype}: {difference:.1e}")
    assert difference < tolerance
    assert found[-1] == expected[-1] == 0


@every_path
def test_log_snr_grid_is_even(path):
    t = times.log_snr(path, 6, low=-3.0, high=3.0, append_data=False)
    np.testing.assert_allclose(paths.log_snr(path, t), np.linspace(-3, 3, 7), atol=2e-4)


def test_log_snr_grid_off_the_path_starts_at_its_end():
    assert float(times.log_snr(paths.ve(), 4, low=-30.0, high=3.0)[0]) == 1.0


@pytest.mark.parametrize("steps", [10, 50])
def test_parity_of_subsets(steps):
    numbers = np.load(REFERENCE / "timestep_subsets.npz")
    for name in ("linspace", "leading", "trailing"):
        indices = getattr(times, f"{name}_indices")(1000, steps)
        assert indices.dtype == np.int64
        np.testing.assert_array_equal(indices, numbers[f"ddim_{name}_{steps}"])
        # the peer's DPM-Solver family divides into one more and leaves out the last, index 0; not so trailing
        of_one_more = getattr(times, f"{name}_indices")(1000, steps + 1)[:-1]
        ours = indices if name == "trailing" else of_one_more
        np.testing.assert_array_equal(ours, numbers[f"dpm_{name}_{steps}"])
    np.testing.assert_array_equal(times.leading_indices(1000, 50, offset=1), numbers["ddim_leading_offset1_50"])


@pytest.mark.parametrize("subset", [times.linspace_indices, times.leading_indices, times.trailing_indices])
@pytest.mark.parametrize(("total", "steps"), [(7, 3), (1000, 1000), (10, 1), (1, 1)])
def test_subsets_descend_within_the_schedule(subset, total, steps):
    indices = subset(total, steps)
    assert len(indices) == steps
    assert np.all(np.diff(indices) < 0)
    assert 0 <= indices[-1] <= indices[0] < total


def test_subsets_round_to_the_nearest_index():
    np.testing.assert_array_equal(times.trailing_indices(10, 3), [9, 6, 2])  # 10, 6.67, 3.33, less 1
    np.testing.assert_array_equal(times.linspace_indices(10, 3), [9, 4, 0])  # 4.5, half to even


def test_discrete_grid_is_index_plus_one_then_clean_data():
    t = times.discrete(times.trailing_indices(1000, 4), 1000)
    np.testing.assert_allclose(t, [1.0, 0.75, 0.5, 0.25, 0.0], rtol=1e-7)


@pytest.mark.parametrize("steps", [0, -1])
def test_fewer_than_one_step_is_refused(steps):
    for grid in (times.uniform, times.quadratic, times.karras, times.log_snr, times.beta_quantiles):
        with pytest.raises(ValueError, match="at least 1"):
            grid(paths.linear(), steps)
    for subset in (times.linspace_indices, times.leading_indices, times.trailing_indices):
        with pytest.raises(ValueError, match="at least 1"):
            subset(1000, steps)


def test_more_steps_than_the_schedule_has_are_refused():
    for subset in (times.linspace_indices, times.leading_indices, times.trailing_indices):
        with pytest.raises(ValueError, match="at most"):
            subset(10, 11)


@pytest.mark.parametrize(("steps", "offset"), [(1000, 1), (10, 100), (10, -1)])
def test_an_offset_out_of_the_schedule_is_refused(steps, offset):
    with pytest.raises(ValueError, match="offset"):
        times.leading_indices(1000, steps, offset)


# Shift


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_shift_on_the_linear_path_is_the_closed_form(factor, float64):
    path = paths.linear()
    t = times.uniform(path, 10)
    noise_level = 1 - np.asarray(t)
    expected = 1 - factor * noise_level / (1 + (factor - 1) * noise_level)
    np.testing.assert_allclose(times.shift(path, t, factor), expected, rtol=1e-12, atol=1e-15)


@every_path
def test_shift_multiplies_sigma_over_alpha_and_keeps_the_ends(path, float64):
    t = times.uniform(path, 8)
    shifted = times.shift(path, t, 0.5)
    inside = slice(1, -1)
    reached = np.maximum(0.5 * ratio(path, t), ratio(path, jnp.asarray(path.t_data)))
    np.testing.assert_allclose(ratio(path, shifted)[inside], reached[inside], rtol=1e-9)
    np.testing.assert_array_equal(shifted[jnp.asarray([0, -1])], t[jnp.asarray([0, -1])])


# Densities


@every_path
@pytest.mark.parametrize("density", DENSITIES.values(), ids=DENSITIES)
@pytest.mark.parametrize("num", [1, 7])
def test_densities_stay_on_the_clock(path, density, num):
    t = density(path)(KEY, num)
    assert t.shape == (num,)
    assert t.dtype == jnp.float32
    assert np.all((share(path, t) >= 0) & (share(path, t) <= 1))
    np.testing.assert_array_equal(t, density(path)(KEY, num))


@pytest.mark.parametrize("density", DENSITIES.values(), ids=DENSITIES)
@pytest.mark.parametrize("bits", [0.0, 1 - 2**-23], ids=["least", "greatest"])
def test_no_draw_meets_an_end_of_the_path(density, bits, monkeypatch):
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape=(): jnp.full(shape, bits, jnp.float32))
    monkeypatch.setattr(jax.random, "normal", lambda key, shape=(): jnp.full(shape, 200 * bits - 100, jnp.float32))
    for path in (paths.linear(), paths.cosine()):
        t = density(path)(KEY, 256)
        assert np.all((t > 0) & (t < 1))
        assert np.all(np.isfinite(paths.log_snr(path, t)))


@pytest.mark.parametrize("path", [PATHS["linear"], PATHS["edm"]], ids=["linear", "edm"])
def test_uniform_density_is_uniform(path):
    assert agrees(share(path, times.uniform_density(path)(KEY, NUM)), "uniform")


@pytest.mark.parametrize("density", [times.uniform_density, times.low_discrepancy_density, times.antithetic_density])
def test_densities_between_other_ends(density):
    t = np.asarray(density(paths.linear(), start=0.2, end=0.6)(KEY, NUM))
    assert agrees((t - 0.2) / 0.4, "uniform")


def test_low_discrepancy_density_has_one_time_a_stratum():
    for seed in range(5):
        t = np.asarray(times.low_discrepancy_density(paths.linear())(jax.random.key(seed), 64))
        offsets = np.sort(t) - np.arange(64) / 64
        np.testing.assert_allclose(offsets, offsets[0], atol=1e-6)
        assert 0 <= offsets[0] < 1 / 64 + 1e-6


def test_each_time_of_a_low_discrepancy_batch_is_uniform():
    keys = jax.random.split(KEY, 1000)
    batches = jax.vmap(lambda key: times.low_discrepancy_density(paths.linear())(key, 3))(keys)
    for column in range(3):
        assert agrees(batches[:, column], "uniform")


@pytest.mark.parametrize("num", [8, 9])
def test_antithetic_density_mirrors(num):
    t = np.asarray(times.antithetic_density(paths.linear())(KEY, num))
    half = (num + 1) // 2
    np.testing.assert_allclose(t[half:], 1 - t[: num - half], atol=1e-7)


def test_antithetic_density_is_uniform():
    draws = np.asarray(times.antithetic_density(paths.linear())(KEY, 2 * NUM))
    assert agrees(draws[:NUM], "uniform")
    assert agrees(draws[NUM:], "uniform")


def test_logit_normal_density():
    t = np.asarray(times.logit_normal_density(paths.linear(), mean=-0.5, std=0.8)(KEY, NUM), np.float64)
    assert agrees(np.log(t / (1 - t)), stats.norm(-0.5, 0.8).cdf)
    on_vp = times.logit_normal_density(paths.vp(), mean=-0.5, std=0.8)(KEY, NUM)
    np.testing.assert_allclose(share(paths.vp(), on_vp), t, atol=1e-6)  # a negative mean is noisy on any clock


def test_lognormal_density():
    assert agrees(np.log(times.lognormal_density(-1.2, 1.2)(KEY, NUM)), stats.norm(-1.2, 1.2).cdf)


def test_cosmap_on_the_linear_path_has_the_log_snr_of_the_cosine_path():
    """log SNR of `cosine()` at uniform t is `-2 log tan(pi t / 2)`: P(log SNR < l) = 1 - 2/pi atan(exp(-l/2))."""
    linear = paths.linear()

    def cdf(value):
        return 1 - 2 / np.pi * np.arctan(np.exp(-np.asarray(value) / 2))

    from_cosmap = paths.log_snr(linear, times.cosmap_density(linear)(KEY, NUM))
    from_cosine = paths.log_snr(paths.cosine(), times.uniform_density(paths.cosine())(KEY, NUM))
    assert agrees(from_cosmap, cdf)
    assert agrees(from_cosine, cdf)


def test_cosmap_is_its_published_map():
    w = np.asarray(times.uniform_density(paths.linear())(KEY, NUM), np.float64)
    expected = 1 - 1 / (np.tan(np.pi / 2 * w) + 1)
    np.testing.assert_allclose(times.cosmap_density(paths.linear())(KEY, NUM), expected, atol=1e-6)


def test_discrete_density_hits_every_knot_evenly():
    t = np.asarray(times.discrete_density(10)(KEY, NUM), np.float64)
    values, counts = np.unique(np.round(10 * t), return_counts=True)
    np.testing.assert_array_equal(values, np.arange(1, 11))
    np.testing.assert_allclose(10 * t, np.round(10 * t), atol=1e-6)
    assert stats.chisquare(counts).pvalue > 1e-3


# As functions of arrays


@pytest.mark.parametrize("double", [False, True])
def test_no_silent_promotion(double):
    with jax.enable_x64(double), jax.numpy_dtype_promotion("strict"):
        path = paths.linear()
        grids = [grid(path, 3) for grid in (times.uniform, times.quadratic, times.karras, times.beta_quantiles)]
        grids += [times.discrete(times.trailing_indices(10, 3), 10), times.shift(path, grids[0], 2.0)]
        assert {grid.dtype for grid in grids} == {jnp.dtype(jnp.float64 if double else jnp.float32)}
        for density in (*(density(path) for density in DENSITIES.values()), times.lognormal_density()):
            assert jax.eval_shape(lambda key, density=density: density(key, 3), KEY).shape == (3,)
        assert times.discrete_density(10)(KEY, 3).shape == (3,)


def test_a_restart_goes_back_and_comes_down_to_where_it_left(float64):
    path = paths.edm()
    t = times.karras(path, 10)
    found = np.asarray(times.restart(path, t, low=0.5, high=3.0, steps=4, repeats=2))
    turn = int(np.flatnonzero(np.asarray(t) <= 0.5)[0])
    again = found[turn + 1 : turn + 6]
    np.testing.assert_allclose(found[: turn + 1], t[: turn + 1])
    np.testing.assert_allclose(found[turn + 6 : turn + 11], again)
    np.testing.assert_allclose(found[turn + 11 :], t[turn + 1 :])
    assert again[0] == pytest.approx(3.0)
    assert again[-1] == pytest.approx(float(t[turn]))
    np.testing.assert_allclose(np.diff(again ** (1 / 7)), np.diff(again ** (1 / 7))[0], rtol=1e-9)
    for options in ({"low": 4.0, "high": 3.0}, {"low": 1e-9, "high": 3.0}):
        with pytest.raises(ValueError, match=r"expected|no time"):
            times.restart(path, t, steps=4, repeats=1, **options)


# Optimised grids


EDM = paths.edm()


def denoise_two_modes(x, knot):
    return oracles.denoiser(oracles.mixture([0.4, 0.6], [[1.0, 0.5], [-1.0, 0.2]], [0.2, 0.1]))(x, knot)


@functools.cache
def starts_and_ends():
    noise = 80 * jax.random.normal(jax.random.key(0), (256, 2))
    knots = paths.knots(EDM, times.log_snr(EDM, 300, low=-2 * np.log(80), high=20.0))
    fine = samplers.dpm_solver_singlestep(EDM, order=3)
    solve = jax.jit(lambda noise: samplers.sample(fine, denoise_two_modes, jax.random.key(0), noise, knots))
    return np.asarray(noise), np.asarray(solve(noise))


@pytest.mark.parametrize(("name", "steps"), [("ddim", 5), ("dpmpp-2m", 10), ("unipc", 5)])
def test_an_optimised_grid_beats_the_best_one_made_by_hand(float64, name, steps):
    """In root mean square distance, on starts that the optimiser has not seen."""
    noise, exact = starts_and_ends()
    sampler = samplers.SAMPLERS[name](EDM)

    def error(knots, half=slice(0, 128)):
        ends = samplers.sample(sampler, denoise_two_modes, jax.random.key(0), jnp.asarray(noise[half]), knots)
        return jnp.mean((ends - exact[half]) ** 2)

    by_hand = [
        times.karras(EDM, steps),
        times.karras(EDM, steps, rho=3),
        times.log_snr(EDM, steps, low=-2 * np.log(80), high=2 * np.log(500)),
    ]
    held_out = jax.jit(lambda t: jnp.sqrt(error(paths.knots(EDM, t), slice(128, 256))))
    found, *others = (float(held_out(t)) for t in (times.optimise(error, EDM, by_hand[2]), *by_hand))
    print(f"{name}, {steps} calls: {found:.1e} optimised, {others} by hand")
    assert found < 0.8 * min(others)


@pytest.mark.parametrize("name", ["linear", "vp", "edm"])
def test_optimising_finds_the_grid_of_least_error_and_keeps_the_ends(float64, name):
    """linear starts at alpha = 0 and ends at sigma = 0; vp and edm end at sigma = 0."""
    path = {"linear": paths.linear(), "vp": paths.vp(), "edm": paths.edm()}[name]
    t = times.uniform(path, 6)
    target = jnp.asarray([-2.0, -1.0, 0.5, 2.0, 4.0])

    def error(knots):
        return 1 + jnp.sum((2 * jnp.log(knots.alpha[1:-1] / knots.sigma[1:-1]) - target) ** 2)

    found = times.optimise(error, path, t, iterations=500)
    np.testing.assert_allclose(paths.log_snr(path, found[1:-1]), target, atol=0.02)
    np.testing.assert_array_equal(found[jnp.asarray([0, -1])], t[jnp.asarray([0, -1])])


def test_a_grid_between_finite_ends_keeps_both(float64):
    path = paths.linear()
    t = times.uniform(path, 4, start=0.1, end=0.9)
    found = times.optimise(lambda knots: 1 + knots.t[1] ** 2, path, t, iterations=20)
    np.testing.assert_allclose(found[jnp.asarray([0, -1])], t[jnp.asarray([0, -1])], atol=1e-12)
    assert np.all(np.diff(found) > 0)
    assert found[1] < t[1]


def test_the_grid_stays_where_nothing_is_better(float64):
    path = paths.vp()
    t = times.uniform(path, 5)
    found = times.optimise(lambda knots: jnp.ones(()) + 0 * jnp.sum(knots.t), path, t, iterations=5)
    np.testing.assert_allclose(found, t, atol=1e-9)


def test_grids_without_a_free_knot_are_refused():
    path = paths.linear()
    for t in ([0.0, 1.0], [0.2, 0.8], [0.2, 0.2, 0.5, 0.8]):
        with pytest.raises(ValueError, match="no knot to move"):
            times.optimise(lambda knots: jnp.sum(knots.t), path, jnp.asarray(t))
