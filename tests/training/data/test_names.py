import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from genjax.errors import UsageError, UserError
from genjax.training.data import NAMES, Dataset, load


def refusal(name, kind=UserError, **options):
    with pytest.raises(kind) as error:
        load(name, **options)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_the_built_in_names():
    toys = "mixture1d moons eight_gaussians checkerboard two_spirals swiss_roll rings pinwheel grid25 ring8"
    assert list(NAMES) == [*toys.split(), "digits", "mnist"]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "mnist"])
def test_built_in_names_load_under_their_name(name):
    dataset = load(name)
    assert isinstance(dataset, Dataset)
    assert dataset.name == name
    assert dataset.train.data.shape[1:] == dataset.test.data.shape[1:]
    assert (dataset.num_classes == 0) == (dataset.train.label is None)


def test_mnist_takes_a_directory(tmp_path):
    assert str(tmp_path) in refusal("mnist", data_dir=str(tmp_path))


@pytest.mark.parametrize("options", [{"data_dir": "somewhere"}, {"download": True}])
def test_only_mnist_takes_a_directory_or_a_download(options):
    assert "only 'mnist' does" in refusal("moons", UsageError, **options)


def test_unknown_names_are_answered_with_the_nearest():
    assert "unknown data set 'monns': did you mean 'moons'?" in refusal("monns", UsageError)
    assert "known: mixture1d, moons" in refusal("", UsageError)
    assert "unknown data set" in refusal("x" * 5000, UsageError)


@pytest.mark.parametrize("name", ["absent.npy", "absent.npz", "./absent", "no/such/folder", "~/no-such-thing"])
def test_paths_that_lead_nowhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refusal(name) == f"no such file or folder: '{name}'"


def test_files_and_folders_are_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    np.save("points.npy", np.arange(30.0).reshape(10, 3))
    (tmp_path / "faces").mkdir()
    for index in range(3):
        Image.new("L", (4, 4), index).save(tmp_path / "faces" / f"{index}.png")
    for name in ("points.npy", str(tmp_path / "points.npy"), "~/points.npy"):
        assert load(name).train.data.shape == (9, 3)
    for name in ("faces", "./faces", "faces/"):
        assert load(name).train.data.shape == (2, 4, 4, 1)
        assert load(name).name == "faces"


def test_a_built_in_name_wins_over_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rings").mkdir()
    assert load("rings").train.data.shape == (262_144, 2)


def test_files_of_another_kind(tmp_path):
    (tmp_path / "points.csv").write_text("1,2")
    assert "expected a .npy or .npz file or a folder of images" in refusal(str(tmp_path / "points.csv"))


def test_importing_loads_no_heavy_library():
    code = "import sys, genjax.training.data; print([m for m in sys.argv[1:] if m in sys.modules])"
    heavy = ["sklearn", "scipy", "PIL", "matplotlib", "orbax", "flax", "optax", "tqdm"]
    found = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
