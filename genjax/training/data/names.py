"""From what a user calls a data set to the data set."""

import os

from genjax.errors import UsageError, UserError, unknown
from genjax.training.data import array_files, images, mnist, toys
from genjax.training.data.dataset import Dataset

NAMES = (*toys.GENERATORS, "digits", "mnist")
"""The built-in data sets."""


def load(name: str, *, data_dir: str | None = None, download: bool = False) -> Dataset:
    """The data set called `name`: one of `NAMES`, a `.npy` or `.npz` file, or a folder of images.

    Args:
        name: a built-in name (see `toys`, `images.digits`, `mnist.mnist`), or else a path (see
            `array_files.array_file`, `images.image_folder`).
        data_dir: where the files of `mnist` are; no other data set has one.
        download: fetch the files of `mnist` that are not there.

    Raises:
        UsageError: a name that is neither built in nor a path; `data_dir` or `download` without `mnist`.
        UserError: files that are missing or do not hold what they should.

    >>> moons = load("moons")
    >>> moons.train.data.shape, moons.test.data.shape, moons.num_classes
    ((262144, 2), (16384, 2), 2)
    """
    if name == "mnist":
        return mnist.mnist(data_dir, download=download)
    if data_dir is not None or download:
        raise UsageError(f"data set '{name}' takes no data directory and no download; only 'mnist' does")
    if name in toys.GENERATORS:
        return toys.toy(name)
    if name == "digits":
        return images.digits()
    path = os.path.expanduser(name)
    if os.path.isdir(path):
        return images.image_folder(path)
    if os.path.exists(path) and name.endswith(array_files.SUFFIXES):
        return array_files.array_file(path)
    if os.path.exists(path):
        expected = " or ".join(array_files.SUFFIXES)
        raise UserError(f"'{name}' is no data set; expected a {expected} file or a folder of images")
    if _looks_like_path(name):
        raise UserError(f"no such file or folder: '{name}'")
    raise unknown("data set", name, NAMES)


def _looks_like_path(name: str) -> bool:
    return os.sep in name or name.startswith(("~", ".")) or name.endswith(array_files.SUFFIXES)
