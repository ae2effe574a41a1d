"""Adversarial methods: two players behind one step, labels, penalties that fall, what is refused."""

import dataclasses
import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import cli, cli_sample, cli_train
from genjax.arrays import example_keys
from genjax.errors import UsageError
from genjax.methods import METHODS, gan, wgan, wgan_gp
from genjax.methods.adversarial_models import Players
from genjax.training import data, loop
from genjax.training.steps import adamw
from genjax.typing import Examples

POINTS = Players(latent=6, signs=2, width=16, depth=2, octaves=2)
SMOOTH = dataclasses.replace(POINTS, octaves=None)
IMAGES = Players(latent=4, width=4)
CASES = {
    "gan, moons, labels": gan.Config(class_conditional=True, players=POINTS),
    "gan, moons, minimax": gan.Config(game="minimax", r1=0, r2=0, critic_steps=2, players=POINTS),
    "gan, moons, hinge": gan.Config(game="hinge", spectral=True, r1=0, r2=0, players=SMOOTH),
    "gan, digits": gan.Config(players=IMAGES),
    "wgan, digits, labels": wgan.Config(critic_steps=2, class_conditional=True, players=IMAGES),
    "wgan-gp, moons": wgan_gp.Config(critic_steps=3, players=POINTS),
}
QUICKLY_COMPILED = {"xla_backend_optimization_level": 0}
jit = functools.partial(jax.jit, compiler_options=QUICKLY_COMPILED)
every_case = pytest.mark.parametrize("name", CASES)


@functools.cache
def started(name):
    """A method, its data, its first state, and a step `(state, batch of data) -> (state, metrics)` that donates nothing."""
    method_name, data_name = name.split(", ")[:2]
    dataset = data.load(data_name)
    method = METHODS[method_name].build(CASES[name], adamw(1e-2, 8, b1=0.0), dataset.examples)
    dispatch = loop.make_dispatch(method._replace(compiler_options=QUICKLY_COMPILED), dataset.scaling, 16)

    def step(state, batch):
        return dispatch(jax.tree.map(jnp.copy, state), None, jax.tree.map(lambda values: values[None], batch))

    return method, dataset, jit(method.init)(jax.random.key(0), loop.example_batch(dataset)), step


def equal(left, right):
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True))


@every_case
def test_trains_repeats_itself_and_is_evaluated(name):
    method, dataset, start, step = started(name)
    batches = [jax.tree.map(lambda v, k=k: v[16 * k : 16 * k + 16], dataset.train) for k in range(4)]

    def train(state, batches):
        for batch in batches:
            state, metrics = step(state, batch)
            assert np.isfinite(list(metrics.values())).all()
        return state

    whole = train(start, batches)
    assert equal(train(train(start, batches[:2]), batches[2:]), whole)
    assert not equal(whole.ema["generator"], start.ema["generator"])
    metrics = jit(method.evaluate)(whole.ema, jax.random.key(0), loop.example_batch(dataset, 32))
    assert np.isfinite(list(metrics.values())).all()


@every_case
def test_a_sample_is_its_keys_and_its_labels_alone(name):
    method, dataset, start, _ = started(name)
    params = start.ema
    sample = jit(lambda keys, label=None: method.sample(params, keys, len(keys), label=label))
    keys = example_keys(jax.random.key(0), 6)
    samples = sample(keys)
    assert samples.shape == (6, *dataset.examples.event_shape)
    np.testing.assert_allclose(samples[2:4], sample(keys[2:4]), atol=1e-5)
    if not name.endswith("labels"):
        with pytest.raises(UsageError, match="trained without --class-conditional"):
            sample(keys, jnp.zeros(6, jnp.int32))
        return
    zeros, ones, mixed = (sample(keys, label) for label in (jnp.full(6, 0), jnp.full(6, 1), jnp.arange(6) % 2))
    assert np.abs(zeros - ones).max(axis=tuple(range(1, zeros.ndim))).min() > 1e-3
    np.testing.assert_allclose(mixed[::2], zeros[::2], atol=1e-5)
    np.testing.assert_allclose(mixed[1::2], ones[1::2], atol=1e-5)


def test_the_critic_moves_each_step_and_the_generator_when_due():
    _, dataset, state, step = started("wgan-gp, moons")
    batch, moved = jax.tree.map(lambda values: values[:16], dataset.train), []
    for _ in range(6):
        after, metrics = step(state, batch)
        assert set(metrics) == {"critic_loss", "generator_loss", "penalty"}
        assert not equal(after.params["critic"], state.params["critic"])
        moved.append(not equal(after.params["generator"], state.params["generator"]))
        assert moved[-1] == (not equal(after.opt_state["generator"], state.opt_state["generator"]))
        state = after
    assert moved == [False, False, True] * 2


def test_clipping_holds_after_a_step():
    method = wgan.build(wgan.Config(clip=0.05, players=POINTS), adamw(1e-2, 8), Examples((2,)))
    batch = loop.example_batch(data.load("moons"), 16)
    state, _ = jit(method.step)(jit(method.init)(jax.random.key(0), batch), batch)
    largest = {
        name: max(float(jnp.max(jnp.abs(v))) for v in jax.tree.leaves(state.params[name])) for name in state.params
    }
    assert largest["critic"] == pytest.approx(0.05)
    assert largest["generator"] > 0.05


def test_the_penalty_falls_geometrically():
    config = gan.Config(penalty_decay=0.01, penalty_decay_steps=100, players=POINTS)
    dataset = data.load("moons")
    method = gan.build(config, adamw(1e-3, 100), dataset.examples)
    batch = loop.example_batch(dataset, 64)
    state, step = jit(method.init)(jax.random.key(0), batch), jit(method.step)

    def penalty(at):
        return step(state._replace(step=jnp.asarray(at)), batch)[1]["penalty"]

    values = np.asarray([penalty(at) for at in (0, 50, 100, 200)])
    np.testing.assert_allclose(values / values[0], [1, 0.1, 0.01, 0.01], rtol=0.2)


def test_the_generator_moves_by_its_rate():
    """A first step of Adam moves each parameter by the learning rate, whatever its gradient."""
    batch, moved = loop.example_batch(data.load("moons"), 16), {}
    for rate in (1.0, 0.25):
        method = gan.build(
            gan.Config(generator_rate=rate, players=POINTS), adamw(1e-2, 8, schedule="constant"), Examples((2,))
        )
        before = jit(method.init)(jax.random.key(0), batch)
        after, _ = jit(method.step)(before, batch)
        moved[rate] = jax.tree.map(lambda a, b: np.abs(a - b).max(), after.params, before.params)
    for name, ratio in {"generator": 0.25, "critic": 1.0}.items():
        largest = {rate: max(jax.tree.leaves(moved[rate][name])) for rate in moved}
        assert largest[0.25] / largest[1.0] == pytest.approx(ratio, rel=1e-3)


def test_latents_have_signs_and_numbers():
    """The fakes of a linear generator with nothing but signs to work from take two values."""
    dataset = data.load("mixture1d")
    players = Players(latent=2, signs=1, width=8, depth=1, octaves=0)
    method = gan.build(gan.Config(players=players), adamw(1e-3, 100), dataset.examples)
    params = method.init(jax.random.key(0), loop.example_batch(dataset)).ema
    kernel = params["generator"]["hidden_0"]["kernel"]
    params["generator"]["hidden_0"]["kernel"] = kernel * jnp.asarray([[1.0], [0.0]])
    samples = np.round(np.asarray(method.sample(params, jax.random.key(0), 400, candidates=1))[:, 0], 5)
    values, counts = np.unique(samples, return_counts=True)
    assert len(values) == 2
    assert counts.min() > 150


def test_the_critic_chooses_among_fakes_by_its_odds():
    """A critic of logit `c x` tilts the density of fakes by `exp(c x)`: the mean of Gaussian fakes moves up by c."""
    method = gan.build(
        gan.Config(players=Players(latent=1, signs=0, width=1, depth=0, octaves=0)), adamw(1e-3, 8), Examples((1,))
    )
    params = jax.eval_shape(method.init, jax.random.key(0), loop.example_batch(data.load("mixture1d"))).ema
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), params)
    params["generator"]["out"]["kernel"] = jnp.ones((1, 1))
    params["critic"]["out"]["kernel"] = 0.5 * jnp.ones_like(params["critic"]["out"]["kernel"])
    moved = {k: np.asarray(method.sample(params, jax.random.key(0), 20_000, candidates=k)) for k in (1, 4, 64)}
    assert moved[1].mean() == pytest.approx(0.0, abs=0.03)
    assert 0.25 < moved[4].mean() < 0.5
    assert moved[64].mean() == pytest.approx(0.5, abs=0.03)
    assert moved[64].std() == pytest.approx(1.0, abs=0.03)
    assert method.network_calls(candidates=64) == 128
    np.testing.assert_array_equal(method.sample(params, jax.random.key(0), 20_000), moved[4])
    with pytest.raises(UsageError, match="--candidates is 0; expected at least 1"):
        method.network_calls(candidates=0)


@pytest.mark.parametrize("game", ["hinge", "least-squares"])
def test_only_a_critic_of_log_odds_chooses(game):
    method = gan.build(gan.Config(game=game, players=POINTS), adamw(1e-3, 8), Examples((2,)))
    assert "candidates" not in inspect.signature(method.sample).parameters


@pytest.mark.parametrize(
    ("module", "options", "examples", "told"),
    [
        (gan, {"class_conditional": True}, Examples((2,)), "--class-conditional needs labels, which these data do not"),
        (wgan, {"critic_steps": 0}, Examples((2,)), "--critic-steps is 0; expected at least 1"),
        (wgan, {"clip": 0.0}, Examples((2,)), "--clip is 0.0; expected more than 0"),
        (wgan_gp, {"gradient_penalty": -1.0}, Examples((2,)), "--gradient-penalty is -1.0; expected more than 0"),
        (wgan_gp, {"players": Players(latent=0)}, Examples((2,)), "--latent is 0; expected at least 1"),
        (gan, {"players": Players(latent=4, signs=4)}, Examples((2,)), "--signs is 4; expected below --latent"),
        (gan, {"players": Players(depth=3)}, Examples((8, 8, 1)), "--depth is for points"),
        (gan, {}, Examples((30, 30, 1)), "images of 30x30 cannot be halved 2 times; .* a multiple of 4"),
        (gan, {"r1": -1.0}, Examples((2,)), "--r1 is -1.0; expected at least 0"),
        (gan, {"generator_rate": 0.0}, Examples((2,)), "--generator-rate is 0.0; expected more than 0"),
        (gan, {"penalty_decay": 0.0}, Examples((2,)), "--penalty-decay is 0.0; expected above 0 and at most 1"),
        (gan, {"spectral": True, "players": Players(octaves=3)}, Examples((2,)), "use one of them"),
    ],
)
def test_what_cannot_work_is_refused(module, options, examples, told):
    with pytest.raises(UsageError, match=told):
        module.resolve(module.Config(**options), examples)


@pytest.mark.parametrize("module", [gan, wgan, wgan_gp])
@pytest.mark.parametrize("examples", [Examples((2,)), Examples((8, 8, 1), 10, 17), Examples((28, 28, 1), 10, 256)])
def test_what_is_resolved_has_every_default_and_stays(module, examples):
    config = module.resolve(module.Config(), examples)
    assert None not in dataclasses.asdict(config).values()
    assert None not in dataclasses.asdict(config.players).values()
    assert module.resolve(config, examples) == config


def test_both_scripts_with_resuming_and_labels(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli, "use_compilation_cache", lambda: None)
    out = tmp_path / "run"
    train = ["wgan-gp", "--data", "moons", "--class-conditional", "--steps", "20", "--steps-per-dispatch", "10"]
    train += ["--width", "16", "--batch-size", "16", "--out", str(out)]
    assert cli.run(cli_train.main, train) == 0
    assert cli.run(cli_train.main, train) == 0
    assert "resumed   at step 20" in capsys.readouterr().out
    assert cli.run(cli_train.main, [*train, "--b1", "0.4"]) == 2
    assert "b1" in capsys.readouterr().err
    assert cli.run(cli_sample.main, [str(out), "--num", "50", "--classes", "1"]) == 0
    assert "50 samples 1 network call each" in capsys.readouterr().out
    with np.load(out / "samples" / "samples.npz") as saved:
        assert np.isfinite(saved["samples"]).all()
        assert (saved["label"] == 1).all()
    assert cli.run(cli_sample.main, [str(out), "--steps", "5"]) == 2
    assert "--steps does not apply: wgan-gp" in capsys.readouterr().err
    assert cli.run(cli_sample.main, [str(out), "--candidates", "5"]) == 2
    assert "--candidates does not apply: wgan-gp" in capsys.readouterr().err


def test_gan_learns_two_modes_and_their_weights():
    """The 1-Wasserstein distance to held-out data falls below a tenth of their deviation."""
    dataset = data.load("mixture1d")
    config = gan.Config(
        r1=0.1, r2=0.1, penalty_decay_steps=2000, generator_rate=1.0, players=Players(width=64, depth=2)
    )
    method = gan.build(config, adamw(2e-3, 2000, b1=0.0, b2=0.99), dataset.examples)
    state = loop.fit(method, dataset, 0, steps=2000, batch_size=128, steps_per_dispatch=200, progress=False)
    samples = np.sort(np.asarray(dataset.scaling.to_data(method.sample(state.ema, jax.random.key(1), 10_000)))[:, 0])
    held_out = np.sort(dataset.test.data[:10_000, 0])
    assert np.mean(np.abs(samples - held_out)) < 0.1 * np.std(held_out)
    assert np.mean(samples < 0) == pytest.approx(0.3, abs=0.05)
