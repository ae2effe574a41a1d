import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import genjax
from genjax.errors import UserError
from genjax.training.checkpoint import Checkpoints, steps_to_keep
from genjax.typing import State

SPECIAL = np.array([np.nan, -0.0, np.inf, 1e-45], np.float32)


def make_state(step, *, width=3, dtype=jnp.bfloat16):
    """A state of random values that only `step` decides, with every kind of leaf and of empty node."""
    random = np.random.default_rng(step)
    params = {
        "Dense_0": {
            "kernel": jnp.asarray(random.normal(size=(width, 4)), dtype),
            "bias": jnp.asarray(random.normal(size=4), jnp.float32),
        },
        "special": jnp.asarray(SPECIAL),
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    return State(
        step=jnp.int32(step),
        seed=jnp.asarray(random.integers(0, 2**32, 2), jnp.uint32),
        params=params,
        ema=jax.tree.map(lambda leaf: 0.5 * leaf, params),
        opt_state=(optimizer.init(params), None, {"scale": jnp.float32(random.normal())}),
        frozen=({"teacher": jnp.arange(5, dtype=jnp.uint8)}, ()),
    )


TEMPLATE = jax.eval_shape(lambda: make_state(0))


def assert_same_bits(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def one_line(error):
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 500
    return text


def saved(directory, *steps, **options):
    checkpoints = Checkpoints(directory, **options)
    for step in steps:
        checkpoints.save(make_state(step))
    checkpoints.wait()
    return checkpoints


def files_of(directory):
    return sorted(path for path in Path(directory).rglob("*") if path.is_file())


def data_file(item):
    """The largest file that Orbax reads the item from."""
    return max((item / "d").iterdir(), key=lambda path: path.stat().st_size)


@contextmanager
def largest_file(size):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_restores_every_bit_and_the_structure(tmp_path):
    saved(tmp_path, 7).close()
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(TEMPLATE)
    assert_same_bits(restored, make_state(7))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(restored))


def test_restores_trees_as_saved_without_a_template(tmp_path):
    state = make_state(7)
    restored = saved(tmp_path, 7).restore()
    assert_same_bits(restored.params, state.params)
    assert_same_bits(restored.ema, state.ema)
    assert_same_bits(jax.tree.leaves(restored.opt_state), jax.tree.leaves(state.opt_state))
    adam = restored.opt_state[0][1][0]
    assert set(adam) == {"count", "mu", "nu"}


def test_restores_a_state_of_bare_arrays(tmp_path):
    bare = State(jnp.int32(3), jnp.zeros(2, jnp.uint32), jnp.ones(4), jnp.arange(4.0), ())
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(bare)
        assert_same_bits(checkpoints.restore(jax.eval_shape(lambda: bare)), bare)
        assert_same_bits(checkpoints.restore_ema(), bare.ema)


def test_puts_leaves_where_the_template_says(tmp_path):
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    template = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), TEMPLATE)
    restored = saved(tmp_path, 7).restore(template)
    assert {leaf.sharding for leaf in jax.tree.leaves(restored)} == {sharding}
    assert_same_bits(restored, make_state(7))


def test_ema_is_restored_without_reading_the_rest(tmp_path):
    checkpoints = saved(tmp_path, 7)
    shutil.rmtree(tmp_path / "7" / "training")
    assert_same_bits(checkpoints.restore_ema(TEMPLATE.ema), make_state(7).ema)
    assert_same_bits(checkpoints.restore_ema(), make_state(7).ema)
    with pytest.raises(UserError, match="damaged"):
        checkpoints.restore(TEMPLATE)


def test_state_can_be_donated_right_after_save(tmp_path):
    train = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf + 1, state), donate_argnums=0)
    state = make_state(1, width=200_000)
    expected = jax.tree.map(lambda leaf: np.array(leaf, copy=True), state)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state)
        for _ in range(3):
            state = train(state)
        jax.block_until_ready(state)
        restored = checkpoints.restore(jax.eval_shape(lambda: make_state(1, width=200_000)))
    assert_same_bits(restored, State(*expected))


def test_arrays_can_be_overwritten_right_after_save(tmp_path):
    state = jax.tree.map(lambda leaf: np.array(leaf, copy=True), make_state(1, width=200_000))
    expected = jax.tree.map(np.copy, state)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state)
        for leaf in jax.tree.leaves(state):
            leaf[...] = 0
        restored = checkpoints.restore(jax.eval_shape(lambda: make_state(1, width=200_000)))
    assert_same_bits(restored, expected)


def test_saving_a_step_twice_writes_nothing(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(7), score=0.5)
        checkpoints.save(make_state(7)._replace(params={}), score=0.1)
        checkpoints.wait()
        before = {path: path.stat().st_mtime_ns for path in files_of(tmp_path)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(7)._replace(params={}))
        checkpoints.wait()
        assert {path: path.stat().st_mtime_ns for path in files_of(tmp_path)} == before
        assert_same_bits(checkpoints.restore(TEMPLATE), make_state(7))


def test_saving_before_an_intact_later_step_is_refused(tmp_path):
    checkpoints = saved(tmp_path, 200)
    with pytest.raises(UserError, match=r"step 100 .* checkpoint of step 200") as error:
        checkpoints.save(make_state(100))
    one_line(error)
    assert checkpoints.steps() == [200]


def test_keeps_the_last_two_and_the_best(tmp_path):
    scores = {100: 0.5, 200: 0.3, 300: None, 400: float("nan"), 500: float("-inf"), 600: 0.4}
    with Checkpoints(tmp_path) as checkpoints:
        for step in (100, 200, 300):
            checkpoints.save(make_state(step), score=scores[step])
    with Checkpoints(tmp_path) as checkpoints:
        for step in (400, 500, 600):
            checkpoints.save(make_state(step), score=scores[step])
        assert checkpoints.steps() == [200, 500, 600]
        assert checkpoints.latest_step() == 600
        assert checkpoints.best_step() == 200
        assert_same_bits(checkpoints.restore(TEMPLATE, step=checkpoints.best_step()), make_state(200))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["200", "500", "600"]


def test_steps_to_keep():
    assert steps_to_keep({1: None, 2: None, 3: None}, 1) == {3}
    assert steps_to_keep({1: 0.1, 2: 0.2, 3: 0.1, 4: 0.3}, 1) == {3, 4}, "of equals, the latest"
    assert steps_to_keep({1: 0.1, 2: 0.2, 3: 0.3}, 2) == {1, 2, 3}


def test_reading_creates_nothing(tmp_path):
    checkpoints = Checkpoints(tmp_path / "none")
    assert checkpoints.is_empty()
    assert checkpoints.steps() == []
    assert checkpoints.latest_step() is None
    assert checkpoints.best_step() is None
    with pytest.raises(UserError, match=r"no checkpoint in .*none: the run has not saved one yet"):
        checkpoints.restore(TEMPLATE)
    assert not (tmp_path / "none").exists()


def test_relative_directory_means_where_it_was_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoints = Checkpoints("here")
    monkeypatch.chdir("/")
    checkpoints.save(make_state(7))
    checkpoints.close()
    assert (tmp_path / "here" / "7").is_dir()


def test_keep_last_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match="keep_last is 0"):
        Checkpoints(tmp_path, keep_last=0)


def without_bias(state):
    del state.params["Dense_0"]["bias"]
    return state


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (lambda: make_state(0, width=5), r"params/Dense_0/kernel as bfloat16\[3, 4\], expected .*\[5, 4\]"),
        (lambda: make_state(0, dtype=jnp.float16), r"params/Dense_0/kernel as bfloat16.*expected float16"),
        (
            lambda: make_state(0)._replace(seed=jnp.zeros(2, jnp.int32)),
            r"has seed as uint32\[2\], expected int32",
        ),
        (lambda: make_state(0)._replace(frozen=jnp.zeros(3)), r"has no frozen, expected float32\[3\]"),
        (lambda: without_bias(make_state(0)), r"has params/Dense_0/bias, which is not expected"),
    ],
)
def test_template_that_differs_is_refused_before_reading(tmp_path, template, message):
    checkpoints = saved(tmp_path, 7)
    for item in ("ema", "training"):
        shutil.rmtree(tmp_path / "7" / item)
    with pytest.raises(UserError, match=message) as error:
        checkpoints.restore(jax.eval_shape(template))
    assert "step 7" in one_line(error)


def test_ema_template_that_differs_is_refused(tmp_path):
    checkpoints = saved(tmp_path, 7)
    with pytest.raises(UserError, match="ema/Dense_0/kernel as bfloat16"):
        checkpoints.restore_ema(jax.eval_shape(lambda: make_state(0, width=5)).ema)
    with pytest.raises(UserError, match="has ema/special, which is not expected"):
        checkpoints.restore_ema({"Dense_0": TEMPLATE.ema["Dense_0"]})


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_a_flipped_bit_in_any_file_is_harmless_or_noticed(tmp_path, capfd):
    saved(tmp_path, 1, 2).close()
    noticed = 0
    for path in files_of(tmp_path / "2"):
        intact = path.read_bytes()
        flipped = bytearray(intact)
        flipped[len(flipped) // 2] ^= 4
        path.write_bytes(flipped)
        told = []
        with Checkpoints(tmp_path, warn=told.append) as checkpoints:
            restored = checkpoints.restore(TEMPLATE)
        assert_same_bits(restored, make_state(1 if told else 2))
        noticed += len(told)
        path.write_bytes(intact)
    assert noticed >= 5
    assert capfd.readouterr() == ("", "")


def test_other_values_of_the_right_shape_are_noticed(tmp_path):
    """What Orbax itself reads without complaint."""
    saved(tmp_path / "one", 1).close()
    saved(tmp_path / "other", 2).close()
    for item, leaf in (("training", "opt_state/2/scale"), ("ema", "ema/Dense_0/bias")):
        shutil.rmtree(tmp_path / "one" / "1" / item)
        shutil.copytree(tmp_path / "other" / "2" / item, tmp_path / "one" / "1" / item)
        with pytest.raises(UserError, match=rf"damaged \({leaf} does not match its checksum\)") as error:
            Checkpoints(tmp_path / "one").restore(TEMPLATE)
        one_line(error)


def test_a_changed_score_is_noticed(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(1), score=0.5)
        checkpoints.wait()
        manifest = max(files_of(tmp_path / "1" / "manifest"), key=lambda path: path.stat().st_size)
        text = manifest.read_text()
        assert text.count('"score": 0.5') == 1
        manifest.write_text(text.replace('"score": 0.5', '"score": 0.1'))
        assert checkpoints.best_step() is None
        with pytest.raises(UserError, match="its manifest does not match its checksum"):
            checkpoints.restore(TEMPLATE)


def truncate(step):
    path = data_file(step / "training")
    path.write_bytes(path.read_bytes()[:-40])


def empty(step):
    shutil.rmtree(step)
    step.mkdir()


DAMAGES = {
    "truncated file": truncate,
    "deleted file": lambda step: data_file(step / "ema").unlink(),
    "deleted item": lambda step: shutil.rmtree(step / "training"),
    "deleted manifest": lambda step: shutil.rmtree(step / "manifest"),
    "empty step directory": empty,
    "renamed step": lambda step: (shutil.rmtree(step), shutil.copytree(step.parent / "100", step)),
}


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_latest_step_is_passed_over_and_written_again(tmp_path, damage, capfd):
    saved(tmp_path, 100, 200).close()
    damage(tmp_path / "200")
    told = []
    with Checkpoints(tmp_path, warn=told.append) as checkpoints:
        assert_same_bits(checkpoints.restore(TEMPLATE), make_state(100))
        assert len(told) == 1
        assert "\n" not in told[0]
        assert "step 200" in told[0]
        assert told[0].endswith("using step 100")
        assert checkpoints.steps() == [100]

        checkpoints.save(make_state(150))
        assert checkpoints.steps() == [100, 150]
        checkpoints.save(make_state(200))
        assert checkpoints.steps() == [150, 200]
        assert_same_bits(checkpoints.restore(TEMPLATE), make_state(200))
    assert len(told) == 1
    assert capfd.readouterr() == ("", "")


def test_a_damaged_step_is_written_again_directly(tmp_path):
    saved(tmp_path, 100).close()
    empty(tmp_path / "100")
    with Checkpoints(tmp_path) as checkpoints:
        assert not checkpoints.is_empty()
        assert checkpoints.steps() == []
        checkpoints.save(make_state(100))
        assert_same_bits(checkpoints.restore(TEMPLATE), make_state(100))


def test_an_unfinished_write_is_no_checkpoint_and_is_swept_away(tmp_path):
    saved(tmp_path, 100).close()
    shutil.copytree(tmp_path / "100", tmp_path / "150.orbax-checkpoint-tmp")
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [100]
        checkpoints.save(make_state(200))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["100", "200"]


def test_no_intact_step_is_an_error(tmp_path):
    checkpoints = saved(tmp_path, 100, 200)
    for step in ("100", "200"):
        truncate(tmp_path / step)
    with pytest.raises(UserError, match=r"step 200 .* is damaged .*no older one is intact") as error:
        checkpoints.restore(TEMPLATE)
    one_line(error)


def test_a_named_step_is_never_replaced_by_another(tmp_path):
    checkpoints = saved(tmp_path, 100, 200)
    assert_same_bits(checkpoints.restore(TEMPLATE, step=100), make_state(100))
    with pytest.raises(UserError, match=r"no checkpoint of step 150 in .*: it has 100, 200"):
        checkpoints.restore(TEMPLATE, step=150)
    truncate(tmp_path / "200")
    with pytest.raises(UserError, match=r"step 200 .* is damaged"):
        checkpoints.restore(TEMPLATE, step=200)


def test_a_checkpoint_that_may_not_be_read_is_not_taken_for_damaged(tmp_path, monkeypatch):
    checkpoints = saved(tmp_path, 100, 200)
    checkpoints.steps()

    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "refused")

    monkeypatch.setattr(checkpoints._reader, "restore", refuse)
    with pytest.raises(UserError, match=r"cannot read the checkpoint of step 200 .*Permission denied"):
        checkpoints.restore(TEMPLATE)


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_a_failed_write_is_told_in_one_line_and_leaves_the_rest_intact(tmp_path, capfd, caplog):
    checkpoints = saved(tmp_path, 100)
    with largest_file(1 << 16):
        checkpoints.save(make_state(200, width=100_000))
        with pytest.raises(UserError, match=r"cannot save the checkpoint of step 200 .*File too large") as error:
            checkpoints.wait()
        checkpoints.wait()
        checkpoints.save(make_state(250, width=100_000))
        with pytest.raises(UserError, match="step 250"):
            checkpoints.save(make_state(300))
    one_line(error)
    assert checkpoints.steps() == [100]
    checkpoints.save(make_state(300))
    assert_same_bits(checkpoints.restore(TEMPLATE), make_state(300))
    checkpoints.close()
    assert Checkpoints(tmp_path).steps() == [100, 300]
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_closing_tells_a_failed_write(tmp_path):
    with (
        largest_file(1 << 16),
        pytest.raises(UserError, match="File too large"),
        Checkpoints(tmp_path) as opened,
    ):
        opened.save(make_state(1, width=100_000))


@pytest.mark.parametrize(
    ("raised", "reason"),
    [
        (OSError(errno.ENOSPC, "full"), "No space left on device"),
        (ValueError(f"Error in OCDBT:\nFailed [os_error_code='{errno.ENOSPC}']"), "No space left on device"),
        (ValueError("Error in OCDBT:\nFailed"), "Error in OCDBT:"),
        (ValueError("long " * 1000), r"long long .*\.\.\."),
        (ValueError(), "ValueError"),
    ],
)
def test_why_a_write_failed_is_told_in_one_line(tmp_path, monkeypatch, raised, reason):
    checkpoints = saved(tmp_path, 100)

    def fail(*args, **kwargs):
        raise raised

    monkeypatch.setattr(checkpoints._writer, "save", fail)
    with pytest.raises(UserError, match=rf"step 200 in .*: {reason}; the checkpoints before it are") as error:
        checkpoints.save(make_state(200))
    one_line(error)


def test_a_directory_that_cannot_be_made_is_told_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot save the checkpoint of step 1 .*") as error:
        Checkpoints(tmp_path / "file" / "checkpoints").save(make_state(1))
    one_line(error)


def test_a_directory_that_may_not_be_read_is_told_in_one_line(tmp_path, monkeypatch):
    checkpoints = saved(tmp_path, 100)

    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "refused")

    monkeypatch.setattr(checkpoints._reader, "all_steps", refuse)
    with pytest.raises(UserError, match=r"cannot read .*: Permission denied") as error:
        checkpoints.steps()
    one_line(error)


@pytest.mark.parametrize("moment", range(18))
def test_a_checkpoint_deleted_while_the_directory_is_listed_is_no_error(tmp_path, monkeypatch, moment):
    saved(tmp_path, 100, 200).close()
    reader, looked, stat = Checkpoints(tmp_path), [], os.stat

    def deleting(path, *args, **kwargs):
        if str(path).startswith(str(tmp_path / "100")):
            looked.append(path)
            if len(looked) == moment + 1:
                shutil.rmtree(tmp_path / "100")
        return stat(path, *args, **kwargs)

    monkeypatch.setattr(os, "stat", deleting)
    steps = reader.steps()
    assert steps[-1] == 200
    if not (tmp_path / "100").exists():
        assert reader.steps() == [200]


def test_a_checkpoint_deleted_before_it_is_read_gives_way_to_the_one_that_came(tmp_path, monkeypatch):
    writer = saved(tmp_path, 100, keep_last=1)
    warnings = []
    reader = Checkpoints(tmp_path, warn=warnings.append)
    read = reader._read_manifest

    def read_too_late(step):
        writer.save(make_state(200))
        writer.wait()
        return read(step)

    monkeypatch.setattr(reader, "_read_manifest", read_too_late)
    assert_same_bits(reader.restore(TEMPLATE), make_state(200))
    assert warnings == []


def test_other_things_in_the_directory_do_not_matter(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "README").write_text("")
    checkpoints = saved(tmp_path, 100)
    assert checkpoints.steps() == [100]
    assert_same_bits(checkpoints.restore(TEMPLATE), make_state(100))


SAVE_UNTIL_KILLED = """
import sys
sys.path.insert(0, {tests!r})
from genjax.training.checkpoint import Checkpoints
assert "orbax" not in sys.modules and "tensorstore" not in sys.modules, "imported before it is needed"
from test_checkpoint import make_state
checkpoints = Checkpoints({directory!r})
for step in range(1, 10_000):
    checkpoints.save(make_state(step))
    print(step, flush=True)
"""


def test_kill_9_while_saving_leaves_the_last_complete_step(tmp_path):
    script = SAVE_UNTIL_KILLED.format(tests=str(Path(__file__).parent), directory=str(tmp_path))
    root = str(Path(genjax.__file__).parents[1])
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": root, "JAX_PLATFORMS": "cpu"},
    )
    last = 0
    for line in process.stdout:
        last = int(line)
        if last == 6:
            time.sleep(0.01)
            os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert last >= 6, "the child process failed"
    told = []
    with Checkpoints(tmp_path, warn=told.append) as checkpoints:
        latest = checkpoints.latest_step()
        assert latest >= last - 1
        assert_same_bits(checkpoints.restore(TEMPLATE), make_state(latest))
        checkpoints.save(make_state(latest + 1))
        assert checkpoints.latest_step() == latest + 1
    assert told == []
