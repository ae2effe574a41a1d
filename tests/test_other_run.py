"""Runs that build on another run: a student of a teacher, a latent model on a first stage."""

import shutil

import jax
import numpy as np
import pytest

from genjax import cli, cli_sample, cli_train
from genjax.training.checkpoint import Checkpoints

SHORT = ["--steps", "20", "--batch-size", "32", "--steps-per-dispatch", "10", "--evaluations", "1"]
TINY = ["--width", "16", "--depth", "1", *SHORT]


@pytest.fixture(autouse=True)
def _no_persistent_cache(monkeypatch):
    monkeypatch.setattr(cli, "use_compilation_cache", lambda: None)


def train(*arguments):
    return cli.run(cli_train.main, [str(a) for a in arguments])


def sample(*arguments):
    return cli.run(cli_sample.main, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def trained_teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "use_compilation_cache", lambda: None)
        assert train("edm", "--data", "moons", "--out", folder / "edm", *TINY) == 0
    return folder / "edm"


@pytest.fixture(scope="module")
def student(trained_teacher, tmp_path_factory):
    """A student with checkpoints of steps 10 and 20, and a command to which only `--out` is wanting."""
    folder = tmp_path_factory.mktemp("student")
    command = ["consistency", "--data", "moons", "--teacher", trained_teacher, *TINY, "--evaluations", "2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "use_compilation_cache", lambda: None)
        assert train(*command, "--out", folder / "run") == 0
    return folder / "run", command


@pytest.fixture
def teacher(trained_teacher, tmp_path):
    """The student's teacher, which a test may change: what it was is put back."""
    kept = shutil.copytree(trained_teacher, tmp_path / "kept")
    yield trained_teacher
    shutil.rmtree(trained_teacher, ignore_errors=True)
    shutil.copytree(kept, trained_teacher)


def drawn(directory, out, *options):
    assert sample(directory, "--num", 8, "--out", out, *options) == 0
    with np.load(out / "samples.npz", allow_pickle=False) as arrays:
        return arrays["samples"]


def test_a_student_samples_without_its_teacher(teacher, student, tmp_path, capsys):
    directory, _ = student
    before = drawn(directory, tmp_path / "before", "--steps", 1)
    shutil.rmtree(teacher)
    assert np.array_equal(drawn(directory, tmp_path / "after", "--steps", 1), before)
    assert sample(directory, "--sampler", "heun") == 2
    assert "--sampler does not apply: consistency draws without it" in capsys.readouterr().err


def test_a_student_killed_midway_ends_as_one_that_was_not(student, tmp_path):
    directory, command = student
    shutil.copytree(directory, tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "20")  # as if it had been killed after step 10
    assert Checkpoints(tmp_path / "cut" / "checkpoints").latest_step() == 10
    assert train(*command, "--out", tmp_path / "cut") == 0
    whole, cut = (Checkpoints(run / "checkpoints").restore(step=20) for run in (directory, tmp_path / "cut"))
    jax.tree.map(np.testing.assert_array_equal, whole, cut)


def test_a_teacher_that_went_on_training_is_another_teacher(teacher, student, tmp_path, capsys):
    directory, command = student
    shutil.copytree(directory, tmp_path / "student")
    with Checkpoints(teacher / "checkpoints") as checkpoints:
        checkpoints.save(checkpoints.restore()._replace(step=np.int32(40)))
    capsys.readouterr()
    assert train(*command, "--out", tmp_path / "student") == 2
    assert "other_run.checkpoint 20 (given 40)" in capsys.readouterr().err


def test_an_unusable_teacher_is_one_line(teacher, tmp_path, capsys):
    def told(*arguments):
        capsys.readouterr()
        code = train("consistency", *arguments, "--out", tmp_path / "new", *TINY)
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1
        assert not (tmp_path / "new").exists()
        return code, lines[0]

    code, line = told("--data", "eight_gaussians", "--teacher", teacher)
    assert code == 2
    assert "was trained on other data: moons, examples of 2" in line
    assert "expected a run on eight_gaussians" in line
    code, line = told("--data", "digits", "--teacher", teacher)
    assert code == 2
    assert "expected a run on digits, 8x8x1" in line
    code, line = told("--data", "moons", "--teacher", tmp_path / "nowhere")
    assert code == 1
    assert "no run directory at" in line
    shutil.rmtree(teacher / "checkpoints")
    code, line = told("--data", "moons", "--teacher", teacher)
    assert code == 1
    assert "has no checkpoint yet" in line
    assert train("flow-matching", "--data", "moons", "--teacher", teacher) == 2


def test_a_latent_model_from_end_to_end(tmp_path, capsys):
    stage = tmp_path / "vae"
    one = ["--steps", "2", "--steps-per-dispatch", "1"]  # no loop around convolutions
    assert train("vae", "--data", "digits", "--width", "4", "--latent", "3", "--out", stage, *SHORT, *one) == 0
    command = ["latent-diffusion", "--data", "digits", "--first-stage", stage, "--class-conditional", *TINY, *one]
    assert train(*command, "--out", tmp_path / "latent") == 0
    choice = ["--classes", "3,5", "--guidance", "2", "--steps", "3"]
    before = drawn(tmp_path / "latent", tmp_path / "before", *choice, "--trajectory")
    assert before.shape == (8, 8, 8, 1)
    assert (tmp_path / "before" / "trajectory.gif").exists()
    shutil.rmtree(stage)
    after = drawn(tmp_path / "latent", tmp_path / "after", *choice)
    assert np.array_equal(before, after)
    assert sample(tmp_path / "latent", "--reconstruct", "--num", 4) == 0
    capsys.readouterr()
    assert train("latent-diffusion", "--data", "digits", *TINY) == 2
    assert "latent-diffusion needs --first-stage RUN_DIR" in capsys.readouterr().err
