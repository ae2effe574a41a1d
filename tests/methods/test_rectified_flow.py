"""Rectified flow: when its teacher changes, whose pairs it learns, and that reflow raises no transport cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import oracles, paths, samplers
from genjax.errors import UsageError
from genjax.methods import rectified_flow
from genjax.methods.network_options import NetworkOptions
from genjax.training import data, loop
from genjax.training.data import toys
from genjax.training.steps import adamw
from genjax.typing import Examples

TINY = NetworkOptions(width=16, depth=1)


def equal(left, right):
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True))


def test_the_teacher_is_the_average_at_the_end_of_each_round_and_of_no_other_step():
    dataset = data.load("moons")
    config = rectified_flow.Config(reflow=2, round_steps=3, pair_steps=2, network=TINY)
    method = rectified_flow.build(config, adamw(1e-2, 12), dataset.examples)
    batch = loop.example_batch(dataset, 16)
    state, step = method.init(jax.random.key(0), batch), jax.jit(method.step)
    teachers, averages = [state.frozen["teacher"]], [state.ema]
    for _ in range(12):
        state, _ = step(state, batch)
        teachers.append(state.frozen["teacher"])
        averages.append(state.ema)
    changed = [k for k in range(12) if not equal(teachers[k + 1], teachers[k])]
    assert changed == [3, 6]  # rounds 0, 1 and 2 start at steps 0, 3 and 6; the last goes on to the end
    assert equal(teachers[4], averages[3])
    assert equal(teachers[7], averages[6])


@pytest.mark.parametrize("class_conditional", [False, True])
def test_a_round_learns_the_pairs_of_its_teacher(class_conditional):
    """With a teacher whose velocity is 0 data equal noise: the loss of a network that says 0 is 0, and was 2 before."""
    dataset = data.load("moons")
    config = rectified_flow.Config(round_steps=1, pair_steps=2, class_conditional=class_conditional, network=TINY)
    method = rectified_flow.build(config, adamw(1e-9, 10), dataset.examples)
    batch = loop.example_batch(dataset, 256)
    state = method.init(jax.random.key(0), batch)
    zeros = jax.tree.map(jnp.zeros_like, state.params)
    state = state._replace(params=zeros, ema=jax.tree.map(jnp.copy, zeros))
    losses = []
    for _ in range(2):
        state, metrics = jax.jit(method.step)(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[0] == pytest.approx(2, abs=0.3)
    assert losses[1] < 1e-6


def test_pairs_of_a_round_are_kept_and_a_new_round_forgets_those_of_the_last():
    dataset = data.load("moons")
    config = rectified_flow.Config(reflow=2, round_steps=3, pair_steps=2, network=TINY)
    method = rectified_flow.build(config, adamw(1e-2, 12), dataset.examples)
    batch = loop.example_batch(dataset, 16)
    state, step = method.init(jax.random.key(0), batch), jax.jit(method.step)
    made = []
    for _ in range(8):
        state, _ = step(state, batch)
        made.append(np.asarray(state.frozen["pairs"].noise))
    assert [int(np.any(noise != 0, axis=1).sum()) for noise in made] == [0, 0, 0, 2, 4, 6, 6, 6]  # two a step
    np.testing.assert_array_equal(made[5][:4], made[4][:4])
    assert np.all(made[6][:2] != made[5][:2])
    np.testing.assert_array_equal(made[6][2:], made[5][2:])


@pytest.mark.parametrize("name", ["eight_gaussians", "grid25"])
def test_the_exact_flow_raises_no_transport_cost(name):
    """E |x - noise|^p is lower on the flow's own pairs than on pairs by chance, and the data are the same in law."""
    mixture, path = toys.exact_mixture(name), paths.linear()
    noise = jax.random.normal(jax.random.key(0), (2000, 2))
    by_chance, _ = toys.GENERATORS[name](np.random.default_rng(0), 2000)
    knots = paths.knots(path, jnp.linspace(0.0, 1.0, 201))
    flow = jax.jit(
        lambda x: samplers.sample(samplers.euler(path), oracles.denoiser(mixture), jax.random.key(0), x, knots)
    )
    made = np.asarray(flow(noise))
    assert np.abs(made.std(axis=0) / by_chance.std(axis=0) - 1).max() < 0.1
    for power in (1, 2, 4):
        cost, chance = (np.mean(np.linalg.norm(x - noise, axis=1) ** power) for x in (made, by_chance))
        assert cost < 0.9 * chance


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"reflow": -1}, "--reflow is -1; expected at least 0"),
        ({"round_steps": 0}, "--round-steps is 0; expected at least 1"),
        ({"pair_steps": 0}, "--pair-steps is 0"),
        ({"class_conditional": True}, "--class-conditional needs labels"),
    ],
)
def test_what_cannot_work_is_refused(options, told):
    with pytest.raises(UsageError, match=told):
        rectified_flow.resolve(rectified_flow.Config(**options), Examples((2,)))


def test_rounds_share_the_steps_of_a_run():
    config = rectified_flow.Config(reflow=2)
    assert rectified_flow.for_steps(config, 100).round_steps == 33
    given = rectified_flow.Config(reflow=2, round_steps=40)
    assert rectified_flow.for_steps(given, 100) == given
    with pytest.raises(UsageError, match="--steps 80 ends before the last of 3 rounds of 40 steps begins"):
        rectified_flow.for_steps(given, 80)
    assert rectified_flow.resolve(rectified_flow.Config(round_steps=30_000), Examples((2,))).round_steps == 30_000


def test_rounds_share_the_default_steps():
    for examples in (Examples((2,)), Examples((8, 8, 1))):
        config = rectified_flow.resolve(rectified_flow.Config(reflow=3), examples)
        assert 4 * config.round_steps == rectified_flow.recommended(examples).steps
