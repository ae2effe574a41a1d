import io
import zipfile

import numpy as np
import pytest

from genjax.errors import UserError
from genjax.training.data.array_files import array_file

RNG = np.random.default_rng(0)


def save(path, data, **others):
    if path.suffix == ".npy":
        np.save(path, data, allow_pickle=True)
    else:
        np.savez(path, data=data, **others)
    return path


def refusal(path):
    with pytest.raises(UserError) as error:
        array_file(path)
    message = str(error.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@pytest.mark.parametrize(
    ("shape", "event"),
    [
        ((20,), (1,)),
        ((20, 3), (3,)),
        ((20, 4, 6), (4, 6, 1)),
        ((20, 4, 6, 1), (4, 6, 1)),
        ((20, 4, 6, 3), (4, 6, 3)),
        ((20, 4, 6, 4), (4, 6, 4)),
    ],
)
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_shapes(tmp_path, shape, event, suffix):
    data = RNG.normal(size=shape)
    dataset = array_file(save(tmp_path / f"mine{suffix}", data))
    assert dataset.name == "mine"
    assert dataset.train.data.shape == (18, *event)
    assert dataset.test.data.shape == (2, *event)
    assert dataset.train.data.dtype == np.float32
    assert dataset.train.label is None
    assert dataset.num_classes == 0
    both = np.concatenate([dataset.train.data, dataset.test.data]).ravel()
    np.testing.assert_allclose(np.sort(both), np.sort(data.ravel()), rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int64, np.uint8, np.bool_, ">f4"])
def test_points_of_every_real_dtype_become_float32(tmp_path, dtype):
    dataset = array_file(save(tmp_path / "a.npy", RNG.integers(0, 2, (20, 3)).astype(dtype)))
    assert dataset.train.data.dtype == np.float32
    assert dataset.scaling.levels == 0
    assert np.isfinite(dataset.scaling.to_model(dataset.train.data)).all()


def test_images_of_bytes_have_256_levels_and_others_span_their_range(tmp_path):
    images = RNG.integers(0, 9, (20, 4, 4)).astype(np.uint8)
    as_bytes, as_integers = (
        array_file(save(tmp_path / "a.npy", images.astype(dtype))) for dtype in (np.uint8, np.int32)
    )
    assert as_bytes.train.data.dtype == np.uint8
    assert as_bytes.scaling == (127.5, 128, 256)
    assert as_integers.train.data.dtype == np.float32
    assert as_integers.scaling == (4, 4, 0)


def test_fortran_order(tmp_path):
    data = RNG.normal(size=(20, 3)).astype(np.float32)
    first, second = (
        array_file(save(tmp_path / "a.npy", data)),
        array_file(save(tmp_path / "b.npy", np.asfortranarray(data))),
    )
    np.testing.assert_array_equal(first.train.data, second.train.data)


@pytest.mark.parametrize("key", ["label", "labels"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_labels_follow_their_examples(tmp_path, key, dtype):
    label = RNG.permutation(np.arange(50) % 5).astype(dtype)
    data = label[:, None] + np.zeros((50, 2))
    dataset = array_file(save(tmp_path / "a.npz", data, **{key: label}))
    assert dataset.num_classes == 5
    for part in (dataset.train, dataset.test):
        assert part.label.dtype == np.int32
        np.testing.assert_array_equal(part.label, part.data[:, 0])


def test_which_array_of_an_archive_holds_the_examples(tmp_path):
    first, second = RNG.normal(size=(9, 2)), RNG.normal(size=(9, 3))
    np.savez(tmp_path / "first.npz", labels=np.zeros(9, int), samples=first, more=second)
    assert array_file(tmp_path / "first.npz").train.data.shape == (8, 2)
    np.savez_compressed(tmp_path / "named.npz", samples=first, data=second)
    assert array_file(tmp_path / "named.npz").train.data.shape == (8, 3)


def test_two_examples_are_enough_and_one_is_not(tmp_path):
    dataset = array_file(save(tmp_path / "a.npy", np.array([[1.0], [2.0]])))
    assert (len(dataset.train.data), len(dataset.test.data)) == (1, 1)
    assert "at least 2 examples" in refusal(save(tmp_path / "a.npy", np.array([[1.0]])))


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (np.array([1.0, np.nan, 2.0]), "1 of 3 values that are NaN"),
        (np.array([[1.0, np.inf], [2.0, -np.inf]]), "2 of 4 values"),
        (np.array([1e300, 1.0]), "beyond float32"),
        (np.array([None, 1]), "Python objects"),
        (np.array(["a", "b"]), "dtype <U1"),
        (np.array([1j, 2]), "dtype complex128"),
        (np.zeros(3, "M8[s]"), "dtype datetime64[s]"),
        (np.zeros(3, [("x", "f4")]), "expected real numbers"),
        (np.zeros((0, 2)), "shape (0, 2)"),
        (np.zeros((5, 0)), "shape (5, 0)"),
        (np.zeros((5, 0, 4), np.uint8), "shape (5, 0, 4)"),
        (np.float64(3), "shape ()"),
        (np.zeros((9, 3, 32, 32)), "channels last"),
        (np.zeros((9, 8, 8, 2)), "1, 3 or 4 channels"),
        (np.zeros((2, 2, 2, 2, 2)), "shape (2, 2, 2, 2, 2)"),
    ],
)
def test_data_that_cannot_be_used(tmp_path, suffix, data, complaint):
    assert complaint in refusal(save(tmp_path / f"a{suffix}", data))


@pytest.mark.parametrize(
    ("label", "complaint"),
    [
        (np.zeros(8, int), "shape (8,)"),
        (np.zeros((9, 1), int), "shape (9, 1)"),
        (np.zeros(9), "dtype float64"),
        (np.array(["a"] * 9), "dtype <U1"),
        (np.arange(9) - 1, "from -1 to 7"),
        (np.arange(9) + 1, "9 different labels from 1 to 9; expected every class 0 .. 8"),
        (np.array([0] * 8 + [2]), "2 different labels from 0 to 2"),
    ],
)
def test_labels_that_do_not_fit(tmp_path, label, complaint):
    assert complaint in refusal(save(tmp_path / "a.npz", np.arange(9.0), label=label))


def test_labels_without_data(tmp_path):
    np.savez(tmp_path / "a.npz", label=np.zeros(3, int))
    assert "no array of data (its keys: label)" in refusal(tmp_path / "a.npz")


def test_an_archive_whose_member_is_no_array(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("data", b"not an array")
    assert "dtype |S12" in refusal(tmp_path / "a.npz")


def damaged(kind):
    buffer = io.BytesIO()
    data = RNG.normal(size=(100, 3))
    np.save(buffer, data) if kind == "npy" else np.savez_compressed(buffer, data=data)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["npy", "npz"])
@pytest.mark.parametrize("kept", [1, 7, 40, 200, -1])
def test_truncated_files(tmp_path, kind, kept):
    path = tmp_path / f"a.{kind}"
    path.write_bytes(damaged(kind)[:kept])
    message = refusal(path)
    assert "truncated or corrupt" in message or (kept == 1 and "no NumPy file" in message)


def test_a_corrupt_byte_in_an_archive(tmp_path):
    content = bytearray(damaged("npz"))
    content[len(content) // 2] ^= 0xFF
    (tmp_path / "a.npz").write_bytes(content)
    assert "truncated or corrupt" in refusal(tmp_path / "a.npz")


def test_files_of_another_kind(tmp_path):
    (tmp_path / "a.npy").write_bytes(b"")
    assert "no NumPy file" in refusal(tmp_path / "a.npy")
    (tmp_path / "a.npy").write_text("1,2\n3,4\n")
    assert "no NumPy file (it starts with b'1,2\\n3,')" in refusal(tmp_path / "a.npy")
    assert "cannot read" in refusal(tmp_path / "absent.npy")
    assert "cannot read" in refusal(tmp_path)
