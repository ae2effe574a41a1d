"""What sample.py says besides samples: log-likelihoods, reconstructions, grids of codes, and what it refuses."""

import shutil
import types

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from genjax import cli, cli_held_out, cli_sample, cli_train, plots
from genjax.arrays import sum_events
from genjax.methods import METHODS, vae
from genjax.training import data

SHORT = ["--steps", "2", "--evaluations", "1", "--steps-per-dispatch", "1", "--batch-size", "8"]


def variant(**fields):
    """The VAE's module, with other fields in its `Method`."""
    module = types.ModuleType("variant", vae.__doc__)
    module.Config, module.recommended, module.resolve = vae.Config, vae.recommended, vae.resolve
    module.build = lambda *arguments: vae.build(*arguments)._replace(**fields)
    return module


@pytest.fixture(autouse=True)
def _no_persistent_cache(monkeypatch):
    monkeypatch.setattr(cli, "use_compilation_cache", lambda: None)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of two steps: points with a known density, and images, both with two codes."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "use_compilation_cache", lambda: None)
        for name, width in (("eight_gaussians", 8), ("digits", 4)):
            options = ["--data", name, "--latent", 2, "--width", width, "--out", folder / name, *SHORT]
            assert cli.run(cli_train.main, ["vae", *map(str, options)]) == 0
    return folder


@pytest.fixture
def ask(runs, tmp_path, monkeypatch):
    """`ask(run, *options, **fields)`: sample.py on a run whose method has these fields: its exit code."""

    def run(name, *options, **fields):
        monkeypatch.setitem(METHODS, "vae", variant(**fields))
        return cli.run(cli_sample.main, [str(runs / name), "--out", str(tmp_path), *map(str, options)])

    return run


def standard_normal(params, key, x):
    return sum_events(-0.5 * x**2 - 0.5 * jnp.log(2 * jnp.pi))


def test_a_density_of_points_is_told_in_data_units(ask, tmp_path, capsys):
    assert ask("eight_gaussians", "--log-prob", "--num", 500, log_prob=standard_normal, bounds_log_prob=False) == 0
    dataset = data.load("eight_gaussians")
    points = np.asarray(dataset.test.data[:500])
    exact = stats.norm(dataset.scaling.shift, dataset.scaling.scale).logpdf(points).sum(axis=1)
    with np.load(tmp_path / "log_prob.npz") as arrays:
        assert arrays["log_prob"].dtype == np.float32
        np.testing.assert_allclose(arrays["log_prob"], exact, atol=1e-4)
    told = capsys.readouterr().out
    truth = np.asarray(dataset.log_density(jnp.asarray(points)))
    assert f"500 held-out points, each: {cli_held_out.mean_and_error(exact)} nats" in told
    assert f"by the true density {cli_held_out.mean_and_error(truth)} nats" in told
    assert "bound" not in told
    assert not (tmp_path / "samples.npz").exists()


def test_images_of_integers_are_told_in_bits_and_bounds_by_their_name(ask, tmp_path, capsys):
    uniform = -64 * np.log(17.0)
    assert ask("digits", "--log-prob", log_prob=lambda params, key, x: jnp.full(len(x), uniform)) == 0
    told = capsys.readouterr().out
    assert "297 held-out images" in told
    assert "-181.3 nats, 4.087 bits/dim (a lower bound)" in told  # log2 17
    np.testing.assert_allclose(np.load(tmp_path / "log_prob.npz")["log_prob"], uniform, rtol=1e-6)


def test_the_bound_of_a_vae_is_below_the_true_density(runs, tmp_path, capsys):
    assert cli.run(cli_sample.main, [str(runs / "eight_gaussians"), "--log-prob", "--out", str(tmp_path)]) == 0
    assert "10,000 held-out points" in capsys.readouterr().out
    dataset = data.load("eight_gaussians")
    truth = np.asarray(dataset.log_density(jnp.asarray(dataset.test.data[:10_000])))
    assert np.load(tmp_path / "log_prob.npz")["log_prob"].mean() < truth.mean() - 0.1


def test_examples_keep_their_order_whatever_the_batch_size(ask, tmp_path):
    found = []
    for size in (7, 100):
        options = ["--log-prob", "--num", 100, "--batch-size", size]
        assert ask("eight_gaussians", *options, log_prob=standard_normal) == 0
        found.append(np.load(tmp_path / "log_prob.npz")["log_prob"])
    np.testing.assert_allclose(*found, rtol=1e-5)
    assert found[0].std() > 0.1


@pytest.mark.parametrize("name", ["eight_gaussians", "digits"])
def test_reconstructions_are_in_data_units_beside_their_originals(ask, tmp_path, name):
    assert ask(name, "--reconstruct", "--num", 20, reconstruct=lambda params, key, x: x) == 0
    with np.load(tmp_path / "reconstructions.npz") as arrays:
        np.testing.assert_array_equal(arrays["data"], data.load(name).test.data[:20])
        np.testing.assert_allclose(arrays["reconstruction"], arrays["data"], atol=1e-5)
    assert (tmp_path / "reconstructions.png").exists()


def test_the_grid_of_codes_runs_rightwards_and_upwards(ask, tmp_path, monkeypatch):
    pictured = {}
    monkeypatch.setattr(plots, "image_grid", lambda path, images, **_: pictured.update(images=np.asarray(images)))

    def decode(params, z):
        first, second = (jnp.broadcast_to(z[:, i, None, None, None], (len(z), 8, 4, 1)) for i in (0, 1))
        return jnp.concatenate([first, second], axis=2) / 3

    assert ask("digits", "--latent-grid", decode=decode) == 0
    images = pictured["images"].reshape(16, 16, 8, 8)
    left, right = images[..., 0], images[..., -1]
    assert np.all(left[:, -1] > left[:, 0])
    assert np.all(right[0] > right[-1])
    cells = data.load("digits").scaling.to_data(stats.norm.ppf((np.arange(16) + 0.5) / 16) / 3)
    np.testing.assert_array_equal(left[0, :, 0], cells)


def test_the_lines_of_codes_of_points(ask, tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(plots, "curves", lambda path, families, **_: drawn.update(families=families))
    assert ask("eight_gaussians", "--latent-grid", decode=lambda params, z: z) == 0
    scaling = data.load("eight_gaussians").scaling
    first, second = scaling.to_model(drawn["families"])
    np.testing.assert_allclose(first[..., 0].std(axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(second[..., 1].std(axis=1), 0, atol=1e-5)
    assert first[..., 1].min() < -3 < 3 < first[..., 1].max()


def test_questions_combine(ask, tmp_path, capsys):
    assert ask("digits", "--log-prob", "--reconstruct", "--latent-grid", "--num", 8) == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        "log_prob.npz",
        "reconstructions.npz",
        "reconstructions.png",
        "latent_grid.png",
    }


@pytest.mark.parametrize(
    ("options", "fields", "words"),
    [
        (["--log-prob"], {"log_prob": None}, ["--log-prob does not apply: vae", "log-likelihood"]),
        (["--reconstruct"], {"reconstruct": None}, ["--reconstruct does not apply: vae"]),
        (["--latent-grid"], {"decode": None}, ["--latent-grid does not apply: vae"]),
        (["--latent-grid"], {"latent": (16,)}, ["2-D latent", "has 16", "--latent 2"]),
        (["--latent-grid"], {"latent": (2, 2, 4)}, ["2-D latent", "has 2x2x4", "--latent 2"]),
        (["--latent-grid", "--num", "3"], {}, ["--num does not apply"]),
        (["--log-prob", "--trajectory"], {}, ["--trajectory", "--log-prob draws none"]),
        (["--reconstruct", "--guidance", "2"], {}, ["--guidance", "--reconstruct draws none"]),
        (["--data-dir", "here"], {}, ["--data-dir is for"]),
        (["--log-prob", "--data-dir", "here"], {}, ["only 'mnist'"]),
    ],
)
def test_what_does_not_apply_is_refused_in_one_line_and_writes_nothing(ask, tmp_path, capsys, options, fields, words):
    assert ask("digits", *options, **fields) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert "\n" not in error
    assert all(word in error for word in words), error
    assert list(tmp_path.iterdir()) == []


def test_the_refusal_names_the_methods_that_can(ask, monkeypatch, capsys):
    monkeypatch.setitem(METHODS, "other", variant())
    assert ask("digits", "--log-prob", log_prob=None) == 2
    error = capsys.readouterr().err
    assert "by default: " in error
    assert "other" in error.partition("by default: ")[2]
    assert "vae" not in error.partition("by default: ")[2]


def test_data_that_are_gone_or_others(runs, tmp_path, capsys):
    folder = shutil.copytree(runs / "digits", tmp_path / "run")
    config = (folder / "config.json").read_text()
    for name, told in (("mnist", "--data-dir"), ("moons", "(2,)")):
        (folder / "config.json").write_text(config.replace('"name": "digits"', f'"name": "{name}"'))
        where = ["--data-dir", str(tmp_path / "nothing")] if name == "mnist" else []
        assert cli.run(cli_sample.main, [str(folder), "--reconstruct", *where]) == 1
        error = capsys.readouterr().err.strip()
        assert "\n" not in error
        assert told in error
