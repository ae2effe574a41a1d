"""Points or images from a `.npy` or `.npz` file."""

import os
from pathlib import Path

import numpy as np

from genjax.errors import UserError
from genjax.training.data.dataset import Dataset, from_arrays

SUFFIXES = (".npy", ".npz")


def array_file(path: str | os.PathLike) -> Dataset:
    """The data set in a NumPy file: points `[N, D]` or `[N]`, or images `[N, H, W]` or `[N, H, W, C]`.

    C is 1, 3 or 4. An `.npz` holds the examples under `data`, or as its first array that is not the labels;
    under `label` or `labels` there may be integers `[N]`, the classes 0 .. K - 1. Images of uint8 have 256
    levels; everything else becomes float32. A tenth is held out (`dataset.hold_out`). Pickles are not loaded.

    Raises:
        UserError: a file that cannot be read, or does not hold what is said above (wrong shape or dtype, NaN
            or infinity, fewer than 2 examples, labels that do not fit).
    """
    path = Path(path)
    data, label = _read(path)
    data = _as_examples(path, data)
    return from_arrays(path.stem, data, None if label is None else _as_labels(path, label, len(data)))


def _read(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    try:
        with open(path, "rb") as file:
            magic = file.read(6)
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror or error}") from error
    if magic != b"\x93NUMPY" and magic[:2] != b"PK":
        raise UserError(f"'{path}' is no NumPy file (it starts with {magic!r}); write one with numpy.save")
    try:
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return content, None
        with content:
            return _choose(path, content)
    except UserError:
        raise
    except Exception as error:  # NumPy and zipfile raise a dozen kinds for bytes they do not expect
        if "allow_pickle" in str(error):
            raise UserError(f"'{path}' holds Python objects (dtype object); expected numbers") from error
        summary = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"'{path}' is truncated or corrupt: {summary}") from error


def _choose(path: Path, archive: np.lib.npyio.NpzFile) -> tuple[np.ndarray, np.ndarray | None]:
    label_key = next((key for key in ("label", "labels") if key in archive.files), None)
    data_keys = [key for key in archive.files if key not in ("label", "labels")]
    if not data_keys:
        raise UserError(f"'{path}' holds no array of data (its keys: {', '.join(archive.files) or 'none'})")
    data_key = "data" if "data" in data_keys else data_keys[0]
    return np.asarray(archive[data_key]), None if label_key is None else np.asarray(archive[label_key])


def _as_examples(path: Path, data: np.ndarray) -> np.ndarray:
    if data.dtype.kind not in "buif":
        raise UserError(f"'{path}' holds data of dtype {data.dtype}; expected real numbers")
    if data.ndim not in (1, 2, 3, 4) or (data.ndim == 4 and data.shape[3] not in (1, 3, 4)):
        raise UserError(
            f"'{path}' holds data of shape {data.shape}; expected points [N, D] or [N], or images "
            "[N, H, W] or [N, H, W, C] with 1, 3 or 4 channels last"
        )
    if data.size == 0 or len(data) < 2:
        raise UserError(f"'{path}' holds data of shape {data.shape}; expected at least 2 examples")
    is_image = data.ndim >= 3
    if data.ndim in (1, 3):
        data = data[..., None]
    if is_image and data.dtype == np.uint8:
        return data
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(data, dtype=np.float32)
    bad = int(values.size - np.isfinite(values).sum())
    if bad:
        raise UserError(f"'{path}' holds {bad} of {values.size} values that are NaN, infinite or beyond float32")
    return values


def _as_labels(path: Path, label: np.ndarray, num: int) -> np.ndarray:
    if label.dtype.kind not in "ui" or label.shape != (num,):
        raise UserError(
            f"'{path}' holds labels of shape {label.shape} and dtype {label.dtype}; expected one "
            f"integer for each example: ({num},)"
        )
    classes = np.unique(label)
    if not np.array_equal(classes, np.arange(len(classes))):
        raise UserError(
            f"'{path}' holds {len(classes)} different labels from {classes[0]} to {classes[-1]}; "
            f"expected every class 0 .. {len(classes) - 1}"
        )
    return label.astype(np.int32)
