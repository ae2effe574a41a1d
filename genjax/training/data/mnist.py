"""MNIST: IDX files in a directory, and their download (LeCun, Cortes & Burges, "The MNIST database", 1998).

An IDX file is a big-endian header (two zero bytes, a type code, the number of dimensions, then each dimension
as a uint32) followed by the array in C order. The four files may be plain or gzipped, in the directory itself
or in its `MNIST/raw/`. Any data set in the same four files (Fashion-MNIST, KMNIST, ...) can be read, whatever
its image size.
"""

import gzip
import hashlib
import math
import os
import struct
import urllib.error
import urllib.request
import zlib
from collections.abc import Mapping
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path

import numpy as np

from genjax.errors import UserError
from genjax.training.data.dataset import Dataset, host_batch, integer_scaling
from genjax.typing import Batch

SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
"""The four files, and the SHA-256 of each one's content after decompression."""

MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist/"
TIMEOUT_SECONDS = 30.0
_CHUNK = 1 << 16
_UNSIGNED_BYTE = 0x08
_DECOMPRESSION_ERRORS = (gzip.BadGzipFile, zlib.error, EOFError)


def default_directory() -> Path:
    """Where MNIST is kept when no directory is named: `genjax/mnist` in the user's cache directory."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "genjax" / "mnist"


def mnist(data_dir: str | os.PathLike | None = None, *, download: bool = False) -> Dataset:
    """MNIST: 60,000 training and 10,000 held-out images `[28, 28, 1]` uint8 (256 levels) of 10 digits.

    Args:
        data_dir: the directory of the files; None for `default_directory()`.
        download: fetch into that directory the files that are not there yet (see `fetch`).

    Raises:
        UserError: a file that is missing, truncated or not what its header says; a download that failed.
    """
    directory = Path(data_dir) if data_dir is not None else default_directory()
    if download:
        fetch(directory)
    paths = {name: path for name in SHA256 if (path := _find(directory, name))}
    missing = [name for name in SHA256 if name not in paths]
    if missing:
        raise UserError(
            f"no {', '.join(missing)} (plain or .gz) in '{directory}' or '{directory / 'MNIST' / 'raw'}': "
            "give the directory that holds the files with --data-dir, or let train.py fetch them with --download"
        )
    train = _read_pair(paths["train-images-idx3-ubyte"], paths["train-labels-idx1-ubyte"])
    test = _read_pair(paths["t10k-images-idx3-ubyte"], paths["t10k-labels-idx1-ubyte"])
    if train.data.shape[1:] != test.data.shape[1:]:
        raise UserError(
            f"'{directory}': training images are {train.data.shape[1]}x{train.data.shape[2]}, "
            f"held-out images {test.data.shape[1]}x{test.data.shape[2]}; expected one size"
        )
    num_classes = int(max(np.asarray(train.label).max(), np.asarray(test.label).max())) + 1
    return Dataset("mnist", train, test, integer_scaling(256), num_classes, log_density=None)


def _find(directory: Path, name: str) -> Path | None:
    candidates = [folder / file for folder in (directory, directory / "MNIST" / "raw") for file in (name, f"{name}.gz")]
    return next((path for path in candidates if path.is_file()), None)


def _read_pair(image_path: Path, label_path: Path) -> Batch:
    images, labels = read_idx(image_path, dimensions=3), read_idx(label_path, dimensions=1)
    if len(images) != len(labels):
        raise UserError(f"'{image_path}' holds {len(images)} images but '{label_path}' {len(labels)} labels")
    return host_batch(images[..., None], labels.astype(np.int32))


def read_idx(path: str | os.PathLike, *, dimensions: int) -> np.ndarray:
    """The uint8 array in an IDX file, plain or gzipped (told by its first bytes, not by its name).

    Raises:
        UserError: the file cannot be read, is corrupt, has another type or number of dimensions, is empty, or
            does not hold exactly the bytes that its header announces.
    """
    content = _read(Path(path))
    header_size = 4 + 4 * dimensions
    expected = bytes([0, 0, _UNSIGNED_BYTE, dimensions])
    if content[:4] != expected:
        raise UserError(
            f"'{path}' is no IDX file of unsigned bytes in {dimensions} dimension(s): it starts with "
            f"0x{content[:4].hex()}, expected 0x{expected.hex()}"
        )
    if len(content) < header_size:
        raise UserError(f"'{path}' is truncated: {len(content)} bytes, its header alone has {header_size}")
    shape = struct.unpack(f">{dimensions}I", content[4:header_size])
    announced, held = math.prod(shape), len(content) - header_size
    if held != announced:
        size = "x".join(map(str, shape))
        raise UserError(f"'{path}' holds {held} bytes of data but its header announces {size} = {announced}")
    if announced == 0:
        raise UserError(f"'{path}' is empty: its header announces {'x'.join(map(str, shape))} values")
    return np.frombuffer(content, np.uint8, offset=header_size).reshape(shape)


def _read(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except _DECOMPRESSION_ERRORS as error:
        raise UserError(f"'{path}' is truncated or corrupt: {error}") from error
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror or error}") from error


def fetch(directory: str | os.PathLike, *, base_url: str | None = None, checksums: Mapping[str, str] = SHA256) -> None:
    """Downloads each file of `checksums` that `directory` does not hold yet, as NAME.gz.

    A file gets its name only after its decompressed content has the right SHA-256; nothing else is kept, and
    no existing file is touched. Progress goes to stderr.

    Args:
        directory: made if it is not there.
        base_url: where `NAME.gz` are; by default the environment variable GENJAX_MNIST_URL, or else `MIRROR`.
        checksums: SHA-256 (hexadecimal) of the decompressed content by name.

    Raises:
        UserError: a server or file that is not there, a transfer that broke off, content that is not the
            expected one, a directory that cannot be written.
    """
    directory = Path(directory)
    base_url = base_url or os.environ.get("GENJAX_MNIST_URL") or MIRROR
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the directory '{directory}': {error.strerror or error}") from error
    for name, checksum in checksums.items():
        if _find(directory, name) is None:
            _fetch_file(f"{base_url.rstrip('/')}/{name}.gz", directory / f"{name}.gz", checksum)


def _fetch_file(url: str, target: Path, checksum: str) -> None:
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        _transfer(url, partial)
        _verify(url, partial, checksum)
        os.replace(partial, target)
    except (OSError, HTTPException, ValueError) as error:
        reason = error.reason if type(error) is urllib.error.URLError else error
        raise UserError(f"could not download {url} to '{target}': {reason}") from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _transfer(url: str, target: Path) -> None:
    from tqdm import tqdm

    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response, open(target, "wb") as file:
        announced = response.headers.get("Content-Length")
        total = int(announced) if announced is not None else None
        with tqdm(total=total, unit="B", unit_scale=True, desc=url.rpartition("/")[2]) as progress:
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                progress.update(len(chunk))
            if total is not None and progress.n != total:
                raise UserError(f"could not download {url}: it broke off after {progress.n} of {total} bytes")


def _verify(url: str, path: Path, checksum: str) -> None:
    digest = hashlib.sha256()
    try:
        with gzip.open(path) as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except _DECOMPRESSION_ERRORS as error:
        raise UserError(f"{url} is not the expected file, nothing kept: {error}") from error
    if digest.hexdigest() != checksum:
        raise UserError(
            f"{url} is not the expected file, nothing kept: its content has SHA-256 "
            f"{digest.hexdigest()[:12]}..., expected {checksum[:12]}..."
        )
