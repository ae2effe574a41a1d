"""Continuous normalizing flow: densities that are densities, draws that follow them, and what is refused."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import cli, cli_sample, cli_train
from genjax.arrays import example_keys
from genjax.errors import UsageError
from genjax.methods import cnf
from genjax.training import data, loop
from genjax.training.checkpoint import Checkpoints
from genjax.training.loop import Diverged
from genjax.training.steps import adamw
from genjax.typing import Examples

TINY = {"width": 16, "depth": 2}


def tiny(steps=4, data_name="moons", **options):
    dataset = data.load(data_name)
    return cnf.build(cnf.Config(**TINY, **options), adamw(1e-2, steps), dataset.examples), dataset


def fit(method, dataset, steps, state=None, **options):
    chosen = dict(batch_size=64, steps_per_dispatch=min(steps, 2), progress=False) | options
    return loop.fit(method, dataset, 0, steps=steps, state=state, **chosen)


@functools.cache
def trained(kinetic=0.0):
    """A method with its functions jitted, its data, a state that is not the first one, and the last metrics."""
    method, dataset = tiny(60, kinetic=kinetic)
    final = {}
    options = dict(batch_size=128, steps_per_dispatch=20)
    state = fit(method, dataset, 60, on_dispatch=lambda _, __, metrics: final.update(metrics), **options)
    return jitted(method), dataset, state, final


def jitted(method):
    functions = {name: jax.jit(getattr(method, name)) for name in ("evaluate", "log_prob")}
    return method._replace(sample=jax.jit(method.sample, static_argnums=2), **functions)


def test_each_example_is_its_own_ode_whatever_its_batch():
    method, dataset, state, _ = trained()
    keys = example_keys(jax.random.key(0), 64)
    samples = method.sample(state.ema, keys, 64)
    np.testing.assert_allclose(samples[2:4], method.sample(state.ema, keys[2:4], 2), atol=1e-5)
    batch = loop.example_batch(dataset, 32)
    log_prob = method.log_prob(state.ema, jax.random.key(0), batch.data)
    alone = method.log_prob(state.ema, jax.random.key(1), batch.data[5:6])
    np.testing.assert_allclose(log_prob[5:6], alone, atol=1e-4)
    metrics = method.evaluate(state.ema, jax.random.key(0), batch)
    np.testing.assert_allclose(metrics["loss"], -np.mean(log_prob), rtol=1e-5)
    assert method.network_calls() is None
    assert not method.bounds_log_prob


def test_its_density_integrates_to_one_and_its_draws_follow_it():
    method, _, state, _ = trained()
    axis, cell = np.linspace(-5, 5, 101, retstep=True)
    grid = jnp.asarray(np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2), jnp.float32)
    density = np.exp(np.asarray(method.log_prob(state.ema, jax.random.key(0), grid), np.float64)) * cell**2
    assert density.sum() == pytest.approx(1, abs=2e-3)
    samples = np.asarray(method.sample(state.ema, jax.random.key(1), 5_000))
    for quantity in (lambda x: x[:, 0], lambda x: x[:, 1], lambda x: x[:, 0] * x[:, 1]):
        exact, drawn = np.sum(density * quantity(np.asarray(grid))), quantity(samples)
        assert abs(drawn.mean() - exact) < 5 * drawn.std() / len(samples) ** 0.5 + 2e-3


WEIGHED = {"kinetic": 0.01, "jacobian": 0.01, "class_conditional": True}


@functools.cache
def first_step(**options):
    """The metrics of the first step."""
    method, dataset = tiny(**WEIGHED, **options)
    batch = loop.example_batch(dataset, 4096)
    state = method.init(jax.random.key(0), batch)
    return jax.jit(method.step)(state, batch)[1]


@pytest.mark.parametrize(
    "options",
    [
        {"divergence": "hutchinson"},
        {"adjoint": "backsolve", "tolerance": 1e-6},
        {"adjoint": "backsolve", "tolerance": 1e-6, "divergence": "hutchinson"},
        {"solver_steps": 12},
    ],
    ids=["hutchinson", "backsolve", "backsolve of an estimate", "fixed"],
)
def test_every_way_of_solving_takes_about_the_same_step(options):
    """The first loss and gradient: those of the exact trace and many adaptive steps, estimated or solved otherwise."""
    expected, found = first_step(tolerance=1e-6), first_step(**options)
    estimated = "divergence" in options
    for name in ("loss", "nats", "kinetic", "jacobian", "grad_norm"):
        np.testing.assert_allclose(found[name], expected[name], rtol=0.05 if estimated else 2e-3, err_msg=name)
    total = found["nats"] + WEIGHED["kinetic"] * found["kinetic"] + WEIGHED["jacobian"] * found["jacobian"]
    np.testing.assert_allclose(found["loss"], total, rtol=1e-6)
    assert found["solver_steps"] == options.get("solver_steps", found["solver_steps"])


def test_kinetic_energy_is_lower_where_it_is_weighed():
    """Of the same model after as many steps."""
    assert trained(kinetic=1.0)[3]["kinetic"] < 0.8 * trained()[3]["kinetic"]


def test_labels_choose_draws_and_densities():
    method, dataset = tiny(class_conditional=True)
    method = jitted(method)
    batch, key = loop.example_batch(dataset, 6), jax.random.key(1)
    params = method.init(jax.random.key(0), batch).params
    one, two = jnp.zeros(6, jnp.int32), jnp.ones(6, jnp.int32)
    log_one, log_two = (method.log_prob(params, key, batch.data, label=label) for label in (one, two))
    mixed = method.log_prob(params, key, batch.data, label=jnp.arange(6) % 2)
    np.testing.assert_allclose(mixed, np.where(np.arange(6) % 2, log_two, log_one), rtol=1e-5)
    assert np.abs(log_one - log_two).min() > 1e-4
    both = np.logaddexp(log_one, log_two) - np.log(2)
    np.testing.assert_allclose(method.log_prob(params, key, batch.data), both, rtol=1e-5)
    draws = [method.sample(params, key, 6, label=label) for label in (one, two)]
    assert np.abs(draws[0] - draws[1]).max() > 1e-2


def test_a_solve_that_fails_ends_training():
    method, dataset = tiny(tolerance=1e-7, max_solver_steps=2)
    with pytest.raises(Diverged, match="the loss is nan"):
        fit(method, dataset, 1)


COMMAND = ["cnf", "--data", "moons", "--width", "8", "--depth", "1", "--batch-size", "16", "--steps", "8"]
COMMAND += ["--steps-per-dispatch", "2", "--evaluations", "2"]


@pytest.fixture(autouse=True, scope="module")
def _no_persistent_cache():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "use_compilation_cache", lambda: None)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with checkpoints of steps 4 and 8."""
    out = tmp_path_factory.mktemp("cnf") / "run"
    assert cli.run(cli_train.main, [*COMMAND, "--out", str(out)]) == 0
    return out


def test_a_solve_that_fails_ends_sampling_and_scoring(run, tmp_path, capsys):
    """Three steps are not enough for the tolerance of sampling."""
    run = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("samples"))
    described = json.loads((run / "config.json").read_text())
    described["config"] |= {"max_solver_steps": 3, "sampling_tolerance": 1e-7}
    (run / "config.json").write_text(json.dumps(described))
    assert cli.run(cli_sample.main, [str(run), "--num", "20"]) == 1
    assert "20 of 20 samples are NaN" in capsys.readouterr().err
    assert not (run / "samples" / "samples.npz").exists()
    assert cli.run(cli_sample.main, [str(run), "--log-prob", "--num", "20"]) == 1
    assert "20 of 20 log-likelihoods are NaN" in capsys.readouterr().err


def test_a_run_cut_in_the_middle_and_resumed_is_the_same_bit_for_bit(run, tmp_path, capsys):
    cut = shutil.copytree(run, tmp_path / "cut")
    shutil.rmtree(cut / "checkpoints" / "8")  # as if it had been killed after step 4
    assert cli.run(cli_train.main, [*COMMAND, "--out", str(cut)]) == 0
    assert "resumed   at step 4" in capsys.readouterr().out
    losses = [
        [r["loss"] for line in (out / "metrics.jsonl").read_text().splitlines() if "loss" in (r := json.loads(line))]
        for out in (run, cut)
    ]
    assert losses[0] == losses[1]
    whole, resumed = (Checkpoints(out / "checkpoints").restore(step=8) for out in (run, cut))
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)


def test_what_sample_py_says_of_it(run, tmp_path, capsys):
    out = ["--out", str(tmp_path)]
    assert cli.run(cli_sample.main, [str(run), "--num", "50", *out]) == 0
    assert np.isfinite(np.load(tmp_path / "samples.npz")["samples"]).all()
    assert "50 samples as many network calls as each needs" in capsys.readouterr().out
    assert cli.run(cli_sample.main, [str(run), "--log-prob", "--num", "20", *out]) == 0
    told = capsys.readouterr().out
    assert "20 held-out points" in told
    assert "bound" not in told
    assert cli.run(cli_sample.main, [str(run), "--steps", "3"]) == 2
    assert "--steps does not apply: cnf" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "examples", "told"),
    [
        ({}, Examples((8, 8, 1), levels=17), "images of shape .* use flow-matching"),
        ({"class_conditional": True}, Examples((2,)), "--class-conditional needs labels"),
        ({"width": 0}, Examples((2,)), "--width is 0; expected at least 1"),
        ({"depth": -1}, Examples((2,)), "--depth is -1"),
        ({"kinetic": -0.1}, Examples((2,)), "--kinetic is -0.1; expected a number of at least 0"),
        ({"jacobian": float("nan")}, Examples((2,)), "--jacobian is nan"),
        ({"tolerance": 0.0}, Examples((2,)), "--tolerance is 0.0; expected more than 0 and below 1"),
        ({"sampling_tolerance": float("nan")}, Examples((2,)), "--sampling-tolerance is nan"),
        ({"solver_steps": 0}, Examples((2,)), "--solver-steps is 0"),
        ({"max_solver_steps": 0}, Examples((2,)), "--max-solver-steps is 0"),
        ({"solver_steps": 5, "tolerance": 1e-3}, Examples((2,)), "give it or --tolerance"),
        ({"solver_steps": 5, "adjoint": "backsolve"}, Examples((2,)), "not with --solver-steps"),
    ],
)
def test_what_cannot_work_is_refused(options, examples, told):
    with pytest.raises(UsageError, match=told) as refused:
        cnf.resolve(cnf.Config(**options), examples)
    assert "\n" not in str(refused.value)


def test_defaults_follow_the_data():
    resolved = [cnf.resolve(cnf.Config(), Examples((d,))).divergence for d in (1, 2, 3, 4, 64)]
    assert resolved == ["exact", "exact", "exact", "hutchinson", "hutchinson"]
    assert cnf.resolve(cnf.Config(solver_steps=8), Examples((2,))).tolerance is None
    assert cnf.resolve(cnf.resolve(cnf.Config(solver_steps=8), Examples((2,))), Examples((2,))).solver_steps == 8
