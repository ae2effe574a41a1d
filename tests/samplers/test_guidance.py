"""Classifier-free guidance: the convention of its scale, its one call, and the tilted score it stands for."""

import jax
import jax.numpy as jnp
import numpy as np

from genjax import oracles, paths, predictions, times
from genjax.samplers import autoguided, classifier_free, classifier_guided, euler, sample, thresholded, within
from genjax.typing import Knot, Prediction

WEIGHTS = np.array([0.6, 0.4])
MEANS = np.array([[1.0, 0.0], [-1.0, 0.5]])
COVS = np.array([[[0.3, 0.1], [0.1, 0.2]], [[0.2, 0.0], [0.0, 0.4]]])
NULL = 2
X = np.random.default_rng(0).standard_normal((6, 2)).astype(np.float32)
T = np.linspace(0.2, 0.8, 6, dtype=np.float32)
LABEL = np.array([0, 1, 1, 0, 1, 0], np.int32)
PATH = paths.cosine()


def components():
    return [oracles.mixture([1.0], MEANS[k : k + 1], COVS[k : k + 1]) for k in range(2)]


def everything():
    return oracles.mixture(WEIGHTS, MEANS, COVS)


def labelled(kind):
    """The exact class-conditional network: components 0 and 1 by their labels, the whole mixture for the null label."""
    models = [oracles.model(mix, PATH, kind) for mix in (*components(), everything())]

    def model(x, t, label):
        every = jnp.stack([model(x, t) for model in models])
        return every[label, jnp.arange(len(x))]

    return model


def test_scale_one_is_conditional_zero_unconditional_and_between_linear():
    model = labelled(predictions.velocity)
    at_scale = jax.jit(lambda scale: classifier_free(model, LABEL, NULL, scale)(X, T))
    unconditional, conditional = jax.jit(model)(X, T, jnp.full(6, NULL)), jax.jit(model)(X, T, LABEL)
    assert np.abs(conditional - unconditional).max() > 0.1
    np.testing.assert_allclose(at_scale(0.0), unconditional, atol=1e-6)
    np.testing.assert_allclose(at_scale(1.0), conditional, atol=1e-5)
    np.testing.assert_allclose(at_scale(2.5), 2.5 * conditional - 1.5 * unconditional, rtol=1e-5, atol=1e-5)


def test_the_guided_score_is_that_of_the_tilted_density(float64):
    """p(x) p(label | x)^scale at the noise level: differentiated from the log-densities."""
    scale, x = 3.0, X.astype(np.float64)
    alpha, sigma = np.cos(0.2 * np.pi), np.sin(0.2 * np.pi)
    guided = jax.jit(classifier_free(labelled(predictions.score), LABEL, NULL, scale))(x, np.full(6, 0.4))

    def log_tilted(x):
        log_p = oracles.log_density(everything(), x, alpha=alpha, sigma=sigma)
        of_components = jnp.stack([oracles.log_density(mix, x, alpha=alpha, sigma=sigma) for mix in components()])
        log_posterior = jnp.log(WEIGHTS)[:, None] + of_components - log_p[None]
        return jnp.sum(log_p + scale * log_posterior[LABEL, jnp.arange(6)])

    np.testing.assert_allclose(guided, jax.jit(jax.grad(log_tilted))(x), atol=1e-10)


def test_guidance_commutes_with_the_prediction_kind(float64):
    x, t = X.astype(np.float64), T.astype(np.float64)

    def as_noise(kind):
        guided = classifier_free(labelled(kind), LABEL, NULL, 2.0)(x, t)
        return predictions.convert(guided, x, t, path=PATH, source=kind, target=predictions.noise)

    by_kind = jax.jit(lambda: {name: as_noise(kind) for name, kind in predictions.KINDS.items()})()
    for noise in by_kind.values():
        np.testing.assert_allclose(noise, by_kind["noise"], atol=1e-10)
    assert np.ptp(by_kind["noise"]) > 1


def test_one_call_on_a_doubled_batch():
    calls = []

    def model(x, t, label):
        calls.append((x.shape, t.shape, label))
        return x

    classifier_free(model, LABEL, NULL, 2.0)(X, T)
    (x_shape, t_shape, labels), *more = calls
    assert not more
    assert (x_shape, t_shape) == ((12, 2), (12,))
    np.testing.assert_array_equal(labels, [*LABEL, *[NULL] * 6])
    assert labels.dtype == LABEL.dtype


def test_one_scale_an_example_and_vmap_over_scales():
    scales = np.array([0.0, 1.0, 4.0], np.float32)

    def draw(scale):
        model = classifier_free(labelled(predictions.v), LABEL, NULL, scale)
        denoise = predictions.denoiser(model, PATH, predictions.v)
        return sample(euler(PATH), denoise, jax.random.key(0), X, paths.knots(PATH, times.uniform(PATH, 8)))

    together = jax.jit(jax.vmap(draw))(scales)
    assert together.shape == (3, 6, 2)
    one_each = jax.jit(draw)(np.repeat(scales, 2))
    np.testing.assert_allclose(one_each, np.concatenate([together[i, 2 * i : 2 * i + 2] for i in range(3)]), atol=1e-5)
    towards_own_mean = np.einsum("sbi,bi->s", together, MEANS[LABEL])
    assert np.all(np.diff(towards_own_mean) > 0.5)


def test_a_bfloat16_network_is_combined_in_the_dtype_of_x():
    coarse = lambda x, t, label: (x * (1.3 + label[:, None])).astype(jnp.bfloat16)  # noqa: E731
    guided = classifier_free(coarse, LABEL, NULL, 7.3)(X, T)
    cond, uncond = (coarse(X, T, label).astype(jnp.float32) for label in (LABEL, jnp.full(6, NULL)))
    assert guided.dtype == jnp.float32
    np.testing.assert_allclose(guided, uncond + 7.3 * (cond - uncond), rtol=1e-5)


def counting(calls):
    def model(x, t, label):
        calls.append(len(x))
        return x * label[:, None]

    return model


def test_the_scales_one_and_zero_call_the_network_once():
    for scale, sizes in ((1, [6]), (1.0, [6]), (0.0, [6]), (2.0, [12]), (jnp.float32(1), [12])):
        calls = []
        classifier_free(counting(calls), LABEL, NULL, scale)(jnp.asarray(X), T)
        assert calls == sizes, scale


def test_a_label_to_keep_away_from(float64):
    model, away = labelled(predictions.noise), 1 - LABEL
    found = jax.jit(classifier_free(model, LABEL, away, 2.0))(X, T)
    model = jax.jit(model)
    np.testing.assert_allclose(found, 2 * model(X, T, LABEL) - model(X, T, away), atol=1e-6)


def test_rescaling_gives_the_spread_of_the_conditional_prediction(float64):
    model, x = labelled(predictions.noise), jnp.asarray(X, jnp.float64)

    @jax.jit
    def run(x):
        rescaled = [classifier_free(model, LABEL, NULL, 4.0, rescale=r)(x, T) for r in (1.0, 0.5)]
        return model(x, T, LABEL), classifier_free(model, LABEL, NULL, 4.0)(x, T), *rescaled

    cond, plain, whole, half = run(x)
    np.testing.assert_allclose(jnp.std(whole, axis=1), jnp.std(cond, axis=1), rtol=1e-6)
    np.testing.assert_allclose(whole / plain, (whole / plain)[:, :1].repeat(2, axis=1), rtol=1e-6)
    np.testing.assert_allclose(half, (whole + plain) / 2, rtol=1e-6)


def test_autoguidance_is_linear_in_the_two_models():
    good, bad = (lambda x, t, k=k: k * x for k in (3.0, 1.0))
    np.testing.assert_allclose(autoguided(good, bad, 2.0)(X, T), 5 * X, rtol=1e-6)
    np.testing.assert_allclose(autoguided(good, bad, 0.5)(X, T), 2 * X, rtol=1e-6)
    assert autoguided(good, bad, 1) is good


def test_guidance_within_an_interval_of_noise_levels():
    """On cosine sigma / alpha = tan(pi t / 2); only the model of the interval runs."""
    guided, plain = (lambda x, t: 2 * x), (lambda x, t: x)
    model = jax.jit(within(guided, plain, path=PATH, lowest=0.5, highest=2.0))
    for ratio, factor in ((0.4, 1), (0.6, 2), (1.9, 2), (2.1, 1)):
        t = jnp.full(6, 2 / np.pi * np.arctan(ratio), jnp.float32)
        np.testing.assert_allclose(model(X, t), factor * X, rtol=1e-6)
    from_noise = within(guided, plain, path=PATH, lowest=0.5)
    np.testing.assert_allclose(from_noise(X, jnp.ones(6)), 2 * X)  # alpha = 0


def test_an_exact_classifier_makes_the_conditional_denoiser(float64):
    x = jnp.asarray(X, jnp.float64)

    def log_likelihood(x, knot):
        """Of the label 1."""
        at = {"alpha": knot.alpha, "sigma": knot.sigma}
        joint = np.log(WEIGHTS[1]) + oracles.log_density(components()[1], x, **at)
        return joint - oracles.log_density(everything(), x, **at)

    @jax.jit
    def both(t):
        knot = paths.knots(PATH, t)
        guided = classifier_guided(oracles.denoiser(everything()), log_likelihood)
        return guided(x, knot), oracles.denoiser(components()[1])(x, knot)

    for t in (0.3, 0.8, 1.0):
        found, expected = both(t)
        if t < 1:
            np.testing.assert_allclose(found.data, expected.data, atol=1e-9)
        np.testing.assert_allclose(found.noise, expected.noise, atol=1e-9)


def test_thresholds():
    data = jnp.asarray([[0.5, -3.0, 2.0, 1.0], [0.1, 0.2, -0.3, 0.4]])
    x = jnp.ones((2, 4))

    def denoise(x, knot):
        return Prediction(data, (x - knot.alpha * data) / knot.sigma)

    knot = Knot(jnp.float32(0.5), jnp.float32(0.6), jnp.float32(0.8))
    static = thresholded(denoise)(x, knot)
    np.testing.assert_allclose(static.data, jnp.clip(data, -1, 1))
    np.testing.assert_allclose(knot.alpha * static.data + knot.sigma * static.noise, x, rtol=1e-6)
    dynamic = thresholded(denoise, quantile=0.5)(x, knot)  # medians 1.5 and 0.25
    np.testing.assert_allclose(dynamic.data[0], jnp.clip(data[0], -1.5, 1.5) / 1.5, rtol=1e-6)
    np.testing.assert_allclose(dynamic.data[1], data[1])
    np.testing.assert_allclose(knot.alpha * dynamic.data + knot.sigma * dynamic.noise, x, rtol=1e-6)
