import time

import numpy as np
import pytest

from genjax.training.data import batch_indices


@pytest.mark.parametrize(("batch_size", "num_examples"), [(1, 7), (4, 8), (5, 12), (32, 5), (7, 7), (3, 1)])
def test_every_epoch_visits_every_example_exactly_once(batch_size, num_examples):
    stream = batch_indices(3, 0, 4 * num_examples, batch_size, num_examples).ravel()
    epochs = stream[: len(stream) // num_examples * num_examples].reshape(-1, num_examples)
    assert len(epochs) >= 4
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(num_examples), (len(epochs), 1)))


@pytest.mark.parametrize(("batch_size", "num_examples"), [(4, 8), (5, 12), (32, 5), (128, 1500)])
def test_a_resumed_stream_continues_the_stream(batch_size, num_examples):
    whole = batch_indices(1, 0, 40, batch_size, num_examples)
    for k in (1, 13, 20):
        parts = [batch_indices(1, 0, k, batch_size, num_examples)]
        parts += [batch_indices(1, k, 40 - k, batch_size, num_examples)]
        np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_shape_dtype_and_emptiness():
    indices = batch_indices(0, 5, 3, 4, 10)
    assert indices.shape == (3, 4)
    assert indices.dtype == np.int32
    assert batch_indices(0, 5, 0, 4, 10).shape == (0, 4)


def test_epochs_and_seeds_have_different_orders():
    first, second = batch_indices(0, 0, 2, 100, 100)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, batch_indices(1, 0, 1, 100, 100)[0])
    assert not np.array_equal(first, np.arange(100))


def test_neighbouring_large_seeds_differ():
    last, before = (batch_indices(seed, 0, 1, 100, 100) for seed in (2**64 - 1, 2**64 - 2))
    assert not np.array_equal(last, before)


def test_positions_are_equally_likely():
    counts = np.zeros((5, 5))
    for seed in range(2000):
        counts[np.arange(5), batch_indices(seed, 0, 1, 5, 5)[0]] += 1
    np.testing.assert_allclose(counts / 2000, 0.2, atol=5 * np.sqrt(0.2 * 0.8 / 2000))


def test_numpy_integers_do_not_overflow():
    step = np.int32(2**31 - 1)
    expected = batch_indices(0, 2**31 - 1, 1, 512, 1000)
    np.testing.assert_array_equal(batch_indices(0, step, np.int32(1), np.int32(512), np.int32(1000)), expected)


def test_what_is_returned_can_be_changed_without_changing_the_stream():
    expected = batch_indices(0, 0, 1, 10, 10).copy()
    batch_indices(0, 0, 1, 10, 10)[:] = 0
    np.testing.assert_array_equal(batch_indices(0, 0, 1, 10, 10), expected)


def test_a_chunk_within_a_cached_epoch_is_fast():
    batch_indices(0, 0, 1, 512, 2**18)

    def seconds(step):
        start = time.perf_counter()
        batch_indices(0, step, 100, 512, 2**18)
        return time.perf_counter() - start

    assert min(seconds(step) for step in range(0, 400, 100)) < 1e-3


@pytest.mark.parametrize(
    "arguments", [(-1, 0, 1, 1, 1), (2**64, 0, 1, 1, 1), (0, -1, 1, 1, 1), (0, 0, 1, 0, 1), (0, 0, 1, 1, 0)]
)
def test_arguments_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match="out of range"):
        batch_indices(*arguments)
