"""Denoising losses: parity, weightings and the likelihood they bound, equal gradients, exact minimisers."""

import functools
from pathlib import Path as File

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import oracles, paths, predictions, times
from genjax.losses import denoising
from genjax.losses.denoising import denoising_error, denoising_loss, simple_loss
from genjax.predictions import Row

REFERENCE = np.load(File(__file__).parents[1] / "reference" / "losses_samplers_weights.npz")
CONSISTENCY = np.load(File(__file__).parents[1] / "reference" / "consistency_scalings.npz")
PATHS = {"linear": paths.linear(), "cosine": paths.cosine(), "vp": paths.vp(), "edm": paths.edm(4.0)}
KINDS = {**predictions.KINDS, "edm": predictions.edm(0.7)}


def oracle():
    return oracles.mixture(*(REFERENCE[f"mixture_{name}"] for name in ("weights", "means", "covs")))


def normals(*shape, dtype=np.float32):
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def draws_of_the_mixture(num):
    weights, means, covs = (REFERENCE[f"mixture_{name}"] for name in ("weights", "means", "covs"))
    generator = np.random.default_rng(1)
    component = generator.choice(3, num, p=weights)
    spread = np.einsum("bij,bj->bi", np.linalg.cholesky(covs)[component], generator.standard_normal((num, 2)))
    return (means[component] + spread).astype(np.float32)


def kind_at(index):
    """The kind of KINDS at a traced index, so that one compilation serves all of them."""

    def row(path, t):
        return Row(*jax.lax.switch(index, [lambda t, kind=kind: tuple(kind(path, t)) for kind in KINDS.values()], t))

    return row


def times_inside(path, num):
    """`num` times across the path, away from both ends."""
    return path.t_noise + jnp.linspace(0.1, 0.9, num) * (path.t_data - path.t_noise)


# Parity


def _check_ddpm_loss(dtype, tolerance):
    path, mix = paths.ddpm(paths.linear_betas(1000)), oracle()
    data, noise = (REFERENCE[f"ddpm_{name}"].astype(dtype) for name in ("data", "noise"))
    t = ((REFERENCE["ddpm_t"] + 1) / 1000).astype(dtype)
    errors = {}
    for kind in ("noise", "data", "v"):
        model = oracles.model(mix, path, predictions.KINDS[kind])
        error = functools.partial(denoising_error, model, path=path, predict=predictions.KINDS[kind])
        errors[kind] = np.asarray(jax.jit(error)(data, noise, t))
        for reduction, factor in {"mean": 1, "sum": 2}.items():  # ours is the mean over the 2 dimensions
            difference = np.abs(factor * errors[kind] / REFERENCE[f"ddpm_{kind}_squared_error_{reduction}"] - 1).max()
            print(f"{kind} error {dtype.__name__}, {reduction}: relative {difference:.1e}")
            assert difference < tolerance
    assert abs(errors["noise"].mean() / REFERENCE["ddpm_l_simple"] - 1) < tolerance


def _check_weights(dtype, tolerance):
    t = ((REFERENCE["min_snr_index"] + 1) / 1000).astype(dtype)
    chains = {"linear": paths.linear_betas(1000), "squaredcos_cap_v2": paths.cosine_betas(1000)}
    cases = [(name, gamma, kind) for name in chains for gamma in (5, 1) for kind in ("noise", "v", "data")]

    @jax.jit
    def min_snr_weights(t):
        return [denoising.min_snr(g)(paths.ddpm(chains[name]), t, KINDS[kind]) for name, g, kind in cases]

    for (name, gamma, kind), weights in zip(cases, min_snr_weights(t), strict=True):
        difference = np.abs(weights / REFERENCE[f"min_snr_{name}_{kind}_gamma{gamma}"] - 1).max()
        assert difference < tolerance, (name, gamma, kind, difference)

    @jax.jit
    def weights_of_consistency_models(t):
        weightings = {
            "snr": denoising.snr,
            "snr_plus_1": denoising.edm(1.0),  # SNR + 1 / 1^2
            "karras": denoising.edm(0.5),
            "truncated_snr": denoising.truncated_snr,
            "uniform": denoising.uniform,
        }
        return {name: weighting(paths.edm(), t, predictions.data) for name, weighting in weightings.items()}

    for name, weights in weights_of_consistency_models(CONSISTENCY["sigma"].astype(dtype)).items():
        difference = np.abs(weights / CONSISTENCY[f"weight_{name}"] - 1).max()
        print(f"weight {name} {dtype.__name__}: relative {difference:.1e}")
        assert difference < (1e-12 if dtype == jnp.float64 else 1e-6)

    @functools.partial(jax.jit, static_argnums=1)
    def edm_weights(sigma, data_std):
        weighting = denoising.edm(data_std)
        return [weighting(paths.edm(), sigma, kind) for kind in (predictions.data, predictions.edm(data_std))]

    for data_std, label in [(0.5, "0p5"), (1.0, "1")]:
        on_data, on_output = edm_weights(REFERENCE["edm_sigma"].astype(dtype), data_std)
        assert np.abs(on_data / REFERENCE[f"edm_sigma_data{label}_weight"] - 1).max() < min(tolerance, 1e-6)
        np.testing.assert_allclose(on_output, np.ones_like(on_output), rtol=tolerance)


def test_parity_in_float64(float64):
    _check_ddpm_loss(jnp.float64, 1e-10)
    _check_weights(jnp.float64, 1e-10)


def test_parity_in_float32():
    _check_ddpm_loss(jnp.float32, 1e-4)
    _check_weights(jnp.float32, 1e-5)


# Weightings


@pytest.mark.parametrize("name", PATHS)
def test_weightings_are_their_formulas(float64, name):
    path = PATHS[name]

    @jax.jit
    def sides():
        t = times_inside(path, 9)
        alpha, sigma = path.alpha(t), path.sigma(t)
        snr = (alpha / sigma) ** 2
        rate = jnp.abs(jax.vmap(jax.grad(lambda t: paths.log_snr(path, t)))(t))
        _, diffusion = paths.drift_and_diffusion(path, t)
        one = jnp.ones_like(t)
        cases = [
            (denoising.uniform, predictions.velocity, one),
            (denoising.snr, predictions.data, snr),
            (denoising.snr, predictions.noise, one),
            (denoising.truncated_snr, predictions.data, jnp.maximum(snr, 1)),
            (denoising.truncated_snr, predictions.noise, jnp.maximum(1, 1 / snr)),
            (denoising.min_snr(3.0), predictions.data, jnp.minimum(snr, 3)),
            (denoising.min_snr(3.0), predictions.noise, jnp.minimum(1, 3 / snr)),
            (denoising.edm(0.7), predictions.data, snr + 1 / 0.7**2),
            (denoising.likelihood, predictions.noise, rate / 2),
            (denoising.likelihood, predictions.score, diffusion**2 / 2),
            (denoising.sigmoid(1.5), predictions.noise, rate / 2 * jax.nn.sigmoid(1.5 - paths.log_snr(path, t))),
        ]
        return [(weighting(path, t, error), expected) for weighting, error, expected in cases]

    for case, (weights, expected) in enumerate(sides()):
        np.testing.assert_allclose(weights, expected, rtol=1e-10, err_msg=f"case {case}")


def test_sigmoid_is_the_likelihood_damped():
    path, t = paths.vp(), np.linspace(0.05, 0.95, 7, dtype=np.float32)

    @jax.jit
    def both():
        damping = jax.nn.sigmoid(-2.0 - paths.log_snr(path, t))
        return [
            (denoising.sigmoid(-2.0)(path, t, error), denoising.likelihood(path, t, error) * damping)
            for error in KINDS.values()
        ]

    for damped, expected in both():
        np.testing.assert_allclose(damped, expected, rtol=1e-5)


def _expected_loss(model, t, data_mean, data_std, **options):
    """The loss at each time `[T]`, its expectation over Gaussian data and noise taken by quadrature.

    Exact for a model that is affine in x: three nodes integrate polynomials of degree 5.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    weights = weights / weights.sum()
    data, noise = (
        values.ravel()[:, None] for values in np.meshgrid(data_mean + data_std * nodes, nodes, indexing="ij")
    )

    def at(t):
        times = jnp.full(9, t)
        return jnp.sum(np.outer(weights, weights).ravel() * denoising_error(model, data, noise, times, **options))

    return jax.jit(jax.vmap(at))(t)


def _clock_quadrature(path, steps=60):
    """Nodes and weights of Gauss-Legendre between the times inside the path."""
    start, end = sorted(float(t) for t in times_inside(path, 2))
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    return jnp.asarray((start + end) / 2 + (end - start) / 2 * nodes), (end - start) / 2 * weights, (start, end)


@pytest.mark.parametrize(("name", "kind"), [("linear", "velocity"), ("vp", "noise"), ("cosine", "v"), ("edm", "edm")])
def test_the_likelihood_weighting_integrates_to_information(float64, name, kind):
    """Of the exact model: the mutual information of data and x_t gained along the path (I-MMSE, Guo et al. 2005)."""
    path, std = PATHS[name], 0.6
    mix = oracles.mixture([1.0], [[0.3]], [std**2])
    model = oracles.model(mix, path, KINDS[kind])
    t, weights, ends = _clock_quadrature(path)
    loss = _expected_loss(model, t, 0.3, std, path=path, predict=KINDS[kind], weighting=denoising.likelihood)
    information = [0.5 * np.log1p(std**2 * float(jnp.exp(paths.log_snr(path, jnp.asarray(end))))) for end in ends]
    np.testing.assert_allclose(weights @ loss, abs(information[1] - information[0]), rtol=1e-6)


@pytest.mark.parametrize("name", PATHS)
def test_the_likelihood_weighting_integrates_to_the_divergence(float64, name):
    """Of a wrong model beside the exact one: KL(p || q) at the clean end less that at the noisy end, in nats."""
    path = PATHS[name]
    (p_mean, p_std), (q_mean, q_std) = (0.3, 0.6), (-0.2, 0.9)
    t, weights, ends = _clock_quadrature(path)

    def loss(mean, std):
        model = oracles.model(oracles.mixture([1.0], [[mean]], [std**2]), path, predictions.score)
        options = {"path": path, "predict": predictions.score, "error": predictions.noise}
        return _expected_loss(model, t, p_mean, p_std, weighting=denoising.likelihood, **options)

    def divergence(t):
        alpha, sigma = float(path.alpha(jnp.asarray(t))), float(path.sigma(jnp.asarray(t)))
        p_var, q_var = ((alpha * std) ** 2 + sigma**2 for std in (p_std, q_std))
        return 0.5 * ((p_var + (alpha * (p_mean - q_mean)) ** 2) / q_var - 1 + np.log(q_var / p_var))

    gap = weights @ (loss(q_mean, q_std) - loss(p_mean, p_std))
    expected = abs(divergence(ends[1]) - divergence(ends[0]))
    print(f"{name}: weighted gap {gap:.9f}, divergence {expected:.9f} nats")
    np.testing.assert_allclose(gap, expected, rtol=1e-6)


# Gradients


@pytest.mark.parametrize("name", PATHS)
def test_every_prediction_and_error_kind_has_the_same_gradient_after_weighting(float64, name):
    """One function, reinterpreted as a network of each kind; weights w on the data error are w / k^2 on another."""
    path = PATHS[name]
    data, noise = normals(2, 8, 2, dtype=np.float64)
    t = np.asarray(jax.jit(lambda: times_inside(path, 8))())
    params = {"w": np.array([[0.4, -0.3], [0.2, 0.7]]), "b": np.array([0.1, -0.2]), "c": np.array(0.5)}
    data_weight = np.linspace(0.5, 2.0, 8)

    def explicit(path, t, error):
        return data_weight / predictions.error_scale(error, path, t) ** 2

    def loss(params, predict, error, weighting):
        def network(x, t):
            estimate = jnp.tanh(x @ params["w"] + params["b"][None] + params["c"] * t[:, None])
            return predictions.convert(estimate, x, t, path=path, source=predictions.data, target=predict)

        errors = denoising_error(network, data, noise, t, path=path, predict=predict, error=error, weighting=weighting)
        return jnp.mean(errors)

    weightings = (explicit, denoising.truncated_snr, denoising.uniform)

    @jax.jit
    def gradients(predict, error):
        return [jax.value_and_grad(loss)(params, kind_at(predict), kind_at(error), w) for w in weightings]

    def check(ours, theirs, name):
        for value, expected in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(value, expected, rtol=1e-8, atol=1e-10, err_msg=str(name))

    kinds = list(KINDS)
    *expected, unweighted = gradients(kinds.index("data"), kinds.index("data"))
    for predict in range(len(kinds)):
        for error in range(len(kinds)):
            *results, _ = gradients(predict, error)
            check(results, expected, (kinds[predict], kinds[error]))
    assert np.abs(expected[0][1]["w"]).min() > 1e-3
    *_, noise_unweighted = gradients(kinds.index("noise"), kinds.index("noise"))
    assert not np.allclose(noise_unweighted[1]["w"], unweighted[1]["w"], rtol=0.1)
    check(jax.jit(lambda: loss(params, predictions.v, None, explicit))(), expected[0][0], "error defaults to predict")


# Minimisers


@jax.jit
def _slopes_and_excess(mix, kind, data, noise, t):
    """Per example, of the loss of a network off the exact one of `mix` along three features: slopes `[3, num]` at 0,
    and what steps either way add `[6, num]`."""
    path, kind = paths.cosine(), kind_at(kind)
    model = oracles.model(mix, path, kind)

    def errors(amounts):
        def perturbed(x, t):
            features = jnp.stack([jnp.ones_like(x), x, jnp.tanh(3 * x) * t[:, None]])
            return model(x, t) + jnp.einsum("f,fbd->bd", amounts, features)

        return denoising_error(perturbed, data, noise, t, path=path, predict=kind, weighting=denoising.min_snr(5.0))

    steps = 0.5 * jnp.concatenate([jnp.eye(3), -jnp.eye(3)])
    slopes = jax.vmap(lambda direction: jax.jvp(errors, (jnp.zeros(3),), (direction,))[1])(jnp.eye(3))
    return slopes, jax.vmap(errors)(steps) - errors(jnp.zeros(3))[None]


@pytest.mark.parametrize("name", KINDS)
def test_the_oracle_is_the_minimiser(name):
    """At the exact model, and not beside it, the expected loss has slope 0 and rises in every direction."""
    kind, num, mix = list(KINDS).index(name), 20_000, oracle()
    data, noise = draws_of_the_mixture(num), normals(num, 2)
    t = np.linspace(0.1, 0.9, num, dtype=np.float32)

    def z_scores(values):
        values = np.asarray(values, np.float64)
        return values.mean(axis=1) / (values.std(axis=1) / num**0.5)

    slopes, excess = (z_scores(values) for values in _slopes_and_excess(mix, kind, data, noise, t))
    beside = z_scores(_slopes_and_excess(mix._replace(means=mix.means + 0.1), kind, data, noise, t)[0])
    print(f"{name}: slopes {slopes}, beside {beside}, excess {excess} standard errors")
    assert np.abs(slopes).max() < 4
    assert excess.min() > 4
    assert np.abs(beside).max() > 8


def test_the_least_loss_of_a_linear_model_is_the_oracle(float64):
    """For Gaussian data the oracle is affine in x: least squares on the loss at one time finds its coefficients."""
    path, num = paths.vp(), 50_000
    mix = oracles.mixture([1.0], [[0.5, -1.0]], [[[0.5, 0.2], [0.2, 0.3]]])
    points = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    z, noise = normals(2, num, 2, dtype=np.float64)
    data = np.array([0.5, -1.0]) + z @ np.linalg.cholesky([[0.5, 0.2], [0.2, 0.3]]).T

    @jax.jit
    def normal_equations(data, noise):
        def loss(coefficients):
            matrix = coefficients.reshape(3, 2)
            model = lambda x, t: x @ matrix[:2] + matrix[2:]  # noqa: E731
            t = jnp.full(num, 0.4)
            return jnp.mean(denoising_error(model, data, noise, t, path=path, predict=predictions.noise))

        slope, curvature = jax.grad(loss)(jnp.zeros(6)), jax.hessian(loss)(jnp.zeros(6))
        return slope, curvature, oracles.model(mix, path, predictions.noise)(points, jnp.full(3, 0.4))

    slope, curvature, values = (np.asarray(value) for value in normal_equations(data, noise))
    fitted = np.linalg.solve(curvature, -slope).reshape(3, 2)
    expected = np.stack([values[1] - values[0], values[2] - values[0], values[0]])
    np.testing.assert_allclose(fitted, expected, atol=0.02)


# Two tiers, shapes, errors


class Recorder:
    """A model that notes what it is called with."""

    def __init__(self):
        self.calls = []

    def __call__(self, x, t):
        self.calls.append((x, t))
        return jnp.sin(x) * t.reshape((-1,) + (1,) * (x.ndim - 1))


def test_the_loss_is_the_error_at_the_times_and_noise_it_drew(float64):
    path = paths.cosine()
    options = {"path": path, "predict": predictions.v, "error": predictions.data, "weighting": denoising.snr}
    data = normals(4000, 2, dtype=np.float64)

    @jax.jit
    def run(key, data):
        model, density = Recorder(), times.uniform_density(path, start=0.8, end=0.2)
        loss = denoising_loss(model, key, data, density=density, **options)
        ((x_t, t),) = model.calls
        noise = (x_t - path.alpha(t)[:, None] * data) / path.sigma(t)[:, None]
        return loss, denoising_error(model, data, noise, t, **options), noise, t

    loss, error, noise, t = (np.asarray(value) for value in run(jax.random.key(1), data))
    assert loss.shape == t.shape == (4000,)
    np.testing.assert_allclose(loss, error, rtol=1e-8)
    assert abs(noise.mean()) < 4 / 8000**0.5
    assert abs(noise.std() - 1) < 4 / 16000**0.5
    assert abs(np.corrcoef(noise.ravel(), data.ravel())[0, 1]) < 4 / 8000**0.5
    assert 0.2 < t.min() < 0.21
    assert 0.79 < t.max() < 0.8


@pytest.mark.parametrize("path", [paths.linear(), paths.edm(4.0)], ids=["linear", "edm"])
def test_times_are_uniform_on_the_clock_by_default(path):
    @jax.jit
    def drawn_times(key):
        model = Recorder()
        denoising_loss(model, key, jnp.zeros((4000, 1)), path=path, predict=predictions.data)
        return model.calls[0][1]

    t = np.sort(drawn_times(jax.random.key(1))) / max(path.t_noise, path.t_data)
    assert np.abs(t - np.linspace(0, 1, 4000)).max() < 1.63 / 4000**0.5  # Kolmogorov-Smirnov at 1 %


def test_simple_loss_is_the_mean_error_of_the_noise_at_the_knots():
    betas, data = paths.linear_betas(20, 0.01, 0.3), normals(2000, 3)

    @jax.jit
    def run(key, data):
        model = Recorder()
        return simple_loss(model, key, data, path=paths.ddpm(betas), num_train_steps=20), *model.calls[0]

    loss, x_t, t = (np.asarray(value) for value in run(jax.random.key(1), data))
    levels, counts = np.unique(np.round(t * 20, 3), return_counts=True)
    np.testing.assert_array_equal(levels, np.arange(1, 21))
    assert counts.min() > 60
    alpha_bar = np.cumprod(1 - betas)[np.round(t * 20).astype(int) - 1][:, None]
    noise = (x_t - np.sqrt(alpha_bar) * data) / np.sqrt(1 - alpha_bar)
    np.testing.assert_allclose(loss, np.mean((noise - np.sin(x_t) * t[:, None]) ** 2, axis=1), rtol=1e-3, atol=1e-5)


def test_a_batch_of_four_is_four_batches_of_one():
    data, noise = normals(2, 4, 5, 5, 3)
    t = np.linspace(0.2, 0.8, 4, dtype=np.float32)

    @jax.jit
    def error(data, noise, t):
        options = {"path": paths.vp(), "predict": predictions.noise, "weighting": denoising.min_snr()}
        return denoising_error(Recorder(), data, noise, t, **options)

    together = error(data, noise, t)
    assert together.shape == (4,)
    parts = [error(*(value[i : i + 1] for value in (data, noise, t))) for i in range(4)]
    np.testing.assert_allclose(together, np.concatenate(parts), rtol=1e-6)
    one_channel, two_channels = (error(data[..., part], noise[..., part], t) for part in (slice(0, 1), slice(1, 3)))
    np.testing.assert_allclose(together, (one_channel + 2 * two_channels) / 3, rtol=1e-5)  # a mean over event axes


def test_wrong_shapes_raise():
    error = functools.partial(denoising_error, path=paths.linear(), predict=predictions.data)
    data, t = np.zeros((4, 2), np.float32), np.full(4, 0.5, np.float32)
    for bad_noise, bad_t in [(data[:, :1], t), (data[:1], t), (data, t[:, None]), (data, t[:1]), (data, t[0])]:
        with pytest.raises(ValueError, match="must agree"):
            error(lambda x, t: x, data, bad_noise, bad_t)
    for model in (lambda x, t: x[:, :1], lambda x, t: x[:1], lambda x, t: x[:, 0]):
        with pytest.raises(ValueError, match="model returned shape"):
            error(model, data, data, t)


@pytest.mark.parametrize("error", [None, predictions.data], ids=["same", "other"])
def test_a_bfloat16_network_is_compared_in_float32(error):
    data, noise = normals(2, 4, 64)
    options = {"path": paths.cosine(), "predict": predictions.v, "error": error}
    t = np.linspace(0.2, 0.8, 4, dtype=np.float32)
    coarse = lambda x, t: x.astype(jnp.bfloat16)  # noqa: E731
    widened = lambda x, t: coarse(x, t).astype(jnp.float32)  # noqa: E731
    results = jax.jit(lambda: [denoising_error(model, data, noise, t, **options) for model in (coarse, widened)])()
    assert results[0].dtype == jnp.float32
    np.testing.assert_allclose(*results, rtol=1e-6)
