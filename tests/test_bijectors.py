"""Bijectors: undone exactly, log-determinants those of the full Jacobian, densities that integrate to 1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from genjax import bijectors

pytestmark = pytest.mark.usefixtures("float64")

DIMENSION = 5
IMAGE = (4, 4, 2)


def draws(*shape, seed=0, scale=1.0):
    return jnp.asarray(scale * np.random.default_rng(seed).standard_normal(shape))


def conditioner(passing, outputs, seed=1):
    weight, bias = draws(passing, outputs, seed=seed), draws(outputs, seed=seed + 1)
    return lambda x: jnp.tanh(jnp.einsum("...i,ij->...j", x, weight)) * 1.5 + bias.reshape((1,) * (x.ndim - 1) + (-1,))


def learned_linear(dimension, seed=3):
    rotation = scipy.stats.ortho_group.rvs(dimension, random_state=seed)
    factors, pivots = bijectors.triangular_of(rotation)
    learned = bijectors.Triangular(*(leaf + draws(*leaf.shape, seed=4, scale=0.2) for leaf in factors))
    return bijectors.linear(learned, pivots)


def every_bijector(dimension):
    half = dimension // 2
    changed = dimension - half
    return {
        "affine": bijectors.affine(draws(dimension, seed=5), draws(dimension, seed=6)),
        "permutation": bijectors.permutation(np.random.default_rng(0).permutation(dimension)),
        "linear": learned_linear(dimension),
        "affine_coupling": bijectors.affine_coupling(conditioner(half, 2 * changed), passing=half),
        "spline_coupling": bijectors.spline_coupling(conditioner(half, changed * 14), passing=half, bins=5, bound=2.0),
        "one bin": bijectors.spline_coupling(conditioner(half, changed * 2), passing=half, bins=1, bound=2.0),
        "logit": bijectors.inverse(bijectors.logit(margin=0.01)),
    }


def of_points():
    one = every_bijector(DIMENSION)
    return {**one, "chain": bijectors.chain(list(one.values())[:-1])}


def of_images():
    squeezed = list(every_bijector(4 * IMAGE[-1]).values())[:-1]
    chain = bijectors.chain([bijectors.squeeze(), *squeezed])
    return {**every_bijector(IMAGE[-1]), "squeeze": bijectors.squeeze(), "chain": chain}


MAKERS = {"points": (of_points, (DIMENSION,)), "images": (of_images, IMAGE)}
CASES = [(kind, name) for kind, (make, _) in MAKERS.items() for name in make()]
every_case = pytest.mark.parametrize("case", CASES, ids="-".join)


def made(case):
    """Made in the test, so in double precision."""
    kind, name = case
    make, shape = MAKERS[kind]
    return make()[name], shape


@every_case
def test_the_inverse_undoes_the_map_both_ways(case):
    bijector, shape = made(case)
    x = draws(40, *shape, seed=9)
    y, log_det = bijector.forward_and_log_det(x)
    back, inverse_log_det = bijector.inverse_and_log_det(y)
    np.testing.assert_allclose(back, x, atol=1e-9)
    np.testing.assert_allclose(inverse_log_det, -log_det, atol=1e-9)
    assert log_det.shape == (40,)
    np.testing.assert_allclose(bijector.inverse(bijector.forward(x)), x, atol=1e-9)
    turned = bijectors.inverse(bijector)
    np.testing.assert_array_equal(turned.forward(y), back)
    np.testing.assert_array_equal(turned.inverse(x), y)


@every_case
def test_log_determinant_is_that_of_the_full_jacobian(case):
    bijector, shape = made(case)
    x = draws(6, *shape, seed=10)
    size = int(np.prod(shape))

    def one(values):
        return bijector.forward(values[None])[0]

    jacobians = np.stack([np.asarray(jax.jacfwd(one)(values)).reshape(size, size) for values in x])
    np.testing.assert_allclose(bijector.forward_and_log_det(x)[1], np.linalg.slogdet(jacobians)[1], atol=1e-9)


def test_log_density_is_the_change_of_variables():
    """Of an affine flow it is a Gaussian's: y = x s + b is standard normal when x ~ N(-b / s, 1 / s^2)."""
    shift, log_scale = draws(3, seed=1), draws(3, seed=2)
    x = draws(7, 3)
    exact = scipy.stats.norm(-shift / np.exp(log_scale), np.exp(-log_scale)).logpdf(x).sum(axis=1)
    np.testing.assert_allclose(bijectors.log_density(bijectors.affine(shift, log_scale), x), exact, rtol=1e-12)


@pytest.mark.parametrize("name", ["affine_coupling", "spline_coupling"])
def test_densities_integrate_to_one(name):
    def layer(seed):
        maker = conditioner(1, 2 if name == "affine_coupling" else 14, seed)
        options = {} if name == "affine_coupling" else {"bins": 5, "bound": 3.0}
        turn = bijectors.linear(*bijectors.triangular_of(scipy.stats.ortho_group.rvs(2, random_state=seed)))
        return [getattr(bijectors, name)(lambda x: 0.5 * maker(x), passing=1, **options), turn]

    flow = bijectors.chain(layer(1) + layer(2))
    axis, cell = np.linspace(-20, 20, 1601, retstep=True)
    column = jnp.asarray(axis)

    def mass(x):
        return jnp.sum(jnp.exp(bijectors.log_density(flow, jnp.stack([jnp.full_like(column, x), column], axis=1))))

    assert jnp.sum(jax.lax.map(mass, column)) * cell**2 == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("name", ["affine_coupling", "spline_coupling"])
def test_a_coupling_passes_its_first_coordinates_and_reads_no_others(name):
    coupling, x = of_points()[name], draws(3, DIMENSION)
    passing = DIMENSION // 2
    np.testing.assert_array_equal(coupling.forward(x)[:, :passing], x[:, :passing])
    jacobian = np.asarray(jax.jacfwd(lambda values: coupling.forward(values[None])[0])(x[0]))
    changed = jacobian[passing:, passing:]
    np.testing.assert_array_equal(changed, np.diag(np.diag(changed)))
    assert np.abs(jacobian[passing:, :passing]).min() > 0


def test_a_spline_of_zero_parameters_is_the_identity():
    x = draws(50, 3)
    y, log_det = bijectors.spline(jnp.zeros((50, 3, 23)), bound=2.0).forward_and_log_det(x)
    np.testing.assert_allclose(y, x, atol=1e-12)
    np.testing.assert_allclose(log_det, 0, atol=1e-12)


def test_a_spline_is_the_identity_outside_and_smooth_at_its_knots():
    raw = draws(1, 1, 14, seed=4, scale=2.0)
    spline = bijectors.spline(raw, bound=2.0)
    outside = jnp.asarray([-7.0, -2.0, 2.0, 5.0])
    np.testing.assert_array_equal([spline.forward(x.reshape(1, 1))[0, 0] for x in outside], outside)
    knots = bijectors.spline_knots(raw, bound=2.0)
    edges = np.append(np.asarray(knots.left)[0, 0], 2.0)
    np.testing.assert_allclose(np.append(np.asarray(knots.bottom)[0, 0], 2.0)[[0, -1]], [-2, 2])
    for edge in edges:
        below, above = (spline.forward_and_log_det(jnp.full((1, 1), edge + side))[1][0] for side in (-1e-9, 1e-9))
        np.testing.assert_allclose(below, above, atol=1e-3)


def test_a_spline_passes_through_its_knots_with_their_slopes():
    raw = draws(1, 1, 14, seed=5, scale=2.0)
    knots, spline = bijectors.spline_knots(raw, bound=2.0), bijectors.spline(raw, bound=2.0)
    for left, bottom, slope in zip(
        knots.left[0, 0, 1:], knots.bottom[0, 0, 1:], knots.slope_left[0, 0, 1:], strict=True
    ):
        y, log_slope = spline.forward_and_log_det(jnp.full((1, 1), left))
        np.testing.assert_allclose(y[0, 0], bottom, atol=1e-12)
        np.testing.assert_allclose(log_slope[0], np.log(slope), atol=1e-9)
    np.testing.assert_allclose(knots.width.sum(), 4.0)
    np.testing.assert_allclose(knots.height.sum(), 4.0)


def test_splines_survive_extreme_parameters_in_float32():
    """The root is taken in the form that does not cancel: in the other alone the error reaches 5e-3 here."""
    rng = np.random.default_rng(0)
    raw = jnp.asarray(rng.normal(0, 30, (20_000, 1, 47)), jnp.float32)
    y = jnp.asarray(rng.uniform(-4, 4, (20_000, 1)), jnp.float32)
    spline = bijectors.spline(raw, bound=4.0)
    x, log_det = spline.inverse_and_log_det(y)
    assert np.isfinite(log_det).all()
    assert np.abs(spline.forward(x) - y).max() < 1e-3
    grads = jax.grad(lambda raw: jnp.sum(bijectors.spline(raw, bound=4.0).forward_and_log_det(y)[1]))(raw)
    assert np.isfinite(grads).all()


def test_the_scale_of_an_affine_coupling_is_bounded():
    def conditioner(passing):
        return jnp.concatenate([jnp.zeros_like(passing), 1e3 * passing], axis=-1)

    coupling = bijectors.affine_coupling(conditioner, passing=1, max_log_scale=1.5)
    y, log_det = coupling.forward_and_log_det(jnp.asarray([[1.0, 1.0], [-1.0, 1.0]]))
    np.testing.assert_allclose(y[:, 1], np.exp([1.5, -1.5]), rtol=1e-6)
    np.testing.assert_allclose(log_det, [1.5, -1.5], rtol=1e-6)


def test_linear_starts_as_the_matrix_it_was_given():
    matrix = scipy.stats.ortho_group.rvs(6, random_state=1)
    x = draws(4, 6)
    y, log_det = bijectors.linear(*bijectors.triangular_of(matrix)).forward_and_log_det(x)
    np.testing.assert_allclose(y, x @ matrix.T, atol=1e-12)
    np.testing.assert_allclose(log_det, 0, atol=1e-12)


@pytest.mark.parametrize("shape", [(DIMENSION,), IMAGE])
def test_normalising_gives_mean_zero_and_variance_one(shape):
    x = 3 * draws(200, *shape) + 7
    y = bijectors.affine(*bijectors.normalising(x)).forward(x)
    axes = tuple(range(y.ndim - 1))
    np.testing.assert_allclose(y.mean(axis=axes), 0, atol=1e-12)
    np.testing.assert_allclose(y.std(axis=axes), 1, atol=1e-12)


def test_logit_takes_all_of_the_closed_interval():
    x = jnp.linspace(-1, 1, 9).reshape(-1, 1)
    y = bijectors.logit(margin=0.05).forward(x)
    np.testing.assert_allclose(y[[0, -1], 0], np.log(0.05 / 0.95) * np.array([1, -1]))
    assert (np.diff(y[:, 0]) > 0).all()


def test_squeeze_makes_channels_of_two_by_two_blocks():
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(bijectors.squeeze().forward(x)[0, 0, 1], [2, 3, 6, 7])
