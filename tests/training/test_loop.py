"""The loop: what it computes does not depend on how it is cut, placed or watched."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from genjax.training import loop
from genjax.training.data import batch_indices
from genjax.training.data.dataset import from_arrays, host_batch
from genjax.training.steps import from_loss, new_state, with_ema
from genjax.typing import Method

OPTIONS = dict(batch_size=8, steps_per_dispatch=10, progress=False)


def _dataset(num=50, images=False):
    rng = np.random.default_rng(0)
    if images:
        return from_arrays("images", rng.integers(0, 256, (num, 4, 4, 1), dtype=np.uint8), None)
    return from_arrays("points", rng.normal(size=(num, 2)).astype(np.float32) * 3 + 1, None)


def _method(record=None):
    """Learns the mean of the data with noisy gradients."""
    optimizer = optax.adam(0.05)

    def loss(params, key, batch):
        noise = 0.1 * jax.random.normal(key, batch.data.shape)
        if record is not None:
            jax.debug.callback(lambda x: record.append(np.asarray(x)), batch.data, ordered=True)
        return jnp.mean((params[None] - batch.data - noise) ** 2), {}

    def init(key, batch):
        params = jnp.zeros(batch.data.shape[1:])
        return new_state(key, params, optimizer.init(params))

    def evaluate(params, key, batch):
        return {"loss": jnp.mean((params[None] - batch.data) ** 2)}

    return Method(init, with_ema(from_loss(loss, optimizer), 0.9), lambda params, key, num: params, evaluate=evaluate)


def _equal(left, right):
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True))


def test_two_halves_are_the_whole_bit_for_bit():
    dataset, method = _dataset(), _method()
    whole = loop.fit(method, dataset, 1, steps=60, **OPTIONS)
    half = loop.fit(method, dataset, 1, steps=30, **OPTIONS)
    assert _equal(loop.fit(method, dataset, 1, steps=60, state=half, **OPTIONS), whole)
    assert not _equal(loop.fit(method, dataset, 2, steps=60, **OPTIONS), whole)


def test_data_on_the_host_give_what_data_on_the_device_give(monkeypatch):
    dataset, method = _dataset(), _method()
    on_device = loop.fit(method, dataset, 1, steps=25, **OPTIONS)
    monkeypatch.setattr(loop, "DEVICE_BYTES", 0)
    assert _equal(loop.fit(method, dataset, 1, steps=25, **OPTIONS), on_device)


def test_steps_see_the_batches_of_the_index_stream_in_model_units():
    dataset, seen = _dataset(), []
    loop.fit(_method(seen), dataset, 5, steps=12, **OPTIONS)
    jax.effects_barrier()
    indices = batch_indices(5, 0, 12, 8, len(dataset.train.data))
    expected = dataset.scaling.to_model(dataset.train.data[indices])
    np.testing.assert_array_equal(np.stack(seen), expected)


def test_the_callback_sees_every_dispatch_and_can_stop():
    steps = []

    def watch(state, step, metrics):
        assert int(state.step) == step
        assert set(metrics) == {"loss", "grad_norm"}
        steps.append(step)
        return step >= 30

    state = loop.fit(_method(), _dataset(), steps=55, on_dispatch=watch, **OPTIONS)
    assert steps == [10, 20, 30]
    assert int(state.step) == 30


def test_metrics_are_means_over_the_dispatch():
    dataset, method, single, tens = _dataset(), _method(), [], []
    loop.fit(method, dataset, 1, steps=10, on_dispatch=lambda s, k, m: tens.append(m["loss"]), **OPTIONS)
    each = {**OPTIONS, "steps_per_dispatch": 1}
    loop.fit(method, dataset, 1, steps=10, on_dispatch=lambda s, k, m: single.append(m["loss"]), **each)
    np.testing.assert_allclose(tens[0], np.mean(single), rtol=1e-5)


def test_one_program_for_all_full_dispatches():
    traces = []

    def loss(params, key, batch):
        traces.append(1)
        return jnp.mean((params[None] - batch.data) ** 2), {}

    optimizer = optax.sgd(0.1)
    method = _method()._replace(step=from_loss(loss, optimizer), init=_sgd_init(optimizer))
    loop.fit(method, _dataset(), steps=50, **OPTIONS)
    assert len(traces) == 1


def _sgd_init(optimizer):
    def init(key, batch):
        params = jnp.zeros(batch.data.shape[1:])
        return new_state(key, params, optimizer.init(params))

    return init


def test_a_loss_that_is_not_finite_stops_training():
    def loss(params, key, batch):
        return jnp.sum(params) + jnp.inf, {}

    optimizer = optax.sgd(0.1)
    method = _method()._replace(step=from_loss(loss, optimizer), init=_sgd_init(optimizer))
    with pytest.raises(loop.Diverged, match="step 10"):
        loop.fit(method, _dataset(), steps=50, **OPTIONS)


@pytest.mark.parametrize("name", ["steps", "batch_size", "steps_per_dispatch"])
def test_counts_below_one(name):
    with pytest.raises(ValueError, match=f"{name} is 0"):
        loop.fit(_method(), _dataset(), **{"steps": 10, **OPTIONS, name: 0})


def test_evaluation_is_the_mean_over_held_out_examples():
    dataset = _dataset(num=400)
    evaluate = loop.make_evaluate(_method(), dataset, max_examples=32, batch_size=16)
    params = jnp.array([0.5, -0.5])
    held_out = np.asarray(dataset.scaling.to_model(dataset.test.data[:32]))
    expected = np.mean((np.asarray(params) - held_out) ** 2)
    np.testing.assert_allclose(evaluate(params, jax.random.key(0))["loss"], expected, rtol=1e-5)


def test_evaluation_of_fewer_examples_than_a_batch():
    evaluate = loop.make_evaluate(_method(), _dataset(num=50), max_examples=512, batch_size=256)
    assert np.isfinite(evaluate(jnp.zeros(2), jax.random.key(0))["loss"])


def test_a_method_without_evaluation_has_none():
    assert loop.make_evaluate(_method()._replace(evaluate=None), _dataset(), max_examples=8, batch_size=8) is None


def test_host_batches_stay_in_numpy():
    assert isinstance(host_batch(np.zeros((2, 2)), None).data, np.ndarray)
