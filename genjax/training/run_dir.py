"""The run directory: everything that a training run leaves on disk, and who may write there.

```
runs/flow-matching-moons/
    config.json      every setting of the run, the format of the directory, the versions it was started with
    metrics.jsonl    one JSON object a line (genjax.training.log)
    checkpoints/     the last few and the best (genjax.training.checkpoint)
    samples/         pictures and arrays
    loss.png
```

A command that is refused changes nothing. A file appears whole or not at all: it is written under a
temporary name in the same directory, flushed to the disk and renamed.
"""

import io
import json
import os
import platform
import secrets
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO, Literal

from genjax.errors import UsageError, UserError

FORMAT_VERSION = 1

_CONFIG = "config.json"
_LOCK = ".lock"
_LAYOUT = (_CONFIG, "metrics.jsonl", "checkpoints", "samples", "loss.png")
_DISTRIBUTIONS = {
    "genjax": "genjax-models",
    "jax": "jax",
    "flax": "flax",
    "optax": "optax",
    "orbax": "orbax-checkpoint",
}
_NOT_COMPARED = ("format", "versions")


def atomic_write(path: str | os.PathLike[str], content: bytes | Callable[[BinaryIO], object]) -> None:
    """Write a file so that it is there whole or not at all, also after a kill or a power cut.

    Args:
        path: the file; one that exists is replaced. Its directory must exist (see `make_directory`).
        content: the bytes, or a function that writes them to the open binary file which it is given.

    Raises:
        UserError: a full disk, a missing permission, ...: one line. The old file is untouched and the
            temporary one removed, whatever is raised.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> atomic_write(folder / "a.txt", lambda file: file.write(b"whole"))
        >>> [(entry.name, entry.read_bytes()) for entry in folder.iterdir()]
        [('a.txt', b'whole')]
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise UserError(f"cannot write {path}: {_reason(error)}") from error
        raise


def write_arrays(path: str | os.PathLike[str], **arrays: Any) -> None:
    """Write arrays as an `.npz` by `atomic_write`, in the order given."""
    import numpy as np

    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    atomic_write(path, buffer.getvalue())


def make_directory(path: str | os.PathLike[str]) -> None:
    """Create a directory and its parents where they are missing; a failure is a one-line `UserError`."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create the directory {path}: {_reason(error)}") from error


def write_config(directory: str | os.PathLike[str], config: Mapping[str, Any]) -> None:
    """Write `config.json`: the settings, the format of the directory and the versions in use.

    Args:
        directory: the run directory, which exists.
        config: what JSON can hold: mappings with string keys, lists, strings, finite numbers, booleans,
            None. Tuples come back as lists. The keys `format` and `versions` are set here.

    Raises:
        UsageError: a number that JSON does not have (NaN, infinity), naming the setting.
        UserError: the file cannot be written.
    """
    written = {**_as_json(config), "format": FORMAT_VERSION, "versions": _versions()}
    atomic_write(Path(directory) / _CONFIG, (json.dumps(written, indent=2) + "\n").encode())


def read_config(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings of a run as `write_config` wrote them, `format` and `versions` among them.

    Raises:
        UserError: there is no such directory, it is empty, half-written or holds something else, or its
            `config.json` is damaged or of another format version.
    """
    directory = Path(directory)
    if not os.path.lexists(directory):
        raise UserError(f"no run directory at {directory}: train a run first, with --out {directory}")
    names = _entries(directory)
    if not names:
        raise UserError(f"{directory} is empty: train a run first, with --out {directory}")
    if _CONFIG not in names:
        raise UserError(f"{directory} holds no run: {_what_is_there_instead(names)}")

    path = directory / _CONFIG
    try:
        config = json.loads(path.read_bytes(), parse_constant=_refuse_constant)
    except OSError as error:
        raise UserError(f"cannot read {path}: {_reason(error)}") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged, not JSON: {error}") from error
    if not isinstance(config, dict) or "format" not in config:
        raise UserError(f"{path} is not of a run: it has no 'format'")
    if config["format"] != FORMAT_VERSION:
        versions = config.get("versions")
        writer = versions.get("genjax") if isinstance(versions, dict) else None
        raise UserError(
            f"{directory} has format version {config['format']!r} (written by genjax {writer or 'unknown'}), "
            f"expected {FORMAT_VERSION}: use that version of genjax, or train the run again"
        )
    return config


@contextmanager
def open_run(
    directory: str | os.PathLike[str],
    config: Mapping[str, Any],
    *,
    fresh: bool = False,
    replace: bool = False,
    warn: Callable[[str], object] = warnings.warn,
) -> Iterator[Literal["new", "resume"]]:
    """Open a directory for training, and keep other processes out until the `with` block ends.

    An empty or missing directory becomes a new run; one that holds a run of the same settings is resumed.
    Versions are not compared. The lock is released by the operating system when the process ends, also by
    `kill -9`.

    Args:
        directory: the run directory; missing parents are created.
        config: the settings (see `write_config`).
        fresh: start a new run, never resume.
        replace: with `fresh`, a run that is there is renamed to `<directory>.replaced-<date>-<time>`, which
            `warn` is told; nothing is deleted.
        warn: receives one line of text.

    Yields:
        `"new"` or `"resume"`.

    Raises:
        UsageError: the run there has other settings (they are named, with both values), or `fresh` without
            `replace` where there is a run.
        UserError: the directory holds other files, is half-written, damaged, of another format version,
            cannot be written, or another process trains in it.

    Example:
        >>> import tempfile
        >>> directory = Path(tempfile.mkdtemp()) / "run"
        >>> for _ in range(2):
        ...     with open_run(directory, {"steps": 4000}) as status:
        ...         print(status)
        new
        resume
        >>> with open_run(directory, {"steps": 8000}):  # doctest: +ELLIPSIS
        ...     pass
        Traceback (most recent call last):
        genjax.errors.UsageError: ... holds a run with other settings: steps 4000 (given 8000); use ...
    """
    directory = Path(directory)
    if replace and not fresh:
        raise UsageError("--replace moves a run aside to start anew: use it with --fresh")
    config = _as_json(config)
    _decide(directory, config, fresh, replace)
    make_directory(directory)
    with ExitStack() as locks:
        locks.enter_context(_locked(directory))
        decision = _decide(directory, config, fresh, replace)  # nobody else can change it from here on
        if decision == "replace":
            warn(f"the old run was moved to {_move_aside(directory)}")
            make_directory(directory)
            locks.enter_context(_locked(directory))
        if decision != "resume":
            write_config(directory, config)
        yield "resume" if decision == "resume" else "new"


def _decide(directory: Path, config: dict[str, Any], fresh: bool, replace: bool) -> Literal["new", "resume", "replace"]:
    names = _entries(directory) if os.path.lexists(directory) else []
    if not names:
        return "new"
    move_aside = "use another --out, or --fresh --replace to move it aside"
    if _CONFIG not in names:
        if not set(names) <= set(_LAYOUT):
            raise UserError(f"{directory} holds no run: {_what_is_there_instead(names)}; use another --out")
        if not (fresh and replace):
            raise UserError(f"{directory} holds no run: {_what_is_there_instead(names)}; {move_aside}")
        return "replace"
    if fresh:
        if not replace:
            raise UsageError(f"{directory} already holds a run; {move_aside}")
        return "replace"
    differences = _differences(read_config(directory), config)
    if differences:
        raise UsageError(f"{directory} holds a run with other settings: {', '.join(differences)}; {move_aside}")
    return "resume"


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    import fcntl

    path = directory / _LOCK
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(f"cannot write in {directory}: {_reason(error)}") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            moved_meanwhile = not os.path.samestat(os.fstat(lock), os.stat(path))
            if moved_meanwhile:
                raise BlockingIOError
            os.ftruncate(lock, 0)
            os.pwrite(lock, str(os.getpid()).encode(), 0)
        except BlockingIOError as error:
            holder = os.pread(lock, 20, 0).decode(errors="replace")
            raise UserError(
                f"another process ({holder or 'unknown'}) is training in {directory}: "
                "wait for it to end, or use another --out"
            ) from error
        except OSError as error:
            raise UserError(f"cannot lock {path}: {_reason(error)}") from error
        yield
    finally:
        os.close(lock)


def _move_aside(directory: Path) -> Path:
    target = directory.resolve()
    stamp = time.strftime("%Y%m%d-%H%M%S")
    aside = target.with_name(f"{target.name}.replaced-{stamp}")
    count = 1
    while os.path.lexists(aside):
        count += 1
        aside = target.with_name(f"{target.name}.replaced-{stamp}-{count}")
    try:
        os.rename(target, aside)
    except OSError as error:
        raise UserError(f"cannot move {directory} aside: {_reason(error)}") from error
    return aside


def _entries(directory: Path) -> list[str]:
    """The names in a directory without the lock and the leavings of interrupted writes."""
    try:
        names = sorted(os.listdir(directory))
    except NotADirectoryError as error:
        raise UserError(f"{directory} is a file, not a run directory") from error
    except OSError as error:
        raise UserError(f"cannot read {directory}: {_reason(error)}") from error
    return [name for name in names if name != _LOCK and not (name[0] == "." and name.endswith(".tmp"))]


def _what_is_there_instead(names: list[str]) -> str:
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    if set(names) <= set(_LAYOUT):
        return f"half-written, it has {shown} but no {_CONFIG}"
    return f"it has other files ({shown}) and no {_CONFIG}"


def _differences(stored: dict[str, Any], given: dict[str, Any]) -> list[str]:
    """`["steps 4000 (given 8000)", ...]`: the settings that differ, nested ones with dotted names."""
    old, new = (
        _flattened({name: value for name, value in config.items() if name not in _NOT_COMPARED})
        for config in (stored, given)
    )
    names = [*old, *(name for name in new if name not in old)]
    return [
        f"{name} {_shown(old, name)} (given {_shown(new, name)})"
        for name in names
        if (name in old) != (name in new) or old[name] != new[name]
    ]


def _flattened(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in config.items():
        if isinstance(value, dict) and value:
            flat.update(_flattened(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def _shown(flat: dict[str, Any], name: str) -> str:
    if name not in flat:
        return "absent"
    text = json.dumps(flat[name])
    return text if len(text) <= 60 else text[:57] + "..."


def _as_json(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as they come back from a JSON file: tuples as lists."""
    for name, value in _flattened(dict(config)).items():
        try:
            json.dumps(value, allow_nan=False)
        except ValueError as error:
            raise UsageError(f"{name} is {value}: expected finite numbers") from error
    return json.loads(json.dumps(dict(config)))


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _versions() -> dict[str, str | None]:
    return {
        "python": platform.python_version(),
        **{name: _installed(distribution) for name, distribution in _DISTRIBUTIONS.items()},
    }


def _installed(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
