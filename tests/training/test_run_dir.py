import errno
import fcntl
import json
import os
import re
import resource
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

import genjax
from genjax.errors import UsageError, UserError
from genjax.training.run_dir import (
    FORMAT_VERSION,
    atomic_write,
    make_directory,
    open_run,
    read_config,
    write_config,
)

CONFIG = {
    "method": "ddpm",
    "steps": 4000,
    "seed": 0,
    "learning_rate": 1e-4,
    "network": {"kind": "unet", "channels": (64, 128), "attention": None},
}


def one_line(error):
    text = str(error.value)
    assert "\n" not in text
    return text


def contents(directory):
    """Every file of a tree with its bytes, the lock apart."""
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None
        for path in directory.rglob("*")
        if path.name != ".lock"
    }


@pytest.fixture
def run(tmp_path):
    """A directory that holds a run of CONFIG with a result in it."""
    directory = tmp_path / "run"
    with open_run(directory, CONFIG) as status:
        assert status == "new"
    (directory / "loss.png").write_bytes(b"a picture")
    return directory


@contextmanager
def refused(directory, kind, message):
    """The block raises a one-line error of this kind, and nothing in the directory changes."""
    before = contents(directory)
    with pytest.raises(kind, match=message) as error:
        yield
    assert type(error.value) is kind
    one_line(error)
    assert contents(directory) == before


class TestAtomicWrite:
    def test_writes_bytes_or_what_a_function_writes(self, tmp_path):
        atomic_write(tmp_path / "a", b"bytes")
        atomic_write(tmp_path / "b", lambda file: file.write(b"written"))
        atomic_write(str(tmp_path / "a"), b"again")
        assert contents(tmp_path) == {"a": b"again", "b": b"written"}

    def test_permissions_are_those_of_any_new_file(self, tmp_path):
        (tmp_path / "plain").write_bytes(b"")
        atomic_write(tmp_path / "atomic", b"")
        assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode

    def test_the_old_file_stands_until_the_new_one_is_whole(self, tmp_path):
        path = tmp_path / "a"
        path.write_bytes(b"old")

        def write(file):
            file.write(b"new")
            file.flush()
            assert path.read_bytes() == b"old"
            assert len(list(tmp_path.iterdir())) == 2

        atomic_write(path, write)
        assert contents(tmp_path) == {"a": b"new"}

    def test_full_disk(self, tmp_path, monkeypatch):
        (tmp_path / "a").write_bytes(b"old")

        def full(descriptor):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", full)
        with refused(tmp_path, UserError, r"cannot write .*/a: No space left on device"):
            atomic_write(tmp_path / "a", b"new")

    def test_a_write_that_really_fails(self, tmp_path):
        (tmp_path / "a").write_bytes(b"old")
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        with refused(tmp_path, UserError, r"cannot write .*/a: File too large"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
            try:
                atomic_write(tmp_path / "a", bytes(2000))
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    @pytest.mark.parametrize("raised", [ValueError("not writable"), KeyboardInterrupt()])
    def test_what_the_function_raises_passes_and_leaves_nothing(self, tmp_path, raised):
        (tmp_path / "a").write_bytes(b"old")

        def fail(file):
            file.write(b"half")
            raise raised

        with pytest.raises(type(raised)):
            atomic_write(tmp_path / "a", fail)
        assert contents(tmp_path) == {"a": b"old"}

    def test_missing_directory(self, tmp_path):
        with refused(tmp_path, UserError, r"cannot write .*: No such file or directory"):
            atomic_write(tmp_path / "none" / "a", b"")


def test_make_directory(tmp_path):
    make_directory(tmp_path / "a" / "b")
    make_directory(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_bytes(b"")
    with refused(tmp_path, UserError, r"cannot create the directory .*file/a: Not a directory"):
        make_directory(tmp_path / "file" / "a")


class TestConfig:
    def test_comes_back_as_json_with_format_and_versions(self, tmp_path):
        write_config(tmp_path, CONFIG)
        config = read_config(tmp_path)
        assert config.pop("format") == FORMAT_VERSION
        versions = config.pop("versions")
        assert list(versions) == ["python", "genjax", "jax", "flax", "optax", "orbax"]
        assert re.fullmatch(r"\d+\.\d+.*", versions["jax"])
        assert config == {**CONFIG, "network": {**CONFIG["network"], "channels": [64, 128]}}
        assert list(contents(tmp_path)) == ["config.json"]

    @pytest.mark.parametrize("value", [float("nan"), float("-inf"), (0.0, float("nan"))])
    def test_numbers_that_json_has_not_are_refused(self, tmp_path, value):
        with refused(tmp_path, UsageError, r"network.dropout is .*(nan|inf).*: expected finite numbers"):
            write_config(tmp_path, {**CONFIG, "network": {"dropout": value}})

    def test_no_directory(self, tmp_path):
        with refused(tmp_path, UserError, r"no run directory at .*/none: train a run first"):
            read_config(tmp_path / "none")

    def test_a_file(self, tmp_path):
        (tmp_path / "file").write_bytes(b"")
        with refused(tmp_path, UserError, "file is a file, not a run directory"):
            read_config(tmp_path / "file")

    def test_an_empty_directory(self, tmp_path):
        (tmp_path / ".lock").write_bytes(b"")
        with refused(tmp_path, UserError, "is empty: train a run first"):
            read_config(tmp_path)

    def test_a_half_written_run(self, tmp_path):
        (tmp_path / "checkpoints").mkdir()
        with refused(tmp_path, UserError, "holds no run: half-written, it has checkpoints but no config.json"):
            read_config(tmp_path)

    def test_something_else(self, tmp_path):
        (tmp_path / "thesis.tex").write_bytes(b"")
        with refused(tmp_path, UserError, r"holds no run: it has other files \(thesis.tex\)"):
            read_config(tmp_path)

    @pytest.mark.parametrize("text", [b"", b'{"format": 1', b"\xff\xfe", b'{"format": 1, "seed": NaN}'])
    def test_damaged_json(self, tmp_path, text):
        (tmp_path / "config.json").write_bytes(text)
        with refused(tmp_path, UserError, "config.json is damaged, not JSON"):
            read_config(tmp_path)

    @pytest.mark.parametrize("text", ["{}", "[]", '{"architectures": ["Transformer"]}'])
    def test_json_of_another_program(self, tmp_path, text):
        (tmp_path / "config.json").write_text(text)
        with refused(tmp_path, UserError, "config.json is not of a run"):
            read_config(tmp_path)

    def test_another_format_version(self, tmp_path):
        text = json.dumps({"format": FORMAT_VERSION + 1, "versions": {"genjax": "9.1.0"}})
        (tmp_path / "config.json").write_text(text)
        expected = rf"format version {FORMAT_VERSION + 1} .*genjax 9.1.0.*expected {FORMAT_VERSION}"
        with refused(tmp_path, UserError, expected):
            read_config(tmp_path)


class TestOpenRun:
    def test_missing_and_empty_directories_become_new_runs(self, tmp_path):
        (tmp_path / "empty").mkdir()
        for directory in (tmp_path / "empty", tmp_path / "a" / "b"):
            with open_run(directory, CONFIG) as status:
                assert status == "new"
                assert read_config(directory)["steps"] == 4000

    def test_the_same_settings_resume(self, run):
        before = contents(run)
        with open_run(run, json.loads(json.dumps(CONFIG))) as status:
            assert status == "resume"
        assert contents(run) == before

    def test_versions_are_not_compared(self, run):
        stored = read_config(run)
        stored["versions"]["jax"] = "0.1.0"
        (run / "config.json").write_text(json.dumps(stored))
        with open_run(run, CONFIG) as status:
            assert status == "resume"
        assert read_config(run) == stored, "the versions that the run was started with"

    def test_other_settings_are_named_with_both_values(self, run):
        given = {**CONFIG, "steps": 8000, "network": {**CONFIG["network"], "kind": "dit", "patch": 2}}
        expected = (
            r'other settings: steps 4000 \(given 8000\), network.kind "unet" \(given "dit"\), '
            r"network.patch absent \(given 2\); use another --out, or --fresh --replace"
        )
        with refused(run, UsageError, expected), open_run(run, given):
            pass

    def test_a_setting_that_is_no_longer_there_counts(self, run):
        given = {name: value for name, value in CONFIG.items() if name != "seed"}
        with refused(run, UsageError, r"settings: seed 0 \(given absent\);"), open_run(run, given):
            pass

    def test_fresh_refuses_a_run(self, run):
        with refused(run, UsageError, "already holds a run"), open_run(run, CONFIG, fresh=True):
            pass

    def test_fresh_starts_where_there_is_nothing(self, tmp_path):
        with open_run(tmp_path / "run", CONFIG, fresh=True) as status:
            assert status == "new"

    @pytest.mark.parametrize("given", [CONFIG, {**CONFIG, "steps": 8000}])
    def test_replace_moves_the_old_run_aside(self, run, given):
        old = contents(run)
        told = []
        for _ in range(2):
            with open_run(run, given, fresh=True, replace=True, warn=told.append) as status:
                assert status == "new"
                assert set(contents(run)) == {"config.json"}
                assert read_config(run)["steps"] == given["steps"]
        aside, later = sorted(run.parent.glob("run.replaced-*"))
        assert contents(aside) == old
        assert told == [f"the old run was moved to {path}" for path in (aside, later)]

    def test_replace_needs_fresh(self, run):
        with refused(run, UsageError, "use it with --fresh"), open_run(run, CONFIG, replace=True):
            pass

    def test_replace_moves_a_damaged_or_half_written_run(self, tmp_path):
        for number, name in enumerate(("config.json", "metrics.jsonl")):
            directory = tmp_path / str(number)
            directory.mkdir()
            (directory / name).write_text("{")
            with refused(tmp_path, UserError, r"damaged|half-written"), open_run(directory, CONFIG):
                pass
            with open_run(directory, CONFIG, fresh=True, replace=True, warn=len) as status:
                assert status == "new"

    @pytest.mark.parametrize("options", [{}, {"fresh": True}, {"fresh": True, "replace": True}])
    def test_foreign_files_are_never_touched(self, tmp_path, options):
        (tmp_path / "thesis.tex").write_bytes(b"years of work")
        (tmp_path / "checkpoints").mkdir()
        with refused(tmp_path, UserError, "other files"), open_run(tmp_path, CONFIG, **options):
            pass
        assert not (tmp_path / ".lock").exists()

    def test_leavings_of_a_killed_start_do_not_matter(self, tmp_path):
        (tmp_path / ".lock").write_bytes(b"1234567")
        (tmp_path / ".config.json.0a1b2c3d.tmp").write_bytes(b"{")
        with open_run(tmp_path, CONFIG) as status:
            assert status == "new"

    def test_a_file_in_the_way(self, tmp_path):
        (tmp_path / "file").write_bytes(b"")
        with refused(tmp_path, UserError, "is a file, not a run"), open_run(tmp_path / "file", CONFIG):
            pass
        with refused(tmp_path, UserError, "cannot create"), open_run(tmp_path / "file" / "run", CONFIG):
            pass

    @pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
    def test_without_permission(self, tmp_path):
        tmp_path.chmod(0o500)
        with refused(tmp_path, UserError, "Permission denied"), open_run(tmp_path / "run", CONFIG):
            pass
        with refused(tmp_path, UserError, "Permission denied"), open_run(tmp_path, CONFIG):
            pass

    @pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a directory that nobody can write in")
    def test_a_directory_that_nobody_can_write_in(self):
        with pytest.raises(UserError, match="cannot create the directory") as error, open_run("/proc/x", CONFIG):
            pass
        one_line(error)

    def test_a_full_disk(self, tmp_path, monkeypatch):
        def full(descriptor):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="No space left"), open_run(tmp_path / "run", CONFIG):
            pass
        monkeypatch.undo()
        with open_run(tmp_path / "run", CONFIG) as status:
            assert status == "new"


HOLD_THE_LOCK = """
import sys, time
from genjax.training.run_dir import open_run
with open_run({directory!r}, {config!r}):
    print("open", flush=True)
    time.sleep(60)
"""


class TestLock:
    def test_a_second_process_is_refused_until_the_first_is_gone(self, tmp_path):
        directory = tmp_path / "run"
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLD_THE_LOCK.format(directory=str(directory), config=CONFIG)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(genjax.__file__).parents[1])},
        )
        try:
            assert holder.stdout.readline() == "open\n"
            message = rf"another process \({holder.pid}\) is training in"
            for options in ({}, {"fresh": True, "replace": True}):
                with refused(tmp_path, UserError, message), open_run(directory, CONFIG, **options):
                    pass
        finally:
            os.kill(holder.pid, signal.SIGKILL)
            holder.wait()
        with open_run(directory, CONFIG) as status:
            assert status == "resume"

    def test_holds_within_a_process_and_ends_with_the_block(self, run):
        with open_run(run, CONFIG):
            message = rf"another process \({os.getpid()}\)"
            with refused(run, UserError, message), open_run(run, CONFIG):
                pass
        with pytest.raises(ZeroDivisionError), open_run(run, CONFIG):
            raise ZeroDivisionError
        with open_run(run, CONFIG):
            pass

    def test_a_replaced_directory_is_locked_too(self, run):
        with (
            open_run(run, CONFIG, fresh=True, replace=True, warn=len),
            refused(run, UserError, "another process"),
            open_run(run, CONFIG),
        ):
            pass
        with open_run(run, CONFIG):
            pass

    def test_the_lock_of_a_directory_that_was_moved_aside_meanwhile_is_none(self, run, monkeypatch):
        lock = fcntl.flock

        def lock_too_late(descriptor, operation):
            monkeypatch.undo()
            with open_run(run, CONFIG, fresh=True, replace=True, warn=len):
                pass
            lock(descriptor, operation)

        monkeypatch.setattr(fcntl, "flock", lock_too_late)
        with pytest.raises(UserError, match="another process"), open_run(run, CONFIG):
            pass

    def test_reading_needs_no_lock(self, run):
        with open_run(run, CONFIG):
            assert read_config(run)["steps"] == 4000
