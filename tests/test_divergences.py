"""Divergences: Monte Carlo and quadrature against the closed forms, and the bound of a discriminator."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from genjax import divergences

RANDOM = np.random.default_rng(5)
MEAN, LOG_VARIANCE, OTHER_MEAN, OTHER_LOG_VARIANCE = RANDOM.normal(size=(4, 3, 4))


def as_arrays(*values):
    return tuple(jnp.asarray(value) for value in values)


def test_kl_of_equals_is_zero_and_the_terms_sum(float64):
    q = as_arrays(MEAN, LOG_VARIANCE)
    np.testing.assert_array_equal(divergences.kl_diagonal(*q, *q), np.zeros(3))
    zero = jnp.zeros_like(q[0])
    np.testing.assert_allclose(divergences.kl_standard_normal(*q), divergences.kl_diagonal(*q, zero, zero), rtol=1e-13)
    terms = divergences.kl_standard_normal_terms(*q)
    assert np.all(terms >= 0)
    np.testing.assert_allclose(terms.sum(axis=1), divergences.kl_standard_normal(*q), rtol=1e-13)


def test_diagonal_and_full_agree_and_full_does_not_depend_on_the_basis(float64):
    q, p = as_arrays(MEAN, LOG_VARIANCE), as_arrays(OTHER_MEAN, OTHER_LOG_VARIANCE)
    expected = divergences.kl_diagonal(*q, *p)
    basis = np.linalg.qr(RANDOM.normal(size=(4, 4)))[0]

    def turned(mean, log_variance):
        covariance = np.stack([basis @ np.diag(np.exp(row)) @ basis.T for row in log_variance])
        return as_arrays(mean @ basis.T, covariance)

    found = divergences.kl_full(*turned(MEAN, LOG_VARIANCE), *turned(OTHER_MEAN, OTHER_LOG_VARIANCE))
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_monte_carlo_agrees_with_the_closed_form(float64):
    noise = RANDOM.normal(size=(20_000, 3, 4))
    z = MEAN + np.exp(0.5 * LOG_VARIANCE) * noise

    def log_density(mean, log_variance):
        return np.stack([stats.norm(m, np.exp(0.5 * v)).logpdf(z[:, i]).sum(-1) for i, (m, v) in enumerate(
            zip(mean, log_variance, strict=True)
        )], axis=1)  # fmt: skip

    log_q, log_p = log_density(MEAN, LOG_VARIANCE), log_density(OTHER_MEAN, OTHER_LOG_VARIANCE)
    found = divergences.kl_monte_carlo(*as_arrays(log_q, log_p))
    error = (log_q - log_p).std(axis=0) / np.sqrt(len(z))
    exact = divergences.kl_diagonal(*as_arrays(MEAN, LOG_VARIANCE, OTHER_MEAN, OTHER_LOG_VARIANCE))
    assert np.all(np.abs(found - exact) < 4 * error)
    own = divergences.gaussian_log_density(*as_arrays(z[0], MEAN, LOG_VARIANCE))
    np.testing.assert_allclose(own, log_q[0], rtol=1e-12)


def test_entropy_is_scipys(float64):
    expected = [stats.multivariate_normal(np.zeros(4), np.diag(np.exp(row))).entropy() for row in LOG_VARIANCE]
    np.testing.assert_allclose(divergences.gaussian_entropy(jnp.asarray(LOG_VARIANCE)), expected, rtol=1e-12)


@pytest.mark.parametrize(("x64", "tolerance"), [(True, 1e-11), (False, 1e-5)])
def test_parity(x64, tolerance):
    numbers = np.load(Path(__file__).parent / "reference" / "vae_terms.npz")

    @jax.jit
    def ours(mean, log_var, mean2, log_var2, full_mean, full_cov, y):
        return {
            "kl_standard": divergences.kl_standard_normal(mean, log_var),
            "kl_diagonal": divergences.kl_diagonal(mean, log_var, mean2, log_var2),
            "kl_full": divergences.kl_full(full_mean[:1], full_cov[:1], full_mean[1:], full_cov[1:])[0],
            "entropy": divergences.gaussian_entropy(log_var),
            "log_prob": divergences.gaussian_log_density(y, mean, log_var),
        }

    with jax.enable_x64(x64):
        found = ours(*(numbers[n] for n in ("mean", "log_var", "mean2", "log_var2", "full_mean", "full_cov", "y")))
    for name, value in found.items():
        difference = np.max(np.abs(np.asarray(value) - numbers[name]) / (1 if x64 else np.abs(numbers[name])))
        print(f"{name}, {value.dtype}: {difference:.1e}")
        assert difference < tolerance


P, Q = stats.norm(-0.5, 1.0), stats.norm(1.0, 0.6)


def jensen_shannon():
    def terms(x):
        p, q = P.pdf(x), Q.pdf(x)
        return 0.5 * (p * np.log(2 * p / (p + q)) + q * np.log(2 * q / (p + q)))

    return integrate.quad(terms, -8, 8, epsabs=1e-12)[0]


def bound(logits):
    """`jensen_shannon_bound` in the limit of many draws: at evenly spaced quantiles."""
    u = (np.arange(200_000) + 0.5) / 200_000
    return float(divergences.jensen_shannon_bound(*as_arrays(logits(P.ppf(u)), logits(Q.ppf(u)))))


def test_the_optimal_discriminator_attains_the_divergence_and_no_other_exceeds_it(float64):
    def optimal(x):
        return np.asarray(divergences.optimal_discriminator(*as_arrays(P.logpdf(x), Q.logpdf(x))))

    assert bound(optimal) == pytest.approx(jensen_shannon(), abs=1e-6)
    for scale, shift in [(0.9, 0.0), (1.1, 0.0), (1.0, 0.2), (1.0, -0.2), (0.0, 0.0)]:
        assert bound(lambda x, a=scale, b=shift: a * optimal(x) + b) < jensen_shannon() - 1e-4
