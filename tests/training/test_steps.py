"""Step combinators: gradients, moving averages and randomness do what their equations say."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from genjax.training.steps import adamw, from_loss, global_norm, new_state, step_key, with_ema
from genjax.typing import Batch


def _quadratic(params, key, batch):
    return 0.5 * jnp.sum((params - batch.data) ** 2), {"size": jnp.sum(params)}


def _state(params, optimizer):
    return new_state(jax.random.key(3), params, optimizer.init(params))


def test_a_step_is_the_optimizers_update():
    optimizer = optax.sgd(0.1)
    params, data = jnp.array([1.0, 2.0]), jnp.array([0.0, 1.0])
    state, metrics = from_loss(_quadratic, optimizer)(_state(params, optimizer), Batch(data))
    np.testing.assert_allclose(state.params, params - 0.1 * (params - data), rtol=1e-6)
    assert int(state.step) == 1
    np.testing.assert_allclose(metrics["loss"], 1.0)
    np.testing.assert_allclose(metrics["grad_norm"], np.sqrt(2.0), rtol=1e-6)
    np.testing.assert_allclose(metrics["size"], 3.0)


def test_the_global_norm_is_that_of_all_arrays_as_one_vector():
    rng = np.random.default_rng(0)
    shapes = [(), (7,), (5, 1), (3, 4), (2, 3, 4, 5), (0, 3), (3, 300, 200)]
    grads = [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]
    expected = np.linalg.norm(np.concatenate([np.ravel(leaf) for leaf in grads]))
    np.testing.assert_allclose(global_norm(grads), expected, rtol=1e-6)
    halved = global_norm([leaf.astype(jnp.bfloat16) for leaf in grads])
    assert halved.dtype == jnp.float32
    np.testing.assert_allclose(halved, expected, rtol=1e-2)


def test_each_step_has_its_own_key_and_the_same_one_when_repeated():
    optimizer = optax.sgd(0.0)

    def loss(params, key, batch):
        return jnp.sum(params**2), {"draw": jax.random.uniform(key)}

    step = from_loss(loss, optimizer)
    state = _state(jnp.ones(2), optimizer)
    first, one = step(state, Batch(jnp.ones(2)))
    _, again = step(state, Batch(jnp.ones(2)))
    _, two = step(first, Batch(jnp.ones(2)))
    assert one["draw"] == again["draw"] != two["draw"]
    expected = jax.random.fold_in(jax.random.key(3), 0)
    assert jnp.array_equal(jax.random.key_data(step_key(state)), jax.random.key_data(expected))


def test_moving_average_follows_its_equation_with_warm_up():
    optimizer, decay = optax.sgd(0.3), 0.3
    step = with_ema(from_loss(_quadratic, optimizer), decay)
    state = _state(jnp.array([4.0]), optimizer)
    ema = np.array([4.0])
    for k in range(6):
        state, _ = step(state, Batch(jnp.array([0.0])))
        d = min(decay, (1 + k) / (10 + k))
        ema = d * ema + (1 - d) * np.asarray(state.params)
        np.testing.assert_allclose(state.ema, ema, rtol=1e-5)


def test_moving_average_of_a_part_and_of_constants_is_exact():
    optimizer = optax.sgd(0.0)
    params = {"kept": jnp.array([0.1, 1 / 3]), "other": jnp.array([5.0])}
    step = with_ema(
        from_loss(lambda p, key, batch: (jnp.sum(p["other"]), {}), optimizer), 0.9, select=lambda p: p["kept"]
    )
    state = new_state(jax.random.key(0), params, optimizer.init(params), ema=params["kept"])
    for _ in range(5):
        state, _ = step(state, Batch(jnp.ones(1)))
    assert np.array_equal(state.ema, params["kept"])


def test_decay_must_be_one():
    with pytest.raises(ValueError, match="decay is 1"):
        with_ema(lambda state, batch: (state, {}), 1.0)


def _rate_at(optimizer, step, calls=1):
    """The learning rate at training step `step`: an Adam update with constant gradients has size rate."""
    params = jnp.zeros(1)
    opt_state = optimizer.init(params)
    for _ in range(calls):
        updates, opt_state = optimizer.update(jnp.ones(1), opt_state, params, step=jnp.asarray(step))
    return -float(updates[0])


@pytest.mark.parametrize(
    ("schedule", "step", "expected"),
    [
        ("cosine", 0, 0.0),
        ("cosine", 5, 0.5),
        ("cosine", 10, 1.0),
        ("cosine", 60, 0.5),
        ("cosine", 110, 0.0),
        ("linear", 60, 0.5),
        ("constant", 60, 1.0),
    ],
)
def test_learning_rate_schedule(schedule, step, expected):
    optimizer = adamw(1.0, 110, schedule=schedule, warmup=10)
    np.testing.assert_allclose(_rate_at(optimizer, step), expected, atol=1e-4)


def test_the_schedule_follows_the_step_however_often_it_is_called():
    optimizer = adamw(1.0, 110, warmup=10)
    np.testing.assert_allclose([_rate_at(optimizer, 60, calls) for calls in (1, 5)], 0.5, atol=1e-4)


def test_a_step_of_a_method_is_the_step_of_optax_adamw():
    """Called once a step, the schedule by step is optax's schedule by count: in float64 to rounding, at every step."""
    rate = optax.join_schedules([optax.linear_schedule(0.0, 0.1, 3), optax.cosine_decay_schedule(0.1, 17)], [3])
    foreign = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(rate, b1=0.8, b2=0.95, weight_decay=0.1))
    own = adamw(0.1, 20, warmup=3, weight_decay=0.1, clip_norm=0.5, b1=0.8, b2=0.95)
    params: list[list[jax.Array]] = [[], []]
    with jax.enable_x64(True):
        for optimizer, reached in zip((own, foreign), params, strict=True):
            state, step = _state(jnp.array([1.0, -2.0]), optimizer), from_loss(_quadratic, optimizer)
            for _ in range(20):
                state, _ = step(state, Batch(jnp.array([0.5, 3.0])))
                reached.append(state.params)
        np.testing.assert_allclose(*params, rtol=1e-13)
        assert params[0][0].dtype == jnp.float64
    assert not np.array_equal(params[0][-1], np.array([1.0, -2.0]))


def test_gradients_are_clipped_to_a_global_norm():
    optimizer = adamw(1.0, 10, schedule="constant", clip_norm=1.0)
    params = jnp.zeros(2)
    state = optimizer.init(params)
    _, state = optimizer.update(jnp.array([30.0, 40.0]), state, params, step=jnp.asarray(0))
    moments = [leaf for leaf in jax.tree.leaves(state) if leaf.shape == (2,)]
    np.testing.assert_allclose(moments[0], 0.1 * np.array([0.6, 0.8]), rtol=1e-5)


@pytest.mark.parametrize(("clip_update", "expected"), [(0.0, 10.0), (2.0, 2.0)])
def test_a_sudden_gradient_moves_an_array_by_so_many_learning_rates(clip_update, expected):
    """Without a first moment Adam's direction for the first large gradient after small ones is `1 / sqrt(1 - b2)`."""
    optimizer = adamw(0.01, 10, schedule="constant", clip_norm=0, b1=0.0, b2=0.99, clip_update=clip_update)
    params = {"sudden": jnp.zeros(4), "steady": jnp.zeros(4)}
    state = optimizer.init(params)
    for sudden in [1e-4] * 1000 + [1e3]:
        grads = {"sudden": jnp.full(4, sudden), "steady": jnp.ones(4)}
        updates, state = optimizer.update(grads, state, params, step=jnp.asarray(0))
    np.testing.assert_allclose(updates["sudden"], -0.01 * expected, rtol=1e-3)
    np.testing.assert_allclose(updates["steady"], -0.01, rtol=1e-3)


def test_unknown_schedule():
    with pytest.raises(ValueError, match="schedule is 'step'"):
        adamw(1.0, 10, schedule="step")
