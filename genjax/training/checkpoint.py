"""Checkpoints of a training state that come back bit for bit, or not at all. The one module that knows Orbax.

A checkpoint of step k is the directory `<directory>/<k>` with three Orbax items: `ema` (what sampling needs),
`training` (the rest of the `State`) and `manifest` (JSON): the step, the score, and of every leaf its shape,
its dtype and the SHA-256 of its bytes. Orbax notices neither a flipped bit nor another dtype, and takes an
empty directory for the latest step; what is restored here has been compared with the manifest, and the
manifest carries a checksum of itself.
"""

import asyncio
import errno
import functools
import hashlib
import json
import logging
import math
import os
import re
import warnings
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeVar

import jax
import numpy as np

from genjax.errors import UserError
from genjax.typing import Params, State

Manifest = dict[str, Any]
Leaves = dict[str, np.ndarray]
Item = Literal["ema", "training"]
_Restored = TypeVar("_Restored")
_LISTINGS = 10
_NOT_THE_FILES_FAULT = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class _Damaged(Exception):
    """A checkpoint that is not what was saved; the text says in what."""


class Checkpoints:
    """The checkpoints in one directory: the last few and the best. Usable in a `with` statement.

    Nothing is created before the first `save`, so a directory that another process writes to can be read.

    Args:
        directory: where the checkpoints are; missing parents are created by `save`.
        keep_last: how many of the latest to keep, at least 1. The one with the lowest score is kept as well.
        warn: receives one line of text when a damaged checkpoint is passed over.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> params = {"weight": jnp.ones((2, 3), jnp.bfloat16)}
        >>> state = State(jnp.int32(7), jnp.zeros(2, jnp.uint32), params, params, opt_state=())
        >>> with Checkpoints(tempfile.mkdtemp()) as checkpoints:
        ...     checkpoints.save(state, score=0.25)
        ...     restored = checkpoints.restore(jax.eval_shape(lambda: state))
        >>> int(restored.step), restored.params["weight"].dtype
        (7, dtype(bfloat16))
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        keep_last: int = 2,
        warn: Callable[[str], object] = warnings.warn,
    ):
        if keep_last < 1:
            raise ValueError(f"keep_last is {keep_last}; expected at least 1")
        self.directory = Path(directory)
        self._absolute = self.directory.absolute()
        self._keep_last = keep_last
        self._warn = warn
        self._reader: Any = None
        self._writer: Any = None
        self._policy = _KeepSteps()
        self._saving: int | None = None
        self._damaged: set[int] = set()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def save(self, state: State, *, score: float | None = None) -> None:
        """Begin to write the checkpoint of `state.step`; a step that is already there is left as it is.

        Waits for the save before it, copies the arrays, and returns while they are being written: `state`
        may be donated or overwritten at once. Older checkpoints are deleted only when this one is complete,
        and damaged ones with them.

        Args:
            state: concrete arrays, each of which this process can address, none of size zero.
            score: a measure of quality, lower is better; NaN and infinity count as None, which is never
                the best.

        Raises:
            UserError: the write before this one failed, this one cannot begin, or there is a checkpoint of
                a later step (training went on from an older one: use another directory).
        """
        self.wait()
        step = int(state.step)
        manifests = self._manifests()
        if step in manifests:
            return
        if manifests and max(manifests) > step:
            raise UserError(
                f"cannot save step {step} in {self.directory}: it has a checkpoint of step "
                f"{max(manifests)}; continue from that one, or use another directory"
            )
        items = _items(jax.tree.map(np.asarray, state))
        manifest = _manifest(items, step, score)
        scores = {there: content["score"] for there, content in manifests.items()}
        self._saving = step
        with self._write_errors_told():
            writer = self._open_writer()
            if step in writer.all_steps():
                writer.delete(step)
            self._policy.keep = steps_to_keep({**scores, step: manifest["score"]}, self._keep_last)
            args = _orbax().args
            writer.save(
                step,
                args=args.Composite(
                    ema=args.PyTreeSave(items["ema"]),
                    training=args.PyTreeSave(items["training"]),
                    manifest=args.JsonSave(manifest),
                ),
                force=True,  # otherwise a step older than a damaged one is silently not saved
            )
        self._damaged.discard(step)

    def wait(self) -> None:
        """Block until the last `save` is on disk.

        Raises:
            UserError: it is not, and why (a full disk, ...). Told once; the checkpoints before it are intact.
        """
        if self._writer is not None:
            with self._write_errors_told():
                self._writer.wait_until_finished()

    def restore(self, template: State | None = None, *, step: int | None = None) -> State:
        """The state of the newest checkpoint that is intact, or of `step`.

        Shapes and dtypes are compared with the template before anything is read, the bytes with their
        checksums after.

        Args:
            template: a state of arrays or `jax.ShapeDtypeStruct`s (`jax.eval_shape` of the initialisation).
                Each leaf is put where the template's `sharding` says, else on the default device. None: the
                trees as they were saved, NamedTuples as dicts and tuples as lists, the leaves NumPy arrays.
            step: one of `steps()`; None for the newest. Without it, damaged checkpoints are passed over,
                which `warn` is told.

        Raises:
            UserError: there is none, none is intact, or the template has other leaves (the first one that
                differs is named).
        """

        def load(manifest: Manifest) -> State:
            wanted = manifest["leaves"]
            if template is not None:
                self._check_template(manifest, template, wanted)
            trees = {**self._read(manifest, "ema"), **self._read(manifest, "training")}
            return State(**trees) if template is None else _fill(template, trees)

        return self._newest_intact(load, step)

    def restore_ema(self, template: Params | None = None, *, step: int | None = None) -> Params:
        """Only `State.ema`, as `restore` would give it; parameters and optimizer state are not read."""

        def load(manifest: Manifest) -> Params:
            wanted = [name for name in manifest["leaves"] if _item_of(name) == "ema"]
            if template is not None:
                self._check_template(manifest, {"ema": template}, wanted)
            trees = self._read(manifest, "ema")
            return trees["ema"] if template is None else _fill({"ema": template}, trees)["ema"]

        return self._newest_intact(load, step)

    def is_empty(self) -> bool:
        """Whether there is nothing to restore: no checkpoint at all, not even a damaged one."""
        self.wait()
        return not self._all_steps()

    def steps(self) -> list[int]:
        """The steps of all complete checkpoints, ascending, after waiting for the last `save`.

        Complete means an intact manifest, which is written with the rest; `restore` is what checks the
        arrays, and what it finds damaged is no longer listed.
        """
        self.wait()
        return sorted(self._manifests())

    def latest_step(self) -> int | None:
        """The last of `steps()`; None where there is none."""
        return max(self.steps(), default=None)

    def best_step(self) -> int | None:
        """The step of the lowest score (the latest of equals); None where no checkpoint has a score."""
        self.wait()
        return _best({step: manifest["score"] for step, manifest in self._manifests().items()})

    def close(self) -> None:
        """Wait for the last `save` and release threads and files; a later call opens them again."""
        try:
            self.wait()
        finally:
            for manager in (self._writer, self._reader):
                if manager is not None:
                    manager.close()
            self._writer = self._reader = None

    def _all_steps(self) -> list[int]:
        try:
            return self._listed()
        except OSError as error:
            raise UserError(f"cannot read {self.directory}: {_reason(error)}") from error

    def _listed(self) -> list[int]:
        """Listed anew where a checkpoint vanishes meanwhile: the run that writes them deletes the older ones."""
        for _ in range(_LISTINGS - 1):
            with suppress(FileNotFoundError, NotADirectoryError):
                return self._listed_once()
        return self._listed_once()

    def _listed_once(self) -> list[int]:
        if not self._absolute.is_dir():
            return []
        return sorted(self._open_reader().all_steps(read=True))

    def _manifests(self) -> dict[int, Manifest]:
        manifests = {}
        for step in self._all_steps():
            if step not in self._damaged:
                try:
                    manifests[step] = self._read_manifest(step)
                except _Damaged:
                    continue
        return manifests

    def _newest_intact(self, load: Callable[[Manifest], _Restored], step: int | None) -> _Restored:
        self.wait()
        there = self._all_steps()
        if not there:
            raise UserError(f"no checkpoint in {self.directory}: the run has not saved one yet")
        if step is not None and step not in there:
            raise UserError(f"no checkpoint of step {step} in {self.directory}: it has {', '.join(map(str, there))}")
        damages = []
        for candidate in reversed(there) if step is None else [step]:
            try:
                restored = load(self._read_manifest(candidate))
            except _Damaged as damage:
                if step is None and not (self._absolute / str(candidate)).exists():
                    return self._newest_intact(load, step)
                self._damaged.add(candidate)
                damages.append(f"the checkpoint of step {candidate} in {self.directory} is damaged ({damage})")
            else:
                for told in damages:
                    self._warn(f"{told}: using step {candidate}")
                return restored
        remedy = "no older one is intact" if step is None else "choose another step"
        raise UserError(f"{damages[0]}: {remedy}")

    def _read_manifest(self, step: int) -> Manifest:
        with self._read_errors_told(step):
            args = _orbax().args
            manifest = self._open_reader().restore(step, args=args.Composite(manifest=args.JsonRestore()))
            manifest = dict(manifest["manifest"])
            intact = manifest.pop("sha256") == _manifest_checksum(manifest) and manifest["step"] == step
        if not intact:
            raise _Damaged("its manifest does not match its checksum")
        return manifest

    def _read(self, manifest: Manifest, item: Item) -> dict[str, Any]:
        step = manifest["step"]
        with self._read_errors_told(step):
            args = _orbax().args
            restored = self._open_reader().restore(step, args=args.Composite(**{item: args.PyTreeRestore()}))
            tree = dict(restored[item])
            leaves = _leaves(tree)
        for name, saved in manifest["leaves"].items():
            if _item_of(name) == item and (name not in leaves or _described(leaves[name]) != saved):
                raise _Damaged(f"{name} does not match its checksum")
        return tree

    def _check_template(self, manifest: Manifest, template: Any, wanted: Collection[str]) -> None:
        where = f"the checkpoint of step {manifest['step']} in {self.directory}"
        remedy = "it was saved with other settings"
        given = {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in _named(template)}
        for name, expected in given.items():
            if name not in wanted:
                raise UserError(f"{where} has no {name}, expected {expected}: {remedy}")
            leaf = manifest["leaves"][name]
            saved = f"{leaf['dtype']}{leaf['shape']}"
            if saved != expected:
                raise UserError(f"{where} has {name} as {saved}, expected {expected}: {remedy}")
        for name in wanted:
            if name not in given:
                raise UserError(f"{where} has {name}, which is not expected: {remedy}")

    def _open_reader(self) -> Any:
        if self._reader is None:
            self._reader = _manager(self._absolute, read_only=True)
        return self._reader

    def _open_writer(self) -> Any:
        if self._writer is None:
            self._writer = _manager(self._absolute, preservation_policy=self._policy, cleanup_tmp_directories=True)
        return self._writer

    @contextmanager
    def _write_errors_told(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax and TensorStore raise whatever they met
            raise UserError(
                f"cannot save the checkpoint of step {self._saving} in {self.directory}: {_reason(error)}; "
                "the checkpoints before it are intact"
            ) from error

    @contextmanager
    def _read_errors_told(self, step: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # a damaged file makes Orbax and TensorStore raise anything
            if isinstance(error, MemoryError) or _error_code(error) in _NOT_THE_FILES_FAULT:
                raise UserError(
                    f"cannot read the checkpoint of step {step} in {self.directory}: {_reason(error)}"
                ) from error
            raise _Damaged(_reason(error)) from error


def steps_to_keep(scores: dict[int, float | None], keep_last: int) -> set[int]:
    """The last `keep_last` steps and the best one.

    >>> sorted(steps_to_keep({100: 0.5, 200: 0.4, 300: None, 400: 0.7, 500: 0.6}, keep_last=2))
    [200, 400, 500]
    """
    best = _best(scores)
    return {*sorted(scores)[-keep_last:], *(() if best is None else (best,))}


class _KeepSteps:
    """The preservation policy that Orbax asks after each save: exactly the steps in `keep`."""

    keep: Collection[int] = ()

    def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
        del context
        return [checkpoint.step in self.keep for checkpoint in checkpoints]


def _best(scores: dict[int, float | None]) -> int | None:
    scored = [(score, -step) for step, score in scores.items() if score is not None]
    return -min(scored)[1] if scored else None


def _items(state: State) -> dict[Item, dict[str, Any]]:
    training = state._asdict()
    return {"ema": {"ema": training.pop("ema")}, "training": training}


def _item_of(leaf_name: str) -> Item:
    return "ema" if leaf_name.split("/")[0] == "ema" else "training"


def _named(tree: Any) -> list[tuple[str, Any]]:
    """Leaves by name, `params/Dense_0/kernel`: the same for a NamedTuple and the dict it is saved as."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(_name(path), leaf) for path, leaf in leaves]


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _leaves(tree: Any) -> Leaves:
    return {name: np.asarray(leaf) for name, leaf in _named(tree)}


def _fill(template: Any, trees: dict[str, Any]) -> Any:
    leaves = _leaves(trees)

    def placed(path: tuple[Any, ...], leaf: Any) -> jax.Array:
        sharding = getattr(leaf, "sharding", None)
        return jax.device_put(leaves[_name(path)], sharding)

    return jax.tree_util.tree_map_with_path(placed, template)


def _described(leaf: np.ndarray) -> dict[str, Any]:
    content = np.ascontiguousarray(leaf).reshape(-1).view(np.uint8)
    return {
        "shape": list(leaf.shape),
        "dtype": leaf.dtype.name,
        "sha256": hashlib.sha256(content.data).hexdigest(),
    }


def _manifest(items: dict[Item, dict[str, Any]], step: int, score: float | None) -> Manifest:
    manifest = {
        "step": step,
        "score": float(score) if score is not None and math.isfinite(score) else None,
        "leaves": {name: _described(leaf) for tree in items.values() for name, leaf in _leaves(tree).items()},
    }
    return {**manifest, "sha256": _manifest_checksum(manifest)}


def _manifest_checksum(manifest: Manifest) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _error_code(error: BaseException) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    told_by_tensorstore = re.search(r"os_error_code='(\d+)'", str(error))
    return int(told_by_tensorstore.group(1)) if told_by_tensorstore else None


def _reason(error: BaseException) -> str:
    """One line, without the page that Orbax and TensorStore make of it."""
    code = _error_code(error)
    if code is not None:
        return os.strerror(code)
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line if len(line) <= 160 else line[:157] + "..."


def _manager(directory: Path, **options: Any) -> Any:
    orbax = _orbax()
    arrays = orbax.PyTreeCheckpointHandler(type_handler_registry=_numpy_registry())
    return orbax.CheckpointManager(
        directory,
        options=orbax.CheckpointManagerOptions(lightweight_initialize=True, **options),
        item_handlers={"ema": arrays, "training": arrays, "manifest": orbax.JsonCheckpointHandler()},
    )


@functools.cache
def _orbax() -> ModuleType:
    """Orbax, imported on first use (half a second) and silent: what matters is raised."""
    import orbax.checkpoint

    logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
    return orbax.checkpoint


@functools.cache
def _numpy_registry() -> Any:
    """Reads and writes NumPy arrays as Orbax does, but raises only when all of them have ended.

    Orbax raises at the first that fails and closes its event loop under the others, each of which then
    prints a traceback of its own.
    """
    from orbax.checkpoint.type_handlers import NumpyHandler, create_type_handler_registry

    class QuietNumpyHandler(NumpyHandler):
        async def deserialize(self, infos: Any, args: Any = None) -> list[np.ndarray]:
            read = super().deserialize
            return [array for (array,) in await _all_ended(read([info]) for info in infos)]

        async def _background_serialize(self, values: Any, infos: Any, args: Any = None) -> None:
            write = super()._background_serialize
            await _all_ended(
                write([value], [info], [arg]) for value, info, arg in zip(values, infos, args, strict=True)
            )

    return create_type_handler_registry((np.ndarray, QuietNumpyHandler(deepcopy_host_arrays=True)))


async def _all_ended(operations: Iterable[Coroutine[Any, Any, Any]]) -> list[Any]:
    results = await asyncio.gather(*operations, return_exceptions=True)
    for failure in (result for result in results if isinstance(result, BaseException)):
        raise failure
    return results
