"""Consistency models: the exact map of a Gaussian is found from a teacher and without one; targets, grids, labels, refusals."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import oracles, paths, predictions
from genjax.errors import UsageError
from genjax.losses.consistency_grids import karras_levels
from genjax.methods import consistency, edm, flow_matching, rectified_flow
from genjax.methods.network_options import NetworkOptions
from genjax.training import data, loop
from genjax.training.data import Dataset
from genjax.training.steps import adamw
from genjax.typing import Batch, Examples, OtherRun, PathModel

TINY = NetworkOptions(width=32, depth=2)
STD = 0.6
QUICKLY_COMPILED = {"xla_backend_optimization_level": 0}
jit = functools.partial(jax.jit, compiler_options=QUICKLY_COMPILED)


def equal(left, right):
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True))


@functools.cache
def trained_teacher(data_name, module=edm, **options):
    """An untrained run of `module`, as another run."""
    dataset = data.load(data_name)
    network = TINY if data_name == "moons" else NetworkOptions(network="dit", width=16, depth=1, patch=4)
    method = module.build(module.Config(network=network, **options), adamw(1e-3, 1), dataset.examples)
    params = jit(method.init)(jax.random.key(1), loop.example_batch(dataset, 8)).ema
    num_classes = dataset.num_classes if options.get("class_conditional") else 0
    return OtherRun(module.__name__.rpartition(".")[2], method, num_classes, lambda: params)


def test_training_leaves_the_teachers_arrays_alone():
    """The state that is donated at each step starts as a copy of them."""
    dataset, teacher = data.load("moons"), trained_teacher("moons", edm)
    held = jax.tree.map(jnp.copy, teacher.params())
    teacher = teacher._replace(params=lambda: held)
    method = consistency.build(consistency.Config(network=TINY), adamw(1e-3, 4), dataset.examples, teacher)
    loop.fit(method, dataset, 0, steps=4, batch_size=8, steps_per_dispatch=2, progress=False)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(held))
    assert equal(held, teacher.params())


def exact_teacher(path, predict):
    """The exact model of N(0, STD^2 I) in the plane, by another path and prediction."""
    mix = oracles.mixture([1.0], jnp.zeros((1, 2)), [STD**2])
    exact = PathModel(path, predict, lambda params, num, label, guidance: oracles.model(mix, path, predict))
    teacher = trained_teacher("moons")
    return teacher._replace(method=teacher.method._replace(path_model=exact), params=lambda: ())


def gaussian_points(num=4096):
    moons = data.load("moons")
    points = STD * np.random.default_rng(0).standard_normal((num, 2)).astype(np.float32)
    scaling = moons.scaling._replace(shift=np.zeros(2, np.float32), scale=np.ones(2, np.float32))
    return Dataset(*(Batch(points) if isinstance(v, Batch) else v for v in moons))._replace(scaling=scaling)


def trained_on_the_gaussian(teacher, steps, **options):
    dataset = gaussian_points()
    config = consistency.Config(network=TINY, sigma_max=10.0, growth_steps=steps, ema_decay=0.99, **options)
    method = consistency.build(config, adamw(2e-3, steps), dataset.examples, teacher)
    sample = jit(method.sample, static_argnums=2, static_argnames="steps")
    method = method._replace(init=jit(method.init), sample=sample)
    state = loop.fit(method, dataset, 0, steps=steps, batch_size=256, steps_per_dispatch=100, progress=False)
    return method, state


def test_the_student_of_edm_with_its_network_starts_as_its_teacher():
    """Where the parameters mean the same. By EDM's parametrisation its first outputs are the teacher's estimates of the data."""
    dataset = data.load("moons")
    batch = loop.example_batch(dataset, 8)
    for module, network, starts in ((edm, TINY, True), (edm, NetworkOptions(), False), (flow_matching, TINY, False)):
        teacher = trained_teacher("moons", module)
        config = consistency.Config(network=network)
        params = (
            consistency.build(config, adamw(1e-3, 1), dataset.examples, teacher).init(jax.random.key(0), batch).params
        )
        same = jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, teacher.params())
        assert same == (network is TINY)
        assert (same and equal(params, teacher.params())) == starts


@pytest.mark.parametrize(
    ("path", "predict"),
    [(paths.edm(), predictions.noise), (paths.cosine(), predictions.v), (paths.linear(), predictions.velocity)],
    ids=["edm", "cosine", "linear"],
)
def test_distils_the_exact_map_of_a_gaussian(path, predict):
    """One call takes 10 noise to `noise STD 10 / sqrt(STD^2 + 100)`: the end of the teacher's ODE, by any path."""
    method, state = trained_on_the_gaussian(exact_teacher(path, predict), 1500)
    noise = np.asarray(method.sample(state.ema, jax.random.key(3), 2000, steps=1))
    assert np.abs(noise.std(axis=0) / STD - 1).max() < 0.08
    twice = np.asarray(method.sample(state.ema, jax.random.key(3), 2000, steps=2))
    assert np.abs(twice.std(axis=0) / STD - 1).max() < 0.08
    assert not np.array_equal(noise, twice)


@pytest.mark.parametrize("recipe", ["training", "improved-training"])
def test_learns_the_map_of_a_gaussian_from_data_alone(recipe):
    """On a grid the best f is linear, and each level loses `(STD^2 + t t') / (STD^2 + t^2)`: E[x' | x] with the same noise.

    So with 20 levels one call has to come to less than STD, by a factor that is known.
    """
    method, state = trained_on_the_gaussian(None, 3000, recipe=recipe, levels=20)
    samples = np.asarray(method.sample(state.ema, jax.random.key(3), 2000, steps=1))
    levels = np.asarray(karras_levels(21, sigma_max=10.0), np.float64)
    slope = np.prod((STD**2 + levels[1:] * levels[:-1]) / (STD**2 + levels[1:] ** 2))
    print(f"{recipe}: deviation {samples.std(axis=0)}, exact {10 * slope:.3f}")
    assert np.abs(samples.std(axis=0) / (10 * slope) - 1).max() < 0.08


def test_the_target_is_the_decayed_average_and_the_teacher_stays():
    dataset, teacher = data.load("moons"), trained_teacher("moons")
    config = consistency.Config(network=TINY, target_decay=0.7)
    method = consistency.build(config, adamw(1e-2, 10), dataset.examples, teacher)
    batch = loop.example_batch(dataset, 16)
    state = jit(method.init)(jax.random.key(0), batch)
    assert equal(state.frozen["target"], state.params)
    after, _ = jit(method.step)(state, batch)
    expected = jax.tree.map(lambda old, new: 0.7 * old + 0.3 * new, state.params, after.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), after.frozen["target"], expected)
    assert not equal(after.params, state.params)
    assert equal(after.frozen["teacher"], teacher.params())


def test_the_grid_gets_finer_in_training_from_data_alone():
    def distinct(recipe, step):
        config = consistency.Config(recipe=recipe, levels=40, growth_steps=100, network=TINY)
        resolved = consistency.resolve(config, Examples((2,)), None)
        return len(np.unique(consistency._levels(resolved)(jnp.asarray(step))))

    assert [distinct("improved-training", step) for step in (0, 33, 66, 100)] == [11, 21, 41, 41]
    assert [distinct("training", step) for step in (0, 100)] == [2, 41]
    resolved = consistency.resolve(
        consistency.Config(network=TINY), Examples((2,)), exact_teacher(paths.edm(), predictions.v)
    )
    assert len(np.unique(consistency._levels(resolved)(jnp.asarray(0)))) == 6


@pytest.mark.parametrize("data_name", ["moons", "digits"])
@pytest.mark.parametrize("class_conditional", [False, True])
def test_a_student_of_a_teacher_of_either_kind_trains_and_samples(data_name, class_conditional):
    dataset = data.load(data_name)
    teacher = trained_teacher(data_name, class_conditional=True)
    network = TINY if data_name == "moons" else NetworkOptions(network="dit", width=16, depth=1, patch=4)
    config = consistency.Config(network=network, class_conditional=class_conditional)
    config = dataclasses.replace(config, guidance=2.0 if class_conditional else 1.0)
    method = consistency.build(config, adamw(1e-3, 2), dataset.examples, teacher)
    state = jit(method.init)(jax.random.key(0), loop.example_batch(dataset, 4))
    state, metrics = jit(method.step)(state, loop.example_batch(dataset, 4))
    assert np.isfinite(metrics["loss"])
    label = jnp.asarray([0, 1]) if class_conditional else None
    samples = jit(lambda params: method.sample(params, jax.random.key(0), 2, steps=2, label=label))(state.ema)
    assert samples.shape == (2, *dataset.examples.event_shape)
    assert np.isfinite(samples).all()


def test_the_guidance_is_the_teachers():
    """The same step with another scale has another loss."""
    dataset, teacher = data.load("moons"), trained_teacher("moons", class_conditional=True)
    batch, losses = loop.example_batch(dataset, 64), []
    for guidance in (1.0, 3.0):
        config = consistency.Config(network=TINY, class_conditional=True, guidance=guidance)
        method = consistency.build(config, adamw(1e-3, 2), dataset.examples, teacher)
        losses.append(float(jit(method.step)(jit(method.init)(jax.random.key(0), batch), batch)[1]["loss"]))
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)


TEACHER = "--teacher runs/a"


@pytest.mark.parametrize(
    ("options", "teacher", "told"),
    [
        ({"recipe": "distillation"}, None, "--recipe distillation needs --teacher RUN_DIR"),
        ({"recipe": "training"}, {}, "--recipe training learns from the data alone: leave --teacher out"),
        ({"guidance": 2.0}, None, "--guidance is of the teacher"),
        ({"guidance": 2.0}, {}, "--guidance needs labels"),
        ({"class_conditional": True}, {}, "--class-conditional needs a class-conditional teacher"),
        ({}, {"module": rectified_flow}, "methods that can teach: ddpm, edm"),
        ({}, {"module": flow_matching, "coupling": "optimal"}, "without a model on a Gaussian path"),
        ({}, {"module": flow_matching, "source": "moons"}, "without a model on a Gaussian path"),
        ({"sigma_max": 0.001}, None, "expected 0 < min < max"),
        ({"levels": 5}, None, "--levels is 5; expected at least 10"),
        ({"target_decay": 1.0}, {}, "--target-decay is 1.0"),
        ({"last_level": 30.0}, None, "--last-level is 30.0"),
        ({"growth_steps": 0}, None, "--growth-steps is 0"),
    ],
)
def test_what_cannot_work_is_refused(options, teacher, told):
    other = None if teacher is None else trained_teacher("moons", **teacher)
    with pytest.raises(UsageError, match=told.replace("(", r"\(")):
        consistency.resolve(consistency.Config(network=TINY, **options), data.load("moons").examples, other)
