"""The scan of every sampler: exact models land on the mixture; randomness, memory, compilation, gradients, dtypes."""

import functools
from pathlib import Path as File

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm, qmc

from genjax import oracles, paths, predictions, times
from genjax.arrays import example_keys, fold_each, normal
from genjax.predictions import Row
from genjax.samplers import SAMPLERS, calls_per_step, classifier_free, ddim, ddpm, euler, heun, sample
from genjax.typing import Knot, Path, Prediction

REFERENCE = np.load(File(__file__).parents[1] / "reference" / "losses_samplers_weights.npz")
WEIGHTS, MEANS, COVS = (REFERENCE[f"mixture_{name}"] for name in ("weights", "means", "covs"))
MEAN = WEIGHTS @ MEANS
COV = np.einsum("k,kij->ij", WEIGHTS, COVS) + np.einsum("k,ki,kj->ij", WEIGHTS, MEANS - MEAN, MEANS - MEAN)
PATHS = {
    "linear": paths.linear(),
    "cosine": paths.cosine(),
    "vp": paths.vp(),
    "sub_vp": paths.sub_vp(),
    "ve": paths.ve(),
    "edm": paths.edm(),
    "ddpm": paths.ddpm(paths.linear_betas(1000)),
}


def oracle():
    return oracles.mixture(WEIGHTS, MEANS, COVS)


def one_of(all_paths, index) -> Path:
    """The path at a traced index, so that one compilation serves all of them."""

    def choose(name):
        return lambda t: jax.lax.switch(index, [getattr(path, name) for path in all_paths], t)

    ends = (jnp.asarray([getattr(path, name) for path in all_paths])[index] for name in ("t_data", "t_noise"))
    return Path(choose("alpha"), choose("sigma"), *ends, choose("time_of_ratio"))


def grid(name, steps):
    path = PATHS[name]
    if name == "edm":
        return times.karras(path, steps)
    if name == "ddpm":
        return times.discrete(times.trailing_indices(1000, steps), 1000)
    return times.quadratic(path, steps) if name in ("vp", "sub_vp") else times.uniform(path, steps)


@functools.cache
def knots_of_all_paths(steps):
    all_knots = jax.jit(lambda: [paths.knots(path, grid(name, steps)) for name, path in PATHS.items()])()
    return Knot(*(np.stack(values) for values in zip(*all_knots, strict=True)))


def knots_of(path, steps):
    return Knot(*(values[list(PATHS).index(path)] for values in knots_of_all_paths(steps)))


def quasi_normal(num):
    """Standard normal points of low discrepancy, whose own moments are much nearer the truth than random ones."""
    return jnp.asarray(norm.ppf(qmc.Sobol(2, seed=0).random(num)), jnp.float32)


@jax.jit
def component_weights(x):
    """Mean responsibilities, whose expectation under the mixture is its weights."""
    log_joint = [
        np.log(w) + oracles.log_density(oracles.mixture([1.0], m[None], c[None]), x)
        for w, m, c in zip(WEIGHTS, MEANS, COVS, strict=True)
    ]
    return jnp.mean(jnp.exp(jnp.stack(log_joint) - oracles.log_density(oracle(), x)[None]), axis=1)


# steps; the largest errors allowed of mean, covariance and weights. Measured on 2048 starts of low discrepancy: the
# deterministic samplers stay below half of these; for the others 4 standard errors and the discretisation.
LANDING = {
    "euler": (100, 0.005, 0.03, 0.005),
    "heun": (40, 0.01, 0.03, 0.005),
    "midpoint": (40, 0.01, 0.03, 0.01),
    "rk4": (20, 0.01, 0.03, 0.005),
    "ddim": (100, 0.005, 0.05, 0.005),
    "dpm-2": (40, 0.01, 0.03, 0.01),
    "dpm-3": (40, 0.01, 0.03, 0.01),
    "dpmpp-2s": (40, 0.01, 0.03, 0.01),
    "dpmpp-2m": (40, 0.01, 0.03, 0.01),
    "dpmpp-3m": (40, 0.01, 0.03, 0.01),
    "unipc": (40, 0.01, 0.03, 0.01),
    "deis": (40, 0.01, 0.03, 0.01),
    "lms": (40, 0.01, 0.03, 0.01),
    "plms": (40, 0.01, 0.03, 0.01),
    "ddpm": (100, 0.09, 0.13, 0.04),
    "ddpm-large": (100, 0.09, 0.13, 0.04),
    "euler-maruyama": (100, 0.09, 0.13, 0.04),
    "dpmpp-2m-sde": (50, 0.09, 0.13, 0.04),
    "dpm-2-ancestral": (50, 0.09, 0.13, 0.04),
}
EULER_ON_VE = (0.06, 0.25, 0.05)  # sigma is exponential in t: 9 % a step


def normals(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("name", LANDING)  # Langevin steps have laws of their own: test_langevin_dynamics
def test_lands_on_the_mixture_on_every_path(name):
    steps, *tolerances = LANDING[name]
    mix, start = oracle(), quasi_normal(2048)

    @jax.jit
    def run(noise, knots):
        def one(index, knots):
            sampler = SAMPLERS[name](one_of(PATHS.values(), index), first_order_end=True)
            return sample(sampler, oracles.denoiser(mix), noise, knots.sigma[0] * start, knots)

        return jax.vmap(one)(jnp.arange(len(PATHS)), knots)

    for path, x in zip(PATHS, run(normals(steps, 2048, 2), knots_of_all_paths(steps)), strict=True):
        weight_error = np.abs(component_weights(x) - WEIGHTS).max()
        x = np.asarray(x, np.float64)
        errors = np.abs(x.mean(axis=0) - MEAN).max(), np.abs(np.cov(x.T) - COV).max(), weight_error
        print(name, path, errors)
        allowed = EULER_ON_VE if (name, path) == ("euler", "ve") else tolerances
        assert np.all(np.less(errors, allowed)), (path, errors, allowed)


def test_calls_per_step():
    counted = {name: calls_per_step(make(PATHS["cosine"]), (4, 2)) for name, make in SAMPLERS.items()}
    assert counted == {
        "euler": 1,
        "heun": 2,
        "midpoint": 2,
        "rk4": 4,
        "ddim": 1,
        "ddpm": 1,
        "ddpm-large": 1,
        "heun-churn": 2,
        "dpm-2": 2,
        "dpm-3": 3,
        "dpm-2-ancestral": 2,
        "dpmpp-2s": 2,
        "dpmpp-2m": 1,
        "dpmpp-3m": 1,
        "dpmpp-2m-sde": 1,
        "unipc": 1,
        "deis": 1,
        "lms": 1,
        "plms": 1,
        "euler-maruyama": 1,
        "predictor-corrector": 2,
        "annealed-langevin": 1,
    }


# Randomness


def uniform_knots(steps, path="vp"):
    return jax.jit(lambda: paths.knots(PATHS[path], times.uniform(PATHS[path], steps)))()


def bent(x, knot):
    """A denoiser that compiles quickly."""
    data = jnp.tanh(x)
    return Prediction(data, (x - knot.alpha * data) / knot.sigma)


@jax.jit
def draw(key, x, knots):
    return sample(ddpm(), bent, key, x, knots)


@pytest.mark.parametrize("name", SAMPLERS)
def test_example_i_depends_on_the_key_and_i_alone(name):
    """64 at once and 8 times 8, which `vmap` takes together."""
    key, x, knots = jax.random.key(3), quasi_normal(64), uniform_knots(6)

    @jax.jit
    def both(key, x):
        run = lambda keys, x: sample(SAMPLERS[name](PATHS["vp"]), bent, keys, x, knots)  # noqa: E731
        keys = example_keys(key, 64)
        return run(keys, x), jax.vmap(run)(keys.reshape(8, 8), x.reshape(8, 8, 2)).reshape(64, 2)

    together, parts = both(key, x)
    np.testing.assert_allclose(together, parts, atol=1e-5)
    assert np.abs(np.diff(together, axis=0)).max() > 0.1


def test_examples_and_steps_receive_different_noise():
    steps, batch = 5, 64
    knots = Knot(*np.ones((3, steps + 1), np.float32))
    noise_alone = ddim(0.0)._replace(step=lambda denoise, key, x, memory, now, then: (normal(key, x.shape), memory))
    _, drawn = sample(noise_alone, bent, jax.random.key(0), jnp.zeros((batch, 2)), knots, trace=True)
    drawn = np.asarray(drawn[1:]).ravel()
    assert len(np.unique(drawn)) == drawn.size
    assert abs(drawn.mean()) < 4 / drawn.size**0.5
    assert abs(drawn.std() - 1) < 4 / (2 * drawn.size) ** 0.5


def test_keys_made_before_the_loop_are_those_that_it_would_make():
    few, many = 4, 64
    keys, x, knots = example_keys(jax.random.key(0), many), quasi_normal(many), uniform_knots(6)
    drawn_before, drawn_within = jax.jit(draw)(keys[:few], x[:few], knots), jax.jit(draw)(keys, x, knots)
    np.testing.assert_allclose(drawn_before, drawn_within[:few], atol=1e-5)


def test_the_other_generator_draws_too():
    key, x, knots = jax.random.key(0, impl="rbg"), jnp.zeros((64, 2)), uniform_knots(6)
    drawn = np.asarray(jax.jit(draw)(key, x, knots))
    assert np.isfinite(drawn).all()
    assert len(np.unique(drawn)) == drawn.size


@pytest.mark.parametrize("name", ["ddpm", "euler-maruyama"])
def test_the_same_noise_handed_in_gives_the_same_samples(name):
    sampler = SAMPLERS[name](PATHS["vp"])
    steps, key, x, knots = 6, jax.random.key(1), quasi_normal(8), uniform_knots(6)
    noise = jax.vmap(lambda step: normal(fold_each(example_keys(key, 8), step), x.shape))(jnp.arange(steps))

    @jax.jit
    def both(key, noise):
        return [sample(sampler, bent, randomness, x, knots) for randomness in (key, noise)]

    keyed, handed_in = both(key, noise)
    np.testing.assert_allclose(keyed, handed_in, atol=1e-6)
    assert np.abs(handed_in - both(key, -noise)[1]).max() > 0.1


def test_wrong_noise_keys_or_grids_raise():
    key, x, knots = jax.random.key(0), quasi_normal(8), uniform_knots(4)
    for shape in [(3, 8, 2), (5, 8, 2), (4, 4, 2), (8, 2)]:
        with pytest.raises(ValueError, match=r"noise has shape .* expected \(4, 8, 2\)"):
            sample(ddpm(), bent, jnp.zeros(shape), x, knots)
    with pytest.raises(ValueError, match="one key, or one an example"):
        sample(ddpm(), bent, example_keys(key, 7), x, knots)
    with pytest.raises(ValueError, match="at least two knots"):
        sample(ddpm(), bent, key, x, jax.tree.map(lambda value: value[:1], knots))


# Trajectories and what grows with the number of steps


def test_the_trajectory_runs_from_the_start_to_the_result():
    key, x, knots = jax.random.key(3), quasi_normal(64), uniform_knots(10)
    last, states = jax.jit(lambda: sample(ddpm(), bent, key, x, knots, trace=True))()
    assert states.shape == (11, 64, 2)
    np.testing.assert_array_equal(states[0], x)
    np.testing.assert_array_equal(states[-1], last)
    np.testing.assert_allclose(draw(key, x, knots), last, atol=1e-6)


def _equations(jaxpr):
    inner = [
        sub.jaxpr if hasattr(sub, "jaxpr") else sub
        for equation in jaxpr.eqns
        for value in equation.params.values()
        for sub in (value if isinstance(value, (tuple, list)) else [value])
        if hasattr(sub, "jaxpr") or hasattr(sub, "eqns")
    ]
    return len(jaxpr.eqns) + sum(_equations(sub) for sub in inner)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_program_does_not_grow_with_the_steps(name):
    def run(x, knots):
        denoise = oracles.denoiser(oracle())
        return sample(SAMPLERS[name](PATHS["vp"]), denoise, jax.random.key(0), x, knots)

    short, long = (jax.make_jaxpr(run)(quasi_normal(64), uniform_knots(steps)).jaxpr for steps in (10, 1000))
    assert _equations(short) == _equations(long) > 30
    greatest = max(variable.aval.size for equation in long.eqns for variable in equation.outvars)
    assert greatest <= 16 * 1001  # a few numbers a knot; a trajectory would have 128 a knot


def test_memory_does_not_grow_with_the_steps():
    weights = jax.random.normal(jax.random.key(0), (64, 64)) / 8
    x = jnp.zeros((512, 64))

    def memory(steps):
        def run(key, x, knots):
            denoise = predictions.denoiser(lambda x, t: jnp.tanh(x @ weights), PATHS["vp"], predictions.noise)
            return sample(ddpm(), denoise, key, x, knots)

        analysis = jax.jit(run).lower(jax.random.key(0), x, uniform_knots(steps)).compile().memory_analysis()
        return analysis.temp_size_in_bytes, analysis.output_size_in_bytes

    (short, short_output), (long, long_output) = memory(10), memory(1000)
    print("temporary bytes at 10 and 1000 steps", short, long)
    assert x.nbytes < short <= long < 1.1 * short
    assert short_output == long_output == x.nbytes


def test_new_keys_grids_and_guidance_scales_do_not_retrace():
    traces = []

    @jax.jit
    def run(key, x, knots, scale):
        traces.append(None)
        labelled = lambda x, t, label: x * (1 + label[:, None])  # noqa: E731
        model = classifier_free(labelled, np.ones(4, np.int32), 0, scale)
        return sample(heun(PATHS["vp"]), predictions.denoiser(model, PATHS["vp"], predictions.noise), key, x, knots)

    x, even, quadratic = quasi_normal(4), uniform_knots(5), knots_of("vp", 5)
    results = [
        run(jax.random.key(0), x, even, 1.0),
        run(jax.random.key(1), x, quadratic, 1.0),
        run(jax.random.key(1), x, quadratic, 3.0),
    ]
    assert len(traces) == 1
    assert not np.allclose(results[0], results[1])
    assert not np.allclose(results[1], results[2])


# Gradients and dtypes

NETWORKS = [  # paths with every kind that is not singular where they start
    ("linear", predictions.velocity),
    ("linear", predictions.data),
    ("cosine", predictions.v),
    ("vp", predictions.noise),
    ("vp", predictions.velocity),
    ("ve", predictions.score),
    ("edm", predictions.edm(1.0)),
    ("ddpm", predictions.noise),
    ("ddpm", predictions.data),
]


@pytest.mark.parametrize("name", SAMPLERS)
def test_gradients_are_finite_from_end_to_end(name):
    """On grids from the noise end (alpha = 0 on linear and cosine) to the data end (sigma = 0)."""
    all_paths = [PATHS[path] for path, _ in NETWORKS]
    key = jax.random.key(0)

    @jax.jit
    def gradients(index, knots, theta, x):
        def kind(path, t):
            rows = [lambda t, path=path, kind=kind: tuple(kind(PATHS[path], t)) for path, kind in NETWORKS]
            return Row(*jax.lax.switch(index, rows, t))

        def loss(theta, x):
            path = one_of(all_paths, index)
            denoise = predictions.denoiser(lambda x, t: theta * jnp.tanh(x + t[:, None]), path, kind)
            sampler = SAMPLERS[name](path, first_order_end=True)
            return jnp.sum(sample(sampler, denoise, key, x, knots) ** 2)

        return jax.grad(loss, argnums=(0, 1))(theta, x)

    x = np.asarray(quasi_normal(4))
    for index, (path, kind) in enumerate(NETWORKS):
        knots = knots_of(path, 3)
        by_theta, by_x = gradients(index, knots, 0.5, knots.sigma[0] * x)
        assert np.isfinite(by_theta), (path, kind)
        assert by_theta != 0, (path, kind)
        assert np.all(np.isfinite(by_x)), (path, kind)


def test_gradients_are_those_of_finite_differences(float64):
    path = PATHS["cosine"]
    knots, x = uniform_knots(5, "cosine"), jnp.asarray(quasi_normal(4), jnp.float64)

    @jax.jit
    def value_and_gradient(theta):
        def mean(theta):
            denoise = predictions.denoiser(lambda x, t: theta * jnp.tanh(x), path, predictions.v)
            return jnp.mean(sample(ddpm(), denoise, normals(5, 4, 2).astype(np.float64), x, knots))

        return jax.value_and_grad(mean)(theta)

    difference = (value_and_gradient(0.5 + 1e-5)[0] - value_and_gradient(0.5 - 1e-5)[0]) / 2e-5
    np.testing.assert_allclose(value_and_gradient(0.5)[1], difference, rtol=1e-7)


def test_checkpointed_steps_give_the_same_gradient_in_less_memory():
    """A step keeps x [256, 2], and not the 64 hidden units of a network of three layers."""
    weights, path = jax.random.normal(jax.random.key(0), (64, 64)) / 8, PATHS["cosine"]
    x, knots = jnp.ones((256, 2)), uniform_knots(50, "cosine")

    def network(theta, x):
        hidden = jnp.tanh(theta * jnp.pad(x, ((0, 0), (0, 62))))
        return jnp.tanh(jnp.tanh(hidden @ weights) @ weights)[:, :2]

    def compiled(checkpoint):
        def loss(theta):
            denoise = predictions.denoiser(lambda x, t: network(theta, x), path, predictions.v)
            run = functools.partial(sample, heun(path), denoise, jax.random.key(0), x, knots)
            return jnp.sum(run(checkpoint=checkpoint) ** 2)

        return jax.jit(jax.grad(loss)).lower(1.0).compile()

    plain, checkpointed = compiled(False), compiled(True)
    np.testing.assert_allclose(checkpointed(1.0), plain(1.0), rtol=1e-4)
    memory, less = (program.memory_analysis().temp_size_in_bytes for program in (plain, checkpointed))
    assert less < memory / 5


def test_float64_stays_float64(float64):
    x, key = jnp.asarray(quasi_normal(4), jnp.float64), jax.random.key(0)
    path, knots = PATHS["linear"], uniform_knots(3, "linear")
    assert knots.sigma.dtype == jnp.float64
    for name, make in SAMPLERS.items():
        run = lambda x, make=make: sample(make(path), oracles.denoiser(oracle()), key, x, knots)  # noqa: E731
        assert jax.eval_shape(run, x).dtype == jnp.float64, name


def test_a_bfloat16_network_is_combined_in_float32():
    path, mix = PATHS["cosine"], oracle()
    exact = oracles.model(mix, path, predictions.v)
    coarse = lambda x, t: exact(x, t).astype(jnp.bfloat16)  # noqa: E731
    x, knots = quasi_normal(64), uniform_knots(10, "cosine")
    run = lambda model: sample(  # noqa: E731
        euler(path), predictions.denoiser(model, path, predictions.v), jax.random.key(0), x, knots
    )
    results = jax.jit(lambda: [run(exact), run(coarse)])()
    assert results[1].dtype == jnp.float32
    assert 0 < np.abs(results[0] - results[1]).max() < 0.03
