"""Images that are not MNIST: scikit-learn's digits, and folders of image files."""

import os
from pathlib import Path

import numpy as np

from genjax.errors import UserError
from genjax.training.data.dataset import Dataset, from_arrays, hold_out, integer_scaling

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
MODES = ("L", "RGB", "RGBA")
NUM_DIGITS_TEST = 297


def digits() -> Dataset:
    """scikit-learn's 1797 handwritten digits: `[8, 8, 1]` uint8, integers 0 .. 16 (17 levels), 10 classes.

    297 are held out (`dataset.hold_out`), 1500 are for training. Source: Alpaydin & Kaynak 1998, "Optical
    Recognition of Handwritten Digits", UCI repository (its test set).
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = bunch.images.astype(np.uint8)[..., None]
    train, test = hold_out(images, bunch.target.astype(np.int32), NUM_DIGITS_TEST)
    return Dataset("digits", train, test, integer_scaling(17), num_classes=10, log_density=None)


def image_folder(path: str | os.PathLike) -> Dataset:
    """The images (png, jpg, jpeg, webp, bmp) in a folder, of one size and mode (L, RGB or RGBA), as uint8.

    With images in subfolders instead, each subfolder is a class; classes are numbered in the order of their
    names. Names that begin with a dot are passed over, deeper folders are not looked into. A tenth is held
    out (`dataset.hold_out`).

    Raises:
        UserError: no images or only one, images beside class folders, a class folder without images, an image
            that cannot be read or differs from the first one in size or mode.
    """
    folder = Path(path)
    try:
        files, label = _list_images(folder)
    except OSError as error:
        raise UserError(f"cannot read '{folder}': {error.strerror or error}") from error
    if len(files) < 2:
        found = "one image" if files else "no images"
        raise UserError(f"'{folder}' holds {found} ({', '.join(SUFFIXES)}); expected at least 2")
    return from_arrays(folder.resolve().name, _read_images(files), label)


def _list_images(folder: Path) -> tuple[list[Path], np.ndarray | None]:
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    files = [entry for entry in entries if _is_image(entry)]
    classes = {
        entry: [inner for inner in sorted(entry.iterdir()) if _is_image(inner)] for entry in entries if entry.is_dir()
    }
    if not any(classes.values()):
        return files, None
    if files:
        raise UserError(f"'{folder}' holds images ('{files[0].name}') beside class folders; expected one or the other")
    empty = [entry.name for entry, images in classes.items() if not images]
    if empty:
        raise UserError(f"class folder '{empty[0]}' in '{folder}' holds no images ({', '.join(SUFFIXES)})")
    sizes = [len(images) for images in classes.values()]
    label = np.repeat(np.arange(len(classes), dtype=np.int32), sizes)
    return [image for images in classes.values() for image in images], label


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def _read_images(files: list[Path]) -> np.ndarray:
    first = _read_image(files[0])
    images = np.empty((len(files), *first.shape), np.uint8)
    for index, file in enumerate(files):
        image = _read_image(file)
        if image.shape != first.shape:
            raise UserError(
                f"'{file}' is {_describe(image)} but '{files[0]}' is {_describe(first)}; "
                "expected images of one size and mode"
            )
        images[index] = image
    return images


def _read_image(file: Path) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(file) as image:
            mode = image.mode
            pixels = np.asarray(image)
    except Exception as error:  # Pillow raises whatever a decoder raises
        summary = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"'{file}' cannot be read as an image: {summary}") from error
    if mode not in MODES:
        raise UserError(f"'{file}' has mode {mode}; expected {', '.join(MODES)} (grey, colour, colour with opacity)")
    return pixels[..., None] if mode == "L" else pixels


def _describe(image: np.ndarray) -> str:
    height, width, channels = image.shape
    return f"{width}x{height} {dict(zip((1, 3, 4), MODES, strict=True))[channels]}"
