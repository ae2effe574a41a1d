"""Bijectors: undone exactly, log-determinants those of the full Jacobian, densities that integrate to 1."""

import functools

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


@functools.cache
def run(case):
    """Draws, where they go, where those come back to, three ways that are one of the two, Jacobians: of one compilation."""
    kind, name = case
    make, shape = MAKERS[kind]
    bijector = make()[name]

    @jax.jit
    def everything(x):
        there = y, _ = jax.lax.optimization_barrier(bijector.forward_and_log_det(x))  # else log(exp(x)) becomes x
        turned = bijectors.inverse(bijector)
        others = bijector.inverse(bijector.forward(x)), turned.forward(y), turned.inverse(x)
        jacobians = jax.vmap(jax.jacfwd(lambda values: bijector.forward(values[None])[0].ravel()))(x[:6])
        return there, bijector.inverse_and_log_det(y), others, jacobians.reshape(6, y[0].size, y[0].size)

    x = draws(40, *shape, seed=9)
    return x, *everything(x)


@every_case
def test_the_inverse_undoes_the_map_both_ways(case):
    x, (y, log_det), (back, inverse_log_det), (undone, turned_forward, turned_inverse), _ = run(case)
    np.testing.assert_allclose(back, x, atol=1e-9)
    np.testing.assert_allclose(inverse_log_det, -log_det, atol=1e-9)
    assert log_det.shape == (40,)
    np.testing.assert_allclose(undone, x, atol=1e-9)
    np.testing.assert_array_equal(turned_forward, back)
    np.testing.assert_array_equal(turned_inverse, y)


@every_case
def test_log_determinant_is_that_of_the_full_jacobian(case):
    _, (_, log_det), *_, jacobians = run(case)
    np.testing.assert_allclose(log_det[:6], np.linalg.slogdet(jacobians)[1], atol=1e-9)


def test_log_density_is_the_change_of_variables():
    """Of an affine flow it is a Gaussian's: y = x s + b is standard normal when x ~ N(-b / s, 1 / s^2)."""
    shift, log_scale = draws(3, seed=1), draws(3, seed=2)
    x = draws(7, 3)
    exact = scipy.stats.norm(-shift / np.exp(log_scale), np.exp(-log_scale)).logpdf(x).sum(axis=1)
    np.testing.assert_allclose(
        jax.jit(functools.partial(bijectors.log_density, bijectors.affine(shift, log_scale)))(x), exact, rtol=1e-12
    )


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

    assert jax.jit(lambda: jnp.sum(jax.lax.map(mass, column)))() * cell**2 == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("name", ["affine_coupling", "spline_coupling"])
def test_a_coupling_passes_its_first_coordinates_and_reads_no_others(name):
    coupling, x = of_points()[name], draws(3, DIMENSION)
    passing = DIMENSION // 2
    np.testing.assert_array_equal(jax.jit(coupling.forward)(x)[:, :passing], x[:, :passing])
    jacobian = np.asarray(jax.jit(jax.jacfwd(lambda values: coupling.forward(values[None])[0]))(x[0]))
    changed = jacobian[passing:, passing:]
    np.testing.assert_array_equal(changed, np.diag(np.diag(changed)))
    assert np.abs(jacobian[passing:, :passing]).min() > 0


def test_a_spline_of_zero_parameters_is_the_identity():
    x = draws(50, 3)
    y, log_det = jax.jit(bijectors.spline(jnp.zeros((50, 3, 23)), bound=2.0).forward_and_log_det)(x)
    np.testing.assert_allclose(y, x, atol=1e-12)
    np.testing.assert_allclose(log_det, 0, atol=1e-12)


knots_of = jax.jit(functools.partial(bijectors.spline_knots, bound=2.0))


@jax.jit
def through_one_spline(raw, x):
    """Of the points `x [N]`: where they land, and the logarithms of the slopes there."""
    spline = bijectors.spline(jnp.broadcast_to(raw, (len(x), 1, raw.shape[-1])), bound=2.0)
    y, log_slope = spline.forward_and_log_det(x[:, None])
    return y[:, 0], log_slope


def test_a_spline_is_the_identity_outside_and_smooth_at_its_knots():
    raw = draws(1, 1, 14, seed=4, scale=2.0)
    outside = jnp.asarray([-7.0, -2.0, 2.0, 5.0])
    np.testing.assert_array_equal(through_one_spline(raw, outside)[0], outside)
    knots = knots_of(raw)
    edges = np.append(np.asarray(knots.left)[0, 0], 2.0)
    np.testing.assert_allclose(np.append(np.asarray(knots.bottom)[0, 0], 2.0)[[0, -1]], [-2, 2])
    below, above = np.split(through_one_spline(raw, np.append(edges - 1e-9, edges + 1e-9))[1], 2)
    np.testing.assert_allclose(below, above, atol=1e-3)


def test_a_spline_passes_through_its_knots_with_their_slopes():
    raw = draws(1, 1, 14, seed=5, scale=2.0)
    knots = knots_of(raw)
    y, log_slope = through_one_spline(raw, knots.left[0, 0, 1:])
    np.testing.assert_allclose(y, knots.bottom[0, 0, 1:], atol=1e-12)
    np.testing.assert_allclose(log_slope, np.log(knots.slope_left[0, 0, 1:]), atol=1e-9)
    np.testing.assert_allclose(knots.width.sum(), 4.0)
    np.testing.assert_allclose(knots.height.sum(), 4.0)


def test_splines_survive_extreme_parameters_in_float32():
    """The root is taken in the form that does not cancel: in the other alone the error reaches 5e-3 here."""
    rng = np.random.default_rng(0)
    raw = jnp.asarray(rng.normal(0, 30, (20_000, 1, 47)), jnp.float32)
    y = jnp.asarray(rng.uniform(-4, 4, (20_000, 1)), jnp.float32)

    @jax.jit
    def run(raw):
        spline = bijectors.spline(raw, bound=4.0)
        x, log_det = spline.inverse_and_log_det(y)
        grads = jax.grad(lambda raw: jnp.sum(bijectors.spline(raw, bound=4.0).forward_and_log_det(y)[1]))(raw)
        return log_det, spline.forward(x), grads

    log_det, back, grads = run(raw)
    assert np.isfinite(log_det).all()
    assert np.abs(back - y).max() < 1e-3
    assert np.isfinite(grads).all()


def test_the_scale_of_an_affine_coupling_is_bounded():
    def conditioner(passing):
        return jnp.concatenate([jnp.zeros_like(passing), 1e3 * passing], axis=-1)

    coupling = bijectors.affine_coupling(conditioner, passing=1, max_log_scale=1.5)
    y, log_det = jax.jit(coupling.forward_and_log_det)(jnp.asarray([[1.0, 1.0], [-1.0, 1.0]]))
    np.testing.assert_allclose(y[:, 1], np.exp([1.5, -1.5]), rtol=1e-6)
    np.testing.assert_allclose(log_det, [1.5, -1.5], rtol=1e-6)


def test_linear_starts_as_the_matrix_it_was_given():
    matrix = scipy.stats.ortho_group.rvs(6, random_state=1)
    x = draws(4, 6)
    y, log_det = jax.jit(bijectors.linear(*bijectors.triangular_of(matrix)).forward_and_log_det)(x)
    np.testing.assert_allclose(y, x @ matrix.T, atol=1e-12)
    np.testing.assert_allclose(log_det, 0, atol=1e-12)


@pytest.mark.parametrize("shape", [(DIMENSION,), IMAGE])
def test_normalising_gives_mean_zero_and_variance_one(shape):
    x = 3 * draws(200, *shape) + 7
    y = np.asarray(jax.jit(lambda x: bijectors.affine(*bijectors.normalising(x)).forward(x))(x))
    axes = tuple(range(y.ndim - 1))
    np.testing.assert_allclose(y.mean(axis=axes), 0, atol=1e-12)
    np.testing.assert_allclose(y.std(axis=axes), 1, atol=1e-12)


def test_logit_takes_all_of_the_closed_interval():
    x = jnp.linspace(-1, 1, 9).reshape(-1, 1)
    y = jax.jit(bijectors.logit(margin=0.05).forward)(x)
    np.testing.assert_allclose(y[[0, -1], 0], np.log(0.05 / 0.95) * np.array([1, -1]))
    assert (np.diff(y[:, 0]) > 0).all()


def test_squeeze_makes_channels_of_two_by_two_blocks():
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(bijectors.squeeze().forward(x)[0, 0, 1], [2, 3, 6, 7])
