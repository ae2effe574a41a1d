"""Kinds of prediction: round trips on every path, which ends are singular, EDM's preconditioning, error scales."""

import functools
import itertools
from pathlib import Path as File

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import oracles, paths, predictions
from genjax.arrays import expand
from genjax.typing import Prediction

PATHS = {
    "linear": paths.linear(),
    "cosine": paths.cosine(),
    "vp": paths.vp(),
    "sub_vp": paths.sub_vp(),
    "ve": paths.ve(),
    "edm": paths.edm(),
    "ddpm_linear": paths.ddpm(paths.linear_betas(1000)),
    "ddpm_cosine": paths.ddpm(paths.cosine_betas(1000)),
    "ddpm_zero_snr": paths.ddpm(paths.zero_terminal_snr(paths.linear_betas(1000))),
}
KINDS = {**predictions.KINDS, "edm": predictions.edm(0.7)}
INSIDE = np.array([0.1, 0.3, 0.5, 0.7, 0.9])
every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
some_paths = pytest.mark.parametrize("path", [PATHS[name] for name in ("linear", "vp", "edm", "ddpm_cosine")])
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def at(path, share):
    """The time `share` of the way from noise to data."""
    return path.t_noise + np.asarray(share) * (path.t_data - path.t_noise)


def drawn_pair(num=5, event_shape=(3,)):
    generator = np.random.default_rng(0)
    return Prediction(*(jnp.asarray(generator.normal(size=(num, *event_shape))) for _ in range(2)))


def by_hand(name, path, pair, t):
    """The definitions of the module's table, in NumPy."""
    data, noise = (np.asarray(value, np.float64) for value in pair)
    alpha, sigma = (np.asarray(function(t), np.float64)[:, None] for function in (path.alpha, path.sigma))
    d_alpha, d_sigma = (np.asarray(value, np.float64)[:, None] for value in paths.derivatives(path, t))
    return {
        "data": data,
        "noise": noise,
        "velocity": d_alpha * data + d_sigma * noise,
        "v": alpha * noise - sigma * data,
        "score": -noise / sigma,
        "edm": (sigma / 0.7 * data - 0.7 * alpha * noise) / np.sqrt(sigma**2 + 0.49 * alpha**2),
    }[name]


def round_trips(path, pair, t):
    x_t = paths.interpolate(path, pair.data, pair.noise, t)
    values = {name: predictions.from_pair(kind, path, pair, t) for name, kind in KINDS.items()}
    pairs = {name: predictions.to_pair(kind, path, values[name], x_t, t) for name, kind in KINDS.items()}
    converted = {
        (source, target): predictions.convert(
            values[source], x_t, t, path=path, source=KINDS[source], target=KINDS[target]
        )
        for source, target in itertools.permutations(KINDS, 2)
    }
    return values, pairs, converted


def check_round_trips(path, dtype, tolerance):
    t, pair = jnp.asarray(at(path, INSIDE), dtype), Prediction(*(v.astype(dtype) for v in drawn_pair()))
    values, pairs, converted = round_trips(path, pair, t)
    # x_t does not determine a pair better than its rounding divided by alpha and by sigma
    scale = float(jnp.max(1 + 1 / path.alpha(t) + path.sigma(t) / path.alpha(t) + path.alpha(t) / path.sigma(t)))
    for name in KINDS:
        expected = by_hand(name, path, pair, t)
        np.testing.assert_allclose(values[name], expected, rtol=10 * tolerance, atol=tolerance * np.abs(expected).max())
        for recovered, true in zip(pairs[name], pair, strict=True):
            np.testing.assert_allclose(recovered, true, atol=tolerance * scale, err_msg=name)
    for (source, target), value in converted.items():
        size = float(jnp.abs(values[target]).max())
        error = np.abs(value - values[target]).max()
        assert error <= tolerance * scale * (1 + size), (source, target, error)


@every_path
def test_conversions_round_trip_in_double_precision(path, float64):
    check_round_trips(path, jnp.float64, 1e-13)


@some_paths
def test_conversions_round_trip_in_single_precision(path):
    check_round_trips(path, jnp.float32, 3e-6)


# Singular ends


def recovers(kind, path, t):
    """Whether the pair is found, to single precision, from a prediction of `kind` at time t."""
    pair = Prediction(jnp.asarray([[0.3, -1.0]], jnp.float32), jnp.asarray([[1.2, 0.5]], jnp.float32))
    t = jnp.asarray(t, jnp.float32)
    x_t = paths.interpolate(path, pair.data, pair.noise, t)
    found = predictions.to_pair(kind, path, predictions.from_pair(kind, path, pair, t), x_t, t)
    finite = bool(jnp.all(jnp.isfinite(found.data)) & jnp.all(jnp.isfinite(found.noise)))
    assert not finite or all(np.allclose(a, b, atol=1e-5) for a, b in zip(found, pair, strict=True))
    return finite


BOTH_ENDS = ["linear", "cosine", "ddpm_zero_snr"]  # alpha = 0 at the noise, sigma = 0 at the data


@pytest.mark.parametrize("name", BOTH_ENDS)
@pytest.mark.parametrize(
    ("kind", "at_noise", "at_data"),
    [
        ("data", True, False),
        ("noise", False, True),
        ("v", True, True),
        ("score", False, False),
        ("edm", True, True),
    ],
)
def test_ends_where_the_pair_is_known(name, kind, at_noise, at_data):
    path = PATHS[name]
    assert recovers(KINDS[kind], path, path.t_noise) == at_noise
    assert recovers(KINDS[kind], path, path.t_data) == at_data


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_velocity_is_nowhere_singular_on_the_linear_and_cosine_paths(name):
    path = PATHS[name]
    assert recovers(KINDS["velocity"], path, path.t_noise)
    assert recovers(KINDS["velocity"], path, path.t_data)


def test_velocity_is_singular_at_the_data_of_vp_and_regular_on_sub_vp():
    assert not recovers(KINDS["velocity"], PATHS["vp"], 0.0)
    assert recovers(KINDS["velocity"], PATHS["sub_vp"], 0.0)


@pytest.mark.parametrize("name", ["v", "edm"])
@every_path
def test_v_and_edm_are_regular_at_the_data_of_every_path(path, name):
    assert recovers(KINDS[name], path, path.t_data)


# EDM


@pytest.mark.parametrize(("x64", "tolerance"), [(True, 1e-10), (False, 1e-6)])
@pytest.mark.parametrize(("label", "data_std"), [("sigma_data0p5", 0.5), ("sigma_data1", 1.0)])
def test_edm_is_the_preconditioned_output(label, data_std, x64, tolerance):
    """`c_skip x + c_out F` is the data prediction; the error of F weighs the data's by `1 / c_out^2`."""
    numbers = np.load(File(__file__).parent / "reference" / "edm_preconditioning.npz")
    path, kind = paths.edm(), predictions.edm(data_std)
    with jax.enable_x64(x64):
        sigma, one = jnp.asarray(numbers["sigma"]), jnp.ones((len(numbers["sigma"]), 1))
        found = {
            "c_skip": predictions.to_pair(kind, path, 0 * one, one, sigma).data[:, 0],
            "c_out": predictions.to_pair(kind, path, one, 0 * one, sigma).data[:, 0],
            "weight": predictions.error_scale(kind, path, sigma) ** 2,
        }
    for name, value in found.items():
        np.testing.assert_allclose(np.asarray(value), numbers[f"{label}_{name}"], rtol=tolerance, err_msg=name)


@pytest.mark.parametrize(("x64", "tolerance"), [(True, 1e-10), (False, 1e-4)])
def test_parity_of_noisy_examples_and_what_is_predicted_of_them(x64, tolerance):
    """DDPM's x_t, its targets and the predictions of the exact model; an index i of the peer is our i + 1 of 1000."""
    numbers = np.load(File(__file__).parent / "reference" / "losses_samplers_weights.npz")
    path = paths.ddpm(paths.linear_betas(1000))

    @jax.jit
    def ours(data, noise, t):
        knots, x_t = paths.knots(path, t), paths.interpolate(path, data, noise, t)
        models = {name: oracles.model(mix, path, KINDS[name]) for name in ("noise", "data", "v")}
        return {
            "alpha": knots.alpha,
            "sigma": knots.sigma,
            "x_t": x_t,
            "v_target": predictions.from_pair(predictions.v, path, Prediction(data, noise), t),
            **{f"{name}_prediction": model(x_t, t) for name, model in models.items()},
        }

    with jax.enable_x64(x64):
        mix = oracles.mixture(*(numbers[f"mixture_{name}"] for name in ("weights", "means", "covs")))
        found = ours(numbers["ddpm_data"], numbers["ddpm_noise"], (numbers["ddpm_t"] + 1) / 1000)
    for name, value in found.items():
        difference = np.abs(np.asarray(value) - numbers[f"ddpm_{name}"]).max()
        print(f"{name}, {value.dtype}: {difference:.1e}")
        assert difference < tolerance


def test_edm_output_has_unit_variance_for_data_of_its_deviation(float64):
    path, std = paths.cosine(), 0.7
    row = predictions.edm(std)(path, jnp.linspace(0.0, 1.0, 11))
    variance = (row.data_weight**2 * std**2 + row.noise_weight**2) / row.prediction_scale**2
    np.testing.assert_allclose(variance, 1.0, rtol=1e-13)


# Errors


@every_path
@every_kind
def test_error_scale_carries_an_error_of_the_data(path, kind, float64):
    t, pair = jnp.asarray(at(path, INSIDE)), drawn_pair()
    x_t = paths.interpolate(path, pair.data, pair.noise, t)
    off = pair.data + 0.1
    noise = (x_t - expand(path.alpha(t), off) * off) / expand(path.sigma(t), off)
    moved = predictions.from_pair(kind, path, Prediction(off, noise), t) - predictions.from_pair(kind, path, pair, t)
    scale = predictions.error_scale(kind, path, t)
    np.testing.assert_allclose(moved, 0.1 * np.broadcast_to(scale[:, None], moved.shape), rtol=1e-9, atol=1e-12)


def test_error_scales_known_by_name(float64):
    t = jnp.asarray(INSIDE)
    path = paths.cosine()
    snr = np.exp(paths.log_snr(path, t))
    for name, expected in (("data", 1.0), ("noise", snr), ("v", 1 + snr)):
        np.testing.assert_allclose(predictions.error_scale(KINDS[name], path, t) ** 2, expected, rtol=1e-12)


def test_error_scale_of_the_data_is_one_at_clean_data():
    assert float(predictions.error_scale(KINDS["data"], paths.linear(), jnp.asarray(1.0))) == 1.0


# The denoiser


@every_kind
def test_denoiser_reads_the_model_at_one_time_an_example(kind, float64):
    path, pair, t = paths.linear(), drawn_pair(4, (2, 2, 1)), 0.4
    x_t = paths.interpolate(path, pair.data, pair.noise, jnp.asarray(t))
    seen = []

    def model(x, times):
        seen.append((x.shape, times))
        return predictions.from_pair(kind, path, pair, times)

    found = predictions.denoiser(model, path, kind)(x_t, paths.knots(path, jnp.asarray(t)))
    np.testing.assert_allclose(found.data, pair.data, atol=1e-13)
    np.testing.assert_allclose(found.noise, pair.noise, atol=1e-13)
    ((shape, times),) = seen
    assert shape == (4, 2, 2, 1)
    np.testing.assert_array_equal(times, [t] * 4)


def test_denoiser_of_a_low_precision_network_combines_in_the_precision_of_x():
    def model(x, t):
        return x.astype(jnp.bfloat16)

    denoise = predictions.denoiser(model, paths.cosine(), predictions.v)
    found = denoise(jnp.ones((2, 3)), paths.knots(paths.cosine(), jnp.asarray(0.3)))
    assert found.data.dtype == found.noise.dtype == jnp.float32


# As functions of arrays


@every_kind
def test_conversions_differentiate_and_map(kind, float64):
    """A prediction is affine in x_t: the gradient of the data in x_t is `1 / alpha` times what the kind says."""
    path, t = paths.cosine(), jnp.asarray(0.3)
    pair = drawn_pair(1)
    prediction = predictions.from_pair(kind, path, pair, t)

    def data_of(x):
        return predictions.to_pair(kind, path, prediction, x, t).data.sum()

    _, a, b = kind(path, t)
    expected = b / (path.alpha(t) * b - path.sigma(t) * a)
    np.testing.assert_allclose(jax.grad(data_of)(pair.data), jnp.full((1, 3), expected), atol=1e-13)
    times = jnp.asarray(INSIDE)
    convert = functools.partial(predictions.convert, path=path, source=kind, target=predictions.v)
    one_by_one = jax.vmap(lambda p, x, t: convert(p[None], x[None], t)[0])(*drawn_pair(), times)
    np.testing.assert_allclose(one_by_one, convert(*drawn_pair(), times), rtol=1e-12)


@some_paths
@pytest.mark.parametrize(("x64", "dtype"), [(False, jnp.float32), (True, jnp.float32), (True, jnp.float64)])
def test_no_silent_promotion(path, x64, dtype):
    with jax.enable_x64(x64), jax.numpy_dtype_promotion("strict"):
        x, t = jax.ShapeDtypeStruct((5, 3), dtype), jax.ShapeDtypeStruct((5,), dtype)
        found = jax.eval_shape(functools.partial(round_trips, path), Prediction(x, x), t)
        scales = [jax.eval_shape(functools.partial(predictions.error_scale, kind, path), t) for kind in KINDS.values()]
    assert {leaf.dtype for leaf in jax.tree.leaves((found, scales))} == {jnp.dtype(dtype)}


@every_kind
def test_a_python_time_is_a_scalar_array(kind):
    path, pair = paths.linear(), Prediction(jnp.ones((2, 3)), jnp.full((2, 3), 0.5))
    found = predictions.from_pair(kind, path, pair, 0.25)
    np.testing.assert_allclose(found, predictions.from_pair(kind, path, pair, jnp.full(2, 0.25)), rtol=1e-6)
    back = predictions.to_pair(kind, path, found, paths.interpolate(path, *pair, 0.25), 0.25)
    np.testing.assert_allclose(back.data, pair.data, rtol=1e-5)


def test_a_denoiser_tells_the_network_the_time_and_combines_in_the_dtype_of_x():
    path, x, knot = paths.vp(), jnp.ones((4, 2)), paths.knots(paths.vp(), jnp.asarray(0.3))
    seen = []

    def half_precision(x, t):
        seen.append(np.asarray(t))
        return jnp.full_like(x, 0.5, jnp.bfloat16)

    pair = predictions.denoiser(half_precision, path, predictions.noise)(x, knot)
    np.testing.assert_allclose(seen[0], np.full(4, 0.3, np.float32))
    assert pair.data.dtype == pair.noise.dtype == jnp.float32
    np.testing.assert_allclose(pair.data, (1 - knot.sigma * 0.5) / knot.alpha * np.ones((4, 2)), rtol=1e-6)


@pytest.mark.parametrize("new", ["linear", "vp", "edm"])
@pytest.mark.parametrize("trained", ["linear", "cosine", "vp", "ve", "edm"])
def test_a_model_changes_paths_exactly(trained, new, float64):
    """The exact model of one path, called on another, is the exact model there."""
    mix = oracles.mixture([0.3, 0.7], [[-1.0, 0.5], [1.0, 0.0]], [0.1, 0.2])
    path, new_path, x = PATHS[trained], PATHS[new], jax.random.normal(jax.random.key(0), (4, 2))
    levels = jnp.asarray([0.02, 0.5, 3.0, 30.0])
    t = paths.time_of_log_snr(new_path, -2 * jnp.log(levels))
    x = x * jnp.hypot(new_path.alpha(t), new_path.sigma(t))[:, None]
    for kind in (predictions.v, predictions.noise):
        model = oracles.model(mix, path, kind)
        changed = predictions.on_another_path(model, path, kind, new_path=new_path, new_predict=predictions.velocity)
        exact = oracles.velocity(mix, x, t, path=new_path)
        np.testing.assert_allclose(changed(x, t), exact, rtol=1e-6, atol=1e-8)
