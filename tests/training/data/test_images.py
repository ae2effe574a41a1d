import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from genjax.errors import UserError
from genjax.training.data.images import digits, image_folder

RNG = np.random.default_rng(0)


def write(path, shape=(6, 4, 3), mode=None, seed=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = RNG if seed is None else np.random.default_rng(seed)
    pixels = rng.integers(0, 256, shape, np.uint8)
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path)
    return pixels


def refusal(path):
    with pytest.raises(UserError) as error:
        image_folder(path)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_digits_are_the_1797_integers_of_scikit_learn():
    dataset = digits()
    assert dataset.train.data.shape == (1500, 8, 8, 1)
    assert dataset.test.data.shape == (297, 8, 8, 1)
    assert dataset.train.data.dtype == np.uint8
    assert dataset.train.data.max() == 16
    assert dataset.scaling == (8, 8.5, 17)
    assert dataset.num_classes == 10

    def rows(images, labels):
        return sorted(map(tuple, np.column_stack([np.reshape(images, (-1, 64)), labels]).astype(int).tolist()))

    images = np.concatenate([dataset.train.data, dataset.test.data])
    labels = np.concatenate([dataset.train.label, dataset.test.label])
    assert rows(images, labels) == rows(load_digits().images, load_digits().target)


def test_the_held_out_digits_are_always_the_same_and_of_every_class():
    first, second = digits(), digits()
    np.testing.assert_array_equal(first.test.data, second.test.data)
    assert np.bincount(first.test.label).min() >= 15


@pytest.mark.parametrize(
    ("suffix", "shape", "channels"),
    [
        ("png", (6, 4), 1),
        ("png", (6, 4, 3), 3),
        ("png", (6, 4, 4), 4),
        ("bmp", (6, 4), 1),
        ("bmp", (6, 4, 3), 3),
        ("webp", (6, 4, 3), 3),
    ],
)
def test_a_flat_folder_is_unlabelled(tmp_path, suffix, shape, channels):
    written = [write(tmp_path / f"{index:02}.{suffix}", shape) for index in range(20)]
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden.png").write_text("not an image either")
    (tmp_path / "empty").mkdir()
    dataset = image_folder(tmp_path)
    assert dataset.name == tmp_path.name
    assert dataset.train.data.shape == (18, 6, 4, channels)
    assert dataset.test.data.shape == (2, 6, 4, channels)
    assert dataset.train.data.dtype == np.uint8
    assert dataset.train.label is None
    assert dataset.num_classes == 0
    assert dataset.scaling == (127.5, 128, 256)
    if suffix != "webp":
        both = np.concatenate([dataset.train.data, dataset.test.data])
        assert sorted(image.tobytes() for image in both) == sorted(image.tobytes() for image in written)


def test_upper_case_and_jpeg_suffixes(tmp_path):
    for name in ("a.JPG", "b.jpeg", "c.PNG"):
        write(tmp_path / name)
    assert image_folder(tmp_path).train.data.shape == (2, 6, 4, 3)


def test_subfolders_are_classes_in_the_order_of_their_names(tmp_path):
    written = {}
    for number, name in enumerate(["ant", "bee", "cow"]):
        for index in range(4 + number):
            written[write(tmp_path / name / f"{index}.png").tobytes()] = number
    (tmp_path / ".cache").mkdir()
    (tmp_path / "ant" / "._0.png").write_text("not an image")
    dataset = image_folder(tmp_path)
    assert dataset.num_classes == 3
    assert len(dataset.train.data) + len(dataset.test.data) == 15
    for part in (dataset.train, dataset.test):
        assert part.label.dtype == np.int32
        assert [written[image.tobytes()] for image in part.data] == part.label.tolist()


def test_the_order_of_examples_is_that_of_the_names(tmp_path):
    for seed in (3, 1, 4, 0, 2):
        write(tmp_path / f"{seed}.png", seed=seed)
    expected = [np.random.default_rng(seed).integers(0, 256, (6, 4, 3), np.uint8) for seed in range(5)]
    dataset = image_folder(tmp_path)
    position = [next(i for i, image in enumerate(expected) if (image == one).all()) for one in dataset.train.data]
    assert position == sorted(position)


def test_folders_without_enough_images(tmp_path):
    assert f"'{tmp_path}' holds no images (.png" in refusal(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"")
    assert "no images" in refusal(tmp_path)
    write(tmp_path / "a.png")
    assert "one image" in refusal(tmp_path)
    assert "cannot read" in refusal(tmp_path / "a.png")


def test_images_beside_class_folders_and_empty_classes(tmp_path):
    for name in ("ant/0.png", "ant/1.png"):
        write(tmp_path / name)
    (tmp_path / "bee").mkdir()
    assert "class folder 'bee'" in refusal(tmp_path)
    write(tmp_path / "bee" / "0.png")
    write(tmp_path / "stray.png")
    assert "'stray.png'" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("odd", "complaint"),
    [
        ({"shape": (4, 6, 3)}, "is 6x4 RGB but"),
        ({"shape": (6, 4)}, "is 4x6 L but"),
        ({"shape": (6, 4, 4)}, "is 4x6 RGBA but"),
        ({"mode": "P"}, "has mode P"),
        ({"shape": (6, 4), "mode": "1"}, "has mode 1"),
        ({"shape": (6, 4), "mode": "I;16"}, "has mode I;16"),
    ],
)
def test_the_odd_image_is_named(tmp_path, odd, complaint):
    for name in ("a", "b", "c"):
        write(tmp_path / f"{name}.png", **(odd if name == "b" else {}))
    message = refusal(tmp_path)
    assert str(tmp_path / "b.png") in message
    assert complaint in message


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_damaged_images_are_named(tmp_path, content):
    for name in ("a", "b", "c"):
        write(tmp_path / f"{name}.png", (60, 40, 3))
    damaged = tmp_path / "b.png"
    damaged.write_bytes(damaged.read_bytes()[:-3000] if content is None else content)
    message = refusal(tmp_path)
    assert f"'{damaged}' cannot be read as an image" in message
