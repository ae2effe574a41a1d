"""Runge-Kutta samplers: orders of convergence, parity with other implementations, the landing, either clock."""

import functools
from pathlib import Path as File

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import oracles, paths, predictions, times
from genjax.samplers import SAMPLERS, ddim, euler, heun, midpoint, rk4, sample
from genjax.samplers.ode import singular_at_data, velocity
from genjax.typing import Knot, Path, Prediction

REFERENCE = np.load(File(__file__).parents[1] / "reference" / "losses_samplers_trajectories.npz")


def oracle():
    return oracles.mixture(*(REFERENCE[f"mixture_{name}"] for name in ("weights", "means", "covs")))


# Orders of convergence

INTERVALS = {  # path, start and end: short of the data; edm from a level that dwarfs the data, others from noise
    "linear": (paths.linear(), 0.0, 0.9),
    "cosine": (paths.cosine(), 1.0, 0.1),
    "vp": (paths.vp(), 1.0, 0.1),
    "edm": (paths.edm(), 10.0, 0.1),
}
SPACING = {"linear": 1, "cosine": 1, "vp": 1, "edm": 3}  # even in this root of t
STEPS = (32, 64, 128)


def _smooth_grid(name, steps, length):
    """`steps` intervals, then knots that repeat the end up to `length` intervals."""
    (_, start, end), root = INTERVALS[name], SPACING[name]
    u = np.minimum(np.arange(length + 1) / steps, 1.0)
    return (start ** (1 / root) + u * (end ** (1 / root) - start ** (1 / root))) ** root


def _run_on_all_intervals(name, step_counts):
    """Results `[path, step count, 16, 2]` from the same starts, by one compilation."""
    all_paths = [path for path, _, _ in INTERVALS.values()]
    mix, noise = oracle(), jnp.asarray(REFERENCE["noise"])

    def one(index, t):
        def choose(field):
            return lambda t: jax.lax.switch(index, [getattr(path, field) for path in all_paths], t)

        path = Path(choose("alpha"), choose("sigma"), 0.0, 1.0)
        knots = paths.knots(path, t)
        sampler = SAMPLERS[name](path, first_order_end=False)
        return sample(sampler, oracles.denoiser(mix), jax.random.key(0), knots.sigma[0] * noise, knots)

    grids = jnp.asarray([[_smooth_grid(path, n, step_counts[-1]) for n in step_counts] for path in INTERVALS])
    indices = jnp.arange(len(all_paths))
    return np.asarray(jax.jit(jax.vmap(jax.vmap(one, in_axes=(None, 0))))(indices, grids))


@functools.cache
def _fine_solution():
    return _run_on_all_intervals("rk4", (2048,))


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("ddim", 1), ("heun", 2), ("midpoint", 2), ("rk4", 4)])
def test_order_of_convergence(float64, name, order):
    errors = np.sqrt(np.mean((_run_on_all_intervals(name, STEPS) - _fine_solution()) ** 2, axis=(2, 3)))
    slopes = np.log2(errors[:, :-1] / errors[:, 1:])
    for path, error, slope in zip(INTERVALS, errors, slopes, strict=True):
        print(f"{name} on {path}: errors {error}, orders {slope}")
    assert np.all(errors < 0.2)
    assert np.all(slopes[:, -1] > order - 0.1)
    assert np.all(slopes[:, -1] < order + 0.5)


# Parity


def _trajectory(sampler, start, knots):
    return sample(sampler, oracles.denoiser(oracle()), jax.random.key(0), start, knots, trace=True)[1]


def _check(name, states, expected, tolerance):
    """To `tolerance max(1, |x|)`, in NumPy's precision."""
    difference = (np.abs(np.asarray(states) - expected) / np.maximum(1, np.abs(expected))).max()
    print(f"{name}, {states.dtype}: {difference:.1e}")
    assert difference < tolerance, name


def _check_flow(dtype, tolerance):
    """10 steps, and every fifth state of 50; the peer's rk4 is the 3/8 rule."""
    path = paths.linear()
    samplers = {"euler": euler(path), "midpoint": midpoint(path), "heun2": heun(path), "rk4": rk4(path, rule="3/8")}
    noise = jnp.asarray(REFERENCE["noise"], dtype)
    grids = np.minimum(np.arange(51)[None] / np.array([[10], [50]]), 1.0)  # the shorter repeats its end

    @jax.jit
    def run(grids):
        along = {name: functools.partial(_trajectory, sampler, noise) for name, sampler in samplers.items()}
        return {name: jax.vmap(lambda t, of=of: of(paths.knots(path, t)))(grids) for name, of in along.items()}

    np.testing.assert_allclose(grids[0, :11], REFERENCE["flow_t"], atol=1e-15)
    for name, (short, long) in run(grids.astype(dtype)).items():
        _check(f"flow {name} n10", short[:11], REFERENCE[f"flow_{name}_n10_x"], tolerance)
        if f"flow_{name}_n50_x" in REFERENCE:
            _check(f"flow {name} n50", long[::5], REFERENCE[f"flow_{name}_n50_x"], tolerance)


def _check_karras(dtype, tolerance):
    path = paths.edm()
    samplers = {"euler": euler(path), "heun": heun(path, first_order_end=True)}
    noise = jnp.asarray(REFERENCE["noise"], dtype)

    @jax.jit
    def run(t):
        knots = paths.knots(path, t)
        return {name: _trajectory(sampler, knots.sigma[0] * noise, knots) for name, sampler in samplers.items()}

    for peer in ("karras_diffusers", "karras_diffusers20", "karras_kdiffusion"):
        for name, states in run(REFERENCE[f"{peer}_sigma"].astype(dtype)).items():
            _check(f"{peer} {name}", states, REFERENCE[f"{peer}_{name}_x"], tolerance)


def _check_edm(dtype, tolerance):
    """The result, and every call of the denoiser: ours makes one more, the second of the last step, and leaves it out."""
    path, sampler, key = paths.edm(), heun(paths.edm(), first_order_end=True), jax.random.key(0)
    denoise = oracles.denoiser(oracle())

    @jax.jit
    def run(t, x):
        knots = paths.knots(path, t)

        def step(x, interval):
            calls = []

            def recorded(x, knot):
                calls.append((x, knot.sigma))
                return denoise(x, knot)

            end, _ = sampler.step(recorded, key, x, (), *interval)
            return end, tuple(jnp.stack(values) for values in zip(*calls, strict=True))

        now, then = (Knot(*(values[part] for values in knots)) for part in (slice(-1), slice(1, None)))
        return jax.lax.scan(step, knots.sigma[0] * x, (now, then))

    result, (x, sigma) = run(REFERENCE["edm_sigma"].astype(dtype), REFERENCE["noise"].astype(dtype))
    _check("edm result", result, REFERENCE["edm_result"], tolerance)
    _check("edm calls", x.reshape(36, 16, 2)[:35], REFERENCE["edm_calls_x"], tolerance)
    _check("edm levels", sigma.reshape(36)[:35], REFERENCE["edm_calls_sigma"], tolerance)


@pytest.mark.parametrize(("check", "tolerance"), [(_check_flow, 1e-9), (_check_karras, 1e-8), (_check_edm, 1e-8)])
def test_parity_in_float64(float64, check, tolerance):
    check(jnp.float64, tolerance)


@pytest.mark.parametrize(("check", "tolerance"), [(_check_flow, 5e-5), (_check_karras, 1e-4), (_check_edm, 1e-4)])
def test_parity_in_float32(check, tolerance):
    check(jnp.float32, tolerance)


def test_the_grids_of_the_parity(float64):
    """Of EDM and k-diffusion from 80 to 0.002, of diffusers between the ends of its table of 1000 linear betas."""
    ratio = np.sqrt(1 / np.cumprod(1 - paths.linear_betas(1000)) - 1)
    table = {"sigma_min": ratio[0], "sigma_max": ratio[-1]}
    cases = {"edm": {}, "karras_kdiffusion": {}, "karras_diffusers": table, "karras_diffusers20": table}
    for name, options in cases.items():
        expected = REFERENCE[f"{name}_sigma"]
        found = jax.jit(functools.partial(times.karras, paths.edm(200.0), len(expected) - 1, **options))()
        np.testing.assert_allclose(found, expected, rtol=1e-10)


# The landing

SINGULAR = {"linear": False, "cosine": False, "vp": True, "sub_vp": False, "ve": False, "edm": False, "ddpm": False}


def test_paths_whose_velocity_is_infinite_at_the_data():
    makers = {name: getattr(paths, name) for name in SINGULAR}
    makers["ddpm"] = lambda: paths.ddpm(paths.linear_betas(10))
    assert {name: singular_at_data(make()) for name, make in makers.items()} == SINGULAR
    assert jax.jit(lambda: singular_at_data(paths.vp()))()


def bent(x, knot):
    """A denoiser that compiles quickly, and cannot be called where sigma = 0: 0 / 0."""
    data = jnp.tanh(x)
    return Prediction(data, (x - knot.alpha * data) / knot.sigma)


three_eighths = functools.partial(rk4, rule="3/8")


@pytest.mark.parametrize(("higher", "lower"), [(heun, euler), (rk4, midpoint)], ids=["heun", "rk4"])
def test_a_first_order_end_does_not_call_where_it_lands(float64, higher, lower):
    path, key = paths.linear(), jax.random.key(0)
    x, t = jnp.asarray(REFERENCE["noise"]), np.linspace(0.0, 1.0, 5)

    @jax.jit
    def run(x):
        knots = paths.knots(path, t)
        landing = higher(path, first_order_end=True), higher(path, first_order_end=False)
        careful, reaching = (sample(s, bent, key, x, knots, trace=True)[1] for s in landing)
        last_step = sample(lower(path), bent, key, careful[-2], paths.knots(path, t[-2:]))
        return careful, reaching, last_step

    careful, reaching, last_step = run(x)
    assert np.all(np.isfinite(careful))
    np.testing.assert_allclose(careful[-1], last_step, atol=1e-12)
    np.testing.assert_allclose(reaching[:-1], careful[:-1], atol=1e-12)
    assert not np.any(np.isfinite(reaching[-1]))


def test_a_lower_order_end_keeps_heun_at_order_two_and_rk4_at_three(float64):
    path, mix = paths.linear(), oracle()
    noise = jnp.asarray(REFERENCE["noise"])
    grids = np.minimum(np.arange(129)[None] / np.array([[64], [128]]), 1.0)

    @jax.jit
    def errors():
        def run(sampler, t):
            return sample(sampler, oracles.denoiser(mix), jax.random.key(0), noise, paths.knots(path, t))

        fine = run(rk4(path), np.linspace(0, 1, 1025))
        samplers = [make(path, first_order_end=True) for make in (heun, rk4, three_eighths)]
        ends = jnp.stack([jax.vmap(lambda t, s=sampler: run(s, t))(grids) for sampler in samplers])
        return jnp.sqrt(jnp.mean((ends - fine[None, None]) ** 2, axis=(2, 3)))

    for name, order, (coarse, fine) in zip(("heun", "rk4", "3/8"), (2, 3, 3), errors(), strict=True):
        print(
            f"{name} landing by a lower order on linear: {coarse:.2e}, {fine:.2e}, order {np.log2(coarse / fine):.2f}"
        )
        assert np.log2(coarse / fine) > order - 0.1


@pytest.mark.parametrize("make", [heun, rk4, three_eighths], ids=["heun", "rk4", "3/8"])
def test_the_default_takes_the_first_order_end_where_the_velocity_is_infinite(make):
    path, x = paths.vp(), jnp.asarray(REFERENCE["noise"], jnp.float32)

    @jax.jit
    def run(x):
        knots = paths.knots(path, np.linspace(1.0, 0.0, 6, dtype=np.float32))
        samplers = make(path), make(path, first_order_end=True), make(path, first_order_end=False)
        return [sample(sampler, bent, jax.random.key(0), x, knots) for sampler in samplers]

    default, first_order, full = run(x)
    assert np.all(np.isfinite(default))
    np.testing.assert_array_equal(default, first_order)
    assert not np.any(np.isfinite(full))


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="rule is '5/8'; expected 'classical' or '3/8'"):
        rk4(paths.linear(), rule="5/8")


# Velocity and clocks


def test_velocity_is_the_marginal_velocity(float64):
    mix, x, path, t = oracle(), jnp.asarray(REFERENCE["noise"]), paths.cosine(), np.asarray(0.3)

    @jax.jit
    def both(x):
        denoise = predictions.denoiser(oracles.model(mix, path, predictions.noise), path, predictions.noise)
        return velocity(denoise, path, x, paths.knots(path, t)), oracles.velocity(mix, x, t, path=path)

    np.testing.assert_allclose(*both(x), atol=1e-12)


def test_the_direction_of_the_clock_does_not_matter(float64):
    backward = Path(alpha=lambda t: 1 - t, sigma=lambda t: t, t_data=0.0, t_noise=1.0)
    x = jnp.asarray(REFERENCE["noise"])

    @functools.partial(jax.jit, static_argnums=0)
    def run(path):
        knots = paths.knots(path, times.uniform(path, 6, end=path.t_noise + 0.9 * (path.t_data - path.t_noise)))
        samplers = (euler(path), heun(path), midpoint(path), rk4(path))
        return [sample(sampler, bent, jax.random.key(0), x, knots) for sampler in samplers]

    np.testing.assert_allclose(run(paths.linear()), run(backward), atol=1e-12)


def test_equal_knots_leave_x_where_it_is(float64):
    path, x = paths.cosine(), jnp.asarray(REFERENCE["noise"])

    @jax.jit
    def run(x):
        knots = paths.knots(path, np.full(2, 0.4))
        samplers = (euler(path), heun(path), midpoint(path), rk4(path), ddim())
        return [sample(sampler, bent, jax.random.key(0), x, knots) for sampler in samplers]

    for result in run(x):
        np.testing.assert_allclose(result, x, atol=1e-12)
