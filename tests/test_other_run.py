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
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "use_compilation_cache", lambda: None)
        assert train("edm", "--data", "moons", "--out", folder / "edm", *TINY) == 0
    return folder / "edm"


@pytest.fixture
def own_teacher(teacher, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(teacher, tmp_path / "teacher")


def drawn(directory, out, *options):
    assert sample(directory, "--num", 8, "--out", out, *options) == 0
    with np.load(out / "samples.npz", allow_pickle=False) as arrays:
        return arrays["samples"]


def test_a_student_samples_without_its_teacher(own_teacher, tmp_path, capsys):
    command = ["consistency", "--data", "moons", "--teacher", own_teacher, *TINY]
    assert train(*command, "--out", tmp_path / "whole") == 0
    before = drawn(tmp_path / "whole", tmp_path / "before", "--steps", 1)
    shutil.rmtree(own_teacher)
    assert np.array_equal(drawn(tmp_path / "whole", tmp_path / "after", "--steps", 1), before)
    assert sample(tmp_path / "whole", "--sampler", "heun") == 2
    assert "--sampler does not apply: consistency draws without it" in capsys.readouterr().err


def test_a_student_killed_midway_ends_as_one_that_was_not(teacher, tmp_path):
    command = ["consistency", "--data", "moons", "--teacher", teacher, *TINY, "--evaluations", "2"]
    assert train(*command, "--out", tmp_path / "whole") == 0
    assert train(*command, "--out", tmp_path / "cut") == 0
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "20")  # as if it had been killed after step 10
    assert Checkpoints(tmp_path / "cut" / "checkpoints").latest_step() == 10
    assert train(*command, "--out", tmp_path / "cut") == 0
    whole, cut = (Checkpoints(tmp_path / name / "checkpoints").restore(step=20) for name in ("whole", "cut"))
    jax.tree.map(np.testing.assert_array_equal, whole, cut)


def test_a_teacher_that_went_on_training_is_another_teacher(own_teacher, tmp_path, capsys):
    command = ["consistency", "--data", "moons", "--teacher", own_teacher, "--out", tmp_path / "student", *TINY]
    assert train(*command) == 0
    assert train("edm", "--data", "moons", "--out", tmp_path / "longer", *TINY, "--steps", "40") == 0
    shutil.rmtree(own_teacher / "checkpoints")
    shutil.copytree(tmp_path / "longer" / "checkpoints", own_teacher / "checkpoints")
    capsys.readouterr()
    assert train(*command) == 2
    assert "other_run.checkpoint 20 (given 40)" in capsys.readouterr().err


def test_an_unusable_teacher_is_one_line(teacher, own_teacher, tmp_path, capsys):
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
    shutil.rmtree(own_teacher / "checkpoints")
    code, line = told("--data", "moons", "--teacher", own_teacher)
    assert code == 1
    assert "has no checkpoint yet" in line
    assert train("flow-matching", "--data", "moons", "--teacher", teacher) == 2


def test_a_latent_model_from_end_to_end(tmp_path, capsys):
    stage = tmp_path / "vae"
    assert train("vae", "--data", "digits", "--width", "4", "--latent", "3", "--out", stage, *SHORT) == 0
    command = ["latent-diffusion", "--data", "digits", "--first-stage", stage, "--class-conditional", *TINY]
    assert train(*command, "--out", tmp_path / "latent") == 0
    before = drawn(tmp_path / "latent", tmp_path / "before", "--classes", "3,5", "--guidance", "2", "--trajectory")
    assert before.shape == (8, 8, 8, 1)
    assert (tmp_path / "before" / "trajectory.gif").exists()
    shutil.rmtree(stage)
    after = drawn(tmp_path / "latent", tmp_path / "after", "--classes", "3,5", "--guidance", "2")
    assert np.array_equal(before, after)
    assert sample(tmp_path / "latent", "--reconstruct", "--num", 4) == 0
    capsys.readouterr()
    assert train("latent-diffusion", "--data", "digits", *TINY) == 2
    assert "latent-diffusion needs --first-stage RUN_DIR" in capsys.readouterr().err
