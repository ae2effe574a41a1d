"""The two scripts: a run from end to end, resuming bit for bit after a kill, and one line for every mistake."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from genjax import cli, cli_sample, cli_train
from genjax import runs as genjax_runs
from genjax.training.checkpoint import Checkpoints
from genjax.training.run_dir import read_config

ROOT = Path(__file__).resolve().parents[1]
TINY = ["--width", "16", "--depth", "1", "--steps", "40", "--batch-size", "32", "--steps-per-dispatch", "10"]


@pytest.fixture(autouse=True)
def _no_persistent_cache(monkeypatch):
    monkeypatch.setattr(cli, "use_compilation_cache", lambda: None)


def train(*arguments):
    return cli.run(cli_train.main, [str(a) for a in arguments])


def sample(*arguments):
    return cli.run(cli_sample.main, [str(a) for a in arguments])


def spawn(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A small trained run of each kind: points, and class-conditional images."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "use_compilation_cache", lambda: None)
        assert train("flow-matching", "--data", "moons", "--out", folder / "points", *TINY) == 0
        images = ["--data", "digits", "--class-conditional", "--network", "dit", "--patch", "4"]
        assert train("ddpm", *images, "--out", folder / "images", *TINY, "--evaluations", "1") == 0
    return folder


@pytest.fixture
def run_copy(runs, tmp_path):
    return Path(shutil.copytree(runs / "points", tmp_path / "run"))


def snapshot(directory):
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def test_run_directory_holds_what_the_readme_says(runs):
    directory = runs / "points"
    config = json.loads((directory / "config.json").read_text())
    assert config["method"] == "flow-matching"
    assert config["training"]["steps"] == 40
    assert {"python", "jax", "flax"} <= set(config["versions"])
    records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if "loss" in r] == [10, 20, 30, 40]
    assert any("held_out_loss" in r for r in records)
    assert Checkpoints(directory / "checkpoints").latest_step() == 40
    assert (directory / "loss.png").read_bytes()[:4] == b"\x89PNG"
    assert (directory / "samples" / "step-0000040.png").exists()


SAMPLERS = ["euler", "heun", "midpoint", "rk4", "ddim", "ddpm", "ddpm-large"]
SAMPLERS += ["heun-churn", "euler-maruyama", "predictor-corrector", "annealed-langevin"]


@pytest.mark.parametrize(
    ("name", "sampler"),
    [("points", sampler) for sampler in [*SAMPLERS, "adaptive"]]
    + [("images", sampler) for sampler in ("heun", "ddpm", "euler-maruyama")],
)
def test_any_sampler_on_any_run(runs, tmp_path, name, sampler):
    assert sample(runs / name, "--num", 5, "--sampler", sampler, "--steps", 3, "--out", tmp_path) == 0
    with np.load(tmp_path / "samples.npz", allow_pickle=False) as arrays:
        assert arrays.files[0] == "samples"
        samples = arrays["samples"]
    assert samples.dtype == np.float32
    assert samples.shape == ((5, 2) if name == "points" else (5, 8, 8, 1))
    assert np.isfinite(samples).all()
    if name == "images":
        assert set(np.unique(samples)) <= set(range(17))


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("flow-matching", ["--path", "cosine"]),
        ("flow-matching", ["--path", "vp", "--predict", "v"]),
        ("flow-matching", ["--path", "vp", "--predict", "noise"]),
        ("flow-matching", ["--predict", "noise"]),
        ("flow-matching", ["--predict", "data"]),
        ("flow-matching", ["--path", "cosine", "--predict", "data", "--time-density", "logit-normal"]),
        ("ddpm", ["--betas", "cosine", "--predict", "v", "--zero-terminal-snr"]),
        ("ddpm", ["--predict", "data", "--weighting", "min-snr"]),
        ("ddpm", ["--weighting", "sigmoid"]),
        ("edm", []),
        ("ncsn", ["--levels", "5"]),
        ("score-sde", ["--sde", "ve", "--weighting", "likelihood"]),
        ("score-sde", ["--sde", "sub-vp"]),
    ],
)
def test_every_path_and_prediction_can_be_sampled_by_every_kind_of_sampler(tmp_path, method, options):
    out = tmp_path / "run"
    assert train(method, "--data", "mixture1d", "--out", out, *TINY, "--evaluations", 1, *options) == 0
    run = genjax_runs.restore(read_config(out), "config.json")
    params = Checkpoints(out / "checkpoints").restore_ema(genjax_runs.ema_template(run))

    @jax.jit
    def draw(params, key):
        samplers = ("rk4", "ddim", "predictor-corrector")
        return [run.method.sample(params, key, 8, sampler=sampler, steps=4) for sampler in samplers]

    for samples in draw(params, jax.random.key(0)):
        assert samples.shape == (8, 1)
        assert np.isfinite(samples).all()


@pytest.mark.parametrize(
    ("method", "name", "value"),
    [("rectified-flow", "round_steps", 20), ("consistency", "growth_steps", 40), ("gan", "penalty_decay_steps", 40)],
)
def test_schedules_span_the_steps_of_the_run(tmp_path, monkeypatch, method, name, value):
    monkeypatch.setattr(cli_train, "_Training", lambda *_: _NoTraining())
    assert train(method, "--data", "moons", "--steps", 40, "--out", tmp_path / "run") == 0
    assert read_config(tmp_path / "run")["config"][name] == value


class _NoTraining:
    def run(self, **_):
        return 0


def test_samples_depend_on_the_seed_and_not_on_their_number_or_batches(runs, tmp_path):
    def drawn(*options):
        assert sample(runs / "points", "--steps", 4, "--out", tmp_path, *options) == 0
        return np.load(tmp_path / "samples.npz")["samples"]

    ten = drawn("--num", 10)
    np.testing.assert_allclose(ten[:4], drawn("--num", 4), atol=1e-5)
    np.testing.assert_allclose(ten, drawn("--num", 10, "--batch-size", 3), atol=1e-5)
    assert np.abs(ten - drawn("--num", 10, "--seed", 1)).max() > 0.1


def test_trajectory_writes_a_gif_and_a_strip(runs, tmp_path, capsys):
    assert sample(runs / "points", "--num", 50, "--steps", 6, "--trajectory", "--out", tmp_path) == 0
    assert (tmp_path / "trajectory.gif").read_bytes()[:3] == b"GIF"
    assert (tmp_path / "trajectory.png").exists()
    out = capsys.readouterr().out
    assert "12 network calls each" in out
    assert "compiled in" in out


def test_guidance_doubles_the_calls_and_classes_choose_the_labels(runs, tmp_path, capsys):
    options = ["--num", 6, "--steps", 3, "--sampler", "ddim", "--classes", "3,5,8", "--out", tmp_path]
    assert sample(runs / "images", *options) == 0
    assert "3 network calls each" in capsys.readouterr().out
    plain = np.load(tmp_path / "samples.npz")
    assert plain["label"].tolist() == [3, 5, 8, 3, 5, 8]
    assert sample(runs / "images", *options, "--guidance", "2.0") == 0
    assert "6 network calls each" in capsys.readouterr().out
    assert not np.array_equal(plain["samples"], np.load(tmp_path / "samples.npz")["samples"])


def test_the_same_command_again_changes_nothing(run_copy, capsys):
    before = snapshot(run_copy / "checkpoints")
    assert train("flow-matching", "--data", "moons", "--out", run_copy, *TINY) == 0
    assert snapshot(run_copy / "checkpoints") == before
    assert "resumed   at step 40" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_bit_for_bit_as_one_that_was_not(tmp_path):
    """By a signal that nothing can catch and by those after which it saves; each time the same command resumes."""
    options = ["flow-matching", "--data", "moons", "--width", "16", "--depth", "1", "--batch-size", "32"]
    options += ["--steps", "4000", "--steps-per-dispatch", "20", "--evaluations", "10"]
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
    assert spawn("train.py", *options, "--out", tmp_path / "whole", env=environment).wait(300) == 0

    checkpoints, stopped_at = tmp_path / "cut" / "checkpoints", 0
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        process = spawn("train.py", *options, "--out", tmp_path / "cut", env=environment)
        deadline = time.monotonic() + 200
        while (Checkpoints(checkpoints).latest_step() or 0) <= stopped_at and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        out, error = process.communicate(timeout=200)
        resumed_at, stopped_at = stopped_at, Checkpoints(checkpoints).latest_step()
        assert resumed_at < stopped_at < 4000, (out, error)
        assert ("resumed" in out) == (resumed_at > 0)
        if number == signal.SIGKILL:
            assert process.returncode == -number
        else:
            assert process.returncode == 128 + number
            assert f"stopped at step {stopped_at}" in out
    assert spawn("train.py", *options, "--out", tmp_path / "cut", env=environment).wait(300) == 0

    whole = Checkpoints(tmp_path / "whole" / "checkpoints").restore()
    cut = Checkpoints(checkpoints).restore()
    for left, right in zip(jax.tree.leaves(whole), jax.tree.leaves(cut), strict=True):
        np.testing.assert_array_equal(left, right)

    def losses(name):
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        return [(r["step"], r["loss"]) for r in map(json.loads, lines) if "loss" in r]

    assert losses("whole") == losses("cut")


# ---- mistakes: one line, an exit code, nothing overwritten


def refused(capsys, code, *words):
    error = capsys.readouterr().err.strip()
    assert error.count("\n") == 0, error
    assert error.startswith("error: "), error
    assert "Traceback" not in error
    for word in words:
        assert word in error, error
    return code


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["flow-maching"], 2, ["unknown method 'flow-maching'", "'flow-matching'"]),
        (["ddpm", "--data", "moonz"], 2, ["unknown data set 'moonz'", "'moons'"]),
        (["ddpm", "--stps", "3"], 2, ["unknown option '--stps'", "'--steps'"]),
        (["ddpm", "--steps", "many"], 2, ["--steps is 'many'", "INT"]),
        (["ddpm", "--steps", "0"], 2, ["--steps is 0", "at least 1"]),
        (["ddpm", "--steps", "-5"], 2, ["--steps", "-5"]),
        (["ddpm", "--batch-size", "0"], 2, ["--batch-size is 0"]),
        (["ddpm", "--learning-rate", "nan"], 2, ["--learning-rate is nan"]),
        (["ddpm", "--b1", "1.0"], 2, ["--b1 is 1.0; expected at least 0 and below 1"]),
        (["ddpm", "--b2", "nan"], 2, ["--b2 is nan"]),
        (["ddpm", "--clip-update", "-1"], 2, ["--clip-update is -1.0"]),
        (["ddpm", "--betas", "quartic"], 2, ["quartic", "linear"]),
        (["ddpm", "--data", "mixture1d", "--network", "unet"], 2, ["unet", "mlp"]),
        (["flow-matching", "--data", "swiss_roll", "--class-conditional"], 2, ["--class-conditional", "labels"]),
        (["flow-matching", "--path", "vp"], 2, ["infinite", "--predict v"]),
        (["ddpm", "--zero-terminal-snr"], 2, ["--predict v"]),
        (["ddpm", "--data", "no/such/file.npy"], 1, ["no such file", "no/such/file.npy"]),
        (["ddpm", "--data", "moons", "--replace"], 2, ["--fresh"]),
        (["ddpm", "--data", "moons", "--data-dir", "x"], 2, ["only 'mnist'"]),
    ],
)
def test_a_mistyped_training_command(arguments, code, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert train(*arguments) == code
    refused(capsys, code, *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--sampler", "huen"], 2, ["unknown sampler 'huen'", "'heun'"]),
        (["--steps", "0"], 2, ["--steps is 0"]),
        (["--num", "0"], 2, ["--num is 0"]),
        (["--classes", "3"], 2, ["--classes", "--class-conditional"]),
        (["--guidance", "2"], 2, ["--guidance", "--class-conditional"]),
        (["--checkpoint", "17"], 2, ["--checkpoint is '17'", "40"]),
        (["--stepps", "3"], 2, ["unknown option '--stepps'"]),
    ],
)
def test_a_mistyped_sampling_command(runs, arguments, code, words, capsys):
    before = snapshot(runs / "points")
    assert sample(runs / "points", *arguments) == code
    refused(capsys, code, *words)
    assert snapshot(runs / "points") == before


def test_classes_that_do_not_exist(runs, capsys):
    assert sample(runs / "images", "--classes", "3,12") == 2
    refused(capsys, 2, "12", "0 to 9")
    assert sample(runs / "images", "--classes", "three") == 2
    refused(capsys, 2, "three")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (np.array([[1.0, np.nan]] * 10), ["NaN"]),
        (np.array([{}] * 10, dtype=object), ["object"]),
        (np.zeros((10, 3, 4, 5, 6)), ["shape"]),
    ],
)
def test_arrays_that_are_no_data(content, words, tmp_path, capsys):
    np.save(tmp_path / "bad.npy", content, allow_pickle=True)
    assert train("ddpm", "--data", tmp_path / "bad.npy", "--out", tmp_path / "run") == 1
    refused(capsys, 1, "bad.npy")
    assert not (tmp_path / "run").exists()


def test_a_truncated_archive(tmp_path, capsys):
    np.savez(tmp_path / "good.npz", np.zeros((100, 2)))
    (tmp_path / "bad.npz").write_bytes((tmp_path / "good.npz").read_bytes()[:200])
    assert train("ddpm", "--data", tmp_path / "bad.npz", "--out", tmp_path / "run") == 1
    refused(capsys, 1, "bad.npz")


def test_a_data_directory_without_files(tmp_path, capsys):
    assert train("ddpm", "--data", "mnist", "--data-dir", tmp_path, "--out", tmp_path / "run") == 1
    refused(capsys, 1, str(tmp_path), "--download")


def test_images_that_cannot_be_cut_into_patches(tmp_path, capsys):
    np.save(tmp_path / "odd.npy", np.random.default_rng(0).integers(0, 255, (10, 27, 27), dtype=np.uint8))
    assert train("ddpm", "--data", tmp_path / "odd.npy", "--network", "dit", "--out", tmp_path / "run") == 2
    refused(capsys, 2, "27x27", "patches of --patch 4")
    assert not (tmp_path / "run").exists()


def test_options_that_the_network_does_not_have(tmp_path, capsys):
    assert train("ddpm", "--data", "digits", "--patch", 2, "--out", tmp_path / "run") == 2
    refused(capsys, 2, "--patch does not apply to --network unet")
    assert not (tmp_path / "run").exists()


def test_settings_that_differ_from_the_directory(run_copy, capsys):
    before = snapshot(run_copy)
    assert train("flow-matching", "--data", "moons", "--out", run_copy, *TINY, "--seed", 1) == 2
    refused(capsys, 2, "seed 0 (given 1)")
    assert train("flow-matching", "--data", "moons", "--out", run_copy, *TINY, "--fresh") == 2
    refused(capsys, 2, "--replace")
    assert {k: v for k, v in snapshot(run_copy).items() if "lock" not in k} == {
        k: v for k, v in before.items() if "lock" not in k
    }


def test_directories_that_hold_no_run(tmp_path, run_copy, capsys):
    assert sample(tmp_path / "nowhere") == 1
    refused(capsys, 1, "nowhere")
    (tmp_path / "empty").mkdir()
    assert sample(tmp_path / "empty") == 1
    refused(capsys, 1, "empty")
    config = json.loads((run_copy / "config.json").read_text())
    (run_copy / "config.json").write_text(json.dumps({**config, "format": 99}))
    assert sample(run_copy) == 1
    refused(capsys, 1, "99")
    (run_copy / "config.json").write_text('{"format": 1, "meth')
    assert sample(run_copy) == 1
    refused(capsys, 1, "config.json")
    (run_copy / "config.json").write_text(json.dumps({**config, "config": {"path": "linear"}}))
    assert sample(run_copy) == 1
    refused(capsys, 1, "config.json")
    without_b2 = {name: value for name, value in config["training"].items() if name != "b2"}
    for odd in (without_b2, {**config["training"], "b2x": 0.5}):
        (run_copy / "config.json").write_text(json.dumps({**config, "training": odd}))
        assert sample(str(run_copy)) == 1
        refused(capsys, 1, "config.json", "b2")
    (run_copy / "config.json").write_text(json.dumps(config))
    shutil.rmtree(run_copy / "checkpoints")
    assert sample(run_copy) == 1
    refused(capsys, 1, "checkpoint")


def test_a_directory_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("not a directory")
    assert train("flow-matching", "--data", "moons", "--out", tmp_path / "file" / "run", *TINY) == 1
    refused(capsys, 1, "file")


def test_a_full_disk(run_copy, tmp_path, monkeypatch, capsys):
    from genjax.training import run_dir

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_dir.os, "fsync", full)
    assert sample(run_copy, "--num", 4, "--steps", 2, "--out", tmp_path / "out") == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "No space left" in error
    assert list((tmp_path / "out").iterdir()) == []


def test_diverging_training_names_the_step_and_the_last_good_checkpoint(tmp_path, capsys):
    data = np.random.default_rng(0).normal(size=(200, 2)).astype(np.float32)
    np.save(tmp_path / "data.npy", data)
    options = ["--data", tmp_path / "data.npy", "--out", tmp_path / "run", *TINY]
    extreme = ["--learning-rate", "1e30", "--clip-norm", "0", "--schedule", "constant", "--warmup", "0"]
    assert train("flow-matching", *options, *extreme) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "step" in error
    assert "checkpoint" in error


def test_help_is_quick_and_teaches():
    for arguments in (["train.py", "--help"], ["train.py", "ddpm", "--help"], ["sample.py", "--help"]):
        out, _ = spawn(*arguments).communicate(timeout=60)
        assert "usage" in out
    code = "import sys; from genjax import cli_train\nwith __import__('contextlib').suppress(SystemExit):\n"
    code += "    cli_train.main(['ddpm', '--help'])\n"
    code += "print([m for m in ('matplotlib', 'orbax', 'scipy', 'sklearn', 'PIL', 'flax') if m in sys.modules])"
    out, _ = spawn("-c", code).communicate(timeout=60)
    assert out.strip().splitlines()[-1] == "[]"


def test_the_module_is_a_command(capsys):
    from genjax.__main__ import main

    assert cli.run(main, ["train", "nonsense"]) == 2
    refused(capsys, 2, "unknown method")
    with contextlib.suppress(SystemExit):
        assert cli.run(main, ["--help"]) == 0
