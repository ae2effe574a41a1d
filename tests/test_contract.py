"""The method seam: families with other needs than ours train, checkpoint, resume and sample through the same loop.

An adversarial method with two optimizers and several critic steps, and a distillation method with a frozen teacher,
each written here from outside; and what every method of the package must offer.
"""

import dataclasses
import functools
import inspect
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from genjax import cli, cli_sample, cli_train
from genjax.arrays import as_example_keys, normal
from genjax.methods import METHODS
from genjax.methods.network_options import NetworkOptions
from genjax.methods.recommended import Recommended
from genjax.training import data, loop
from genjax.training.checkpoint import Checkpoints
from genjax.training.steps import adamw, apply_gradients, from_loss, new_state, step_key, with_ema
from genjax.typing import Method

QUICKLY_COMPILED = {"xla_backend_optimization_level": 0}
jit = functools.partial(jax.jit, compiler_options=QUICKLY_COMPILED)


def _dense(key, sizes):
    keys = jax.random.split(key, len(sizes) - 1)
    return [
        (jax.random.normal(k, (m, n)) / m**0.5, jnp.zeros(n))
        for k, m, n in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]


def _apply(layers, x):
    for weight, bias in layers[:-1]:
        x = jax.nn.silu(x @ weight + bias[None])
    weight, bias = layers[-1]
    return x @ weight + bias[None]


def adversarial(*, critic_steps=3, latent=4, width=64):
    """A WGAN with weight clipping: `critic_steps` critic updates for one of the generator."""
    optimizers = {"generator": optax.adam(1e-3, b1=0.5), "critic": optax.adam(1e-3, b1=0.5)}

    def init(key, batch):
        run_key, *keys = jax.random.split(key, 3)
        dimension = batch.data.shape[1]
        params = {
            "generator": _dense(keys[0], (latent, width, dimension)),
            "critic": _dense(keys[1], (dimension, width, 1)),
        }
        opt_state = {name: optimizers[name].init(params[name]) for name in params}
        return new_state(run_key, params, opt_state, ema=params["generator"])

    def step(state, batch):
        z = jax.random.normal(step_key(state), (batch.data.shape[0], latent))

        def critic_loss(critic):
            fake = _apply(state.params["generator"], z)
            return jnp.mean(_apply(critic, fake)) - jnp.mean(_apply(critic, batch.data))

        def generator_loss(generator, critic):
            return -jnp.mean(_apply(critic, _apply(generator, z)))

        loss, grads = jax.value_and_grad(critic_loss)(state.params["critic"])
        critic, critic_opt = apply_gradients(
            optimizers["critic"], grads, state.opt_state["critic"], state.params["critic"], step=state.step
        )
        critic = jax.tree.map(lambda w: jnp.clip(w, -0.2, 0.2), critic)

        def update_generator(generator, opt_state):
            grads = jax.grad(generator_loss)(generator, critic)
            return apply_gradients(optimizers["generator"], grads, opt_state, generator, step=state.step)

        generator, generator_opt = jax.lax.cond(
            (state.step + 1) % critic_steps == 0,
            update_generator,
            lambda *unchanged: unchanged,
            state.params["generator"],
            state.opt_state["generator"],
        )
        state = state._replace(
            step=state.step + 1,
            params={"generator": generator, "critic": critic},
            opt_state={"generator": generator_opt, "critic": critic_opt},
        )
        return state, {"critic_loss": loss}

    def sample(params, key, num):
        return _apply(params, normal(as_example_keys(key, num), (num, latent)))

    return Method(init, with_ema(step, 0.99, select=lambda params: params["generator"]), sample)


def distillation(teacher):
    """A student that learns the map of a frozen teacher, which lives in the state and not in the program."""

    def loss_of(frozen):
        def loss(params, key, batch):
            return jnp.mean((_apply(params, batch.data) - _apply(frozen, batch.data)) ** 2), {}

        return loss

    def init(key, batch):
        run_key, net_key = jax.random.split(key)
        params = _dense(net_key, (batch.data.shape[1], 32, batch.data.shape[1]))
        return new_state(run_key, params, optimizer.init(params), frozen=teacher)

    optimizer = adamw(3e-3, 400)

    def step(state, batch):
        return from_loss(loss_of(state.frozen), optimizer)(state, batch)

    def sample(params, key, num):
        return _apply(params, normal(as_example_keys(key, num), (num, 2)))

    return Method(init, with_ema(step, 0.9), sample)


def _teacher():
    return _dense(jax.random.key(7), (2, 8, 2))


def _equal(left, right):
    leaves_left, leaves_right = jax.tree.leaves(left), jax.tree.leaves(right)
    assert len(leaves_left) == len(leaves_right)
    return all(np.array_equal(a, b) for a, b in zip(leaves_left, leaves_right, strict=True))


@pytest.mark.parametrize("make", [adversarial, lambda: distillation(_teacher())], ids=["adversarial", "distillation"])
def test_foreign_methods_train_checkpoint_resume_and_sample(make, tmp_path):
    method, dataset = make(), data.load("eight_gaussians")
    options = dict(batch_size=64, steps_per_dispatch=20, progress=False)
    whole = loop.fit(method, dataset, 3, steps=120, **options)

    part = loop.fit(method, dataset, 3, steps=60, **options)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(part)
        checkpoints.wait()
        template = jax.eval_shape(method.init, jax.random.key(3), loop.example_batch(dataset))
        restored = checkpoints.restore(template)
        assert _equal(restored, part)
        resumed = loop.fit(method, dataset, 3, steps=120, state=restored, **options)
        checkpoints.save(resumed)
        checkpoints.wait()
        params = checkpoints.restore_ema(template.ema)
    assert _equal(resumed, whole)

    samples = method.sample(params, jax.random.key(0), 32)
    assert samples.shape == (32, 2)
    assert np.isfinite(samples).all()


@dataclasses.dataclass(frozen=True)
class AdversarialConfig:
    """A WGAN."""

    critic_steps: int = 3
    """critic updates for one of the generator"""


def _module():
    """The adversarial method as a module of `genjax.methods`."""
    module = types.ModuleType("adversarial", "A WGAN with weight clipping.")
    module.Config = AdversarialConfig
    module.recommended = lambda examples: Recommended(40, 64, 1e-3, steps_per_dispatch=10)
    module.resolve = lambda config, examples: config
    module.build = lambda config, optimizer, examples: adversarial(**dataclasses.asdict(config))
    return module


def test_a_foreign_method_goes_through_both_scripts(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(METHODS, "adversarial", _module())
    monkeypatch.setattr(cli, "use_compilation_cache", lambda: None)
    out = tmp_path / "run"
    train = ["adversarial", "--data", "moons", "--critic-steps", "2", "--out", str(out)]
    assert cli.run(cli_train.main, train) == 0
    assert "resumed" not in capsys.readouterr().out
    assert (out / "loss.png").exists()
    assert cli.run(cli_train.main, train) == 0
    assert "resumed   at step 40" in capsys.readouterr().out
    assert cli.run(cli_train.main, [*train, "--critic-steps", "4"]) == 2
    assert "critic_steps" in capsys.readouterr().err
    assert cli.run(cli_sample.main, [str(out), "--num", "50"]) == 0
    assert "50 samples 1 network call each" in capsys.readouterr().out
    with np.load(out / "samples" / "samples.npz") as saved:
        assert saved["samples"].shape == (50, 2)
        assert np.isfinite(saved["samples"]).all()
    assert cli.run(cli_sample.main, [str(out), "--sampler", "heun"]) == 2
    assert "--sampler does not apply: adversarial" in capsys.readouterr().err


def test_adversarial_method_updates_the_generator_every_third_step():
    method, dataset = adversarial(critic_steps=3), data.load("eight_gaussians")
    batch = loop.example_batch(dataset, 16)
    state, step = method.init(jax.random.key(0), batch), jax.jit(method.step)
    changed = []
    for _ in range(6):
        after, _ = step(state, batch)
        changed.append(not _equal(after.params["generator"], state.params["generator"]))
        assert not _equal(after.params["critic"], state.params["critic"])
        state = after
    assert changed == [False, False, True, False, False, True]


def test_adversarial_method_learns():
    method, dataset = adversarial(), data.load("moons")
    state = loop.fit(method, dataset, 0, steps=1500, batch_size=128, steps_per_dispatch=100, progress=False)
    target = np.asarray(loop.example_batch(dataset, 2000).data)
    untrained = method.init(jax.random.key(0), loop.example_batch(dataset)).ema

    def distance(params):
        samples = np.asarray(method.sample(params, jax.random.key(1), 2000))
        return np.abs(np.sort(samples, axis=0) - np.sort(target, axis=0)).mean()  # W1 of the two marginals

    assert distance(state.ema) < 0.6 * distance(untrained)


def test_distillation_leaves_the_teacher_and_learns_it():
    teacher, dataset = _teacher(), data.load("moons")
    method = distillation(teacher)
    state = loop.fit(method, dataset, 0, steps=400, batch_size=128, steps_per_dispatch=100, progress=False)
    assert _equal(state.frozen, teacher)
    x = loop.example_batch(dataset, 500).data
    target = _apply(teacher, x)
    residual = jnp.mean((_apply(state.ema, x) - target) ** 2) / jnp.var(target)
    assert residual < 0.02


@pytest.mark.parametrize("name", METHODS)
def test_every_method_module_offers_the_same_names(name):
    module = METHODS[name]
    assert list(inspect.signature(module.recommended).parameters) == ["examples"]
    other = ["other"] if hasattr(module, "OTHER_RUN") else []
    assert list(inspect.signature(module.resolve).parameters) == ["config", "examples", *other]
    assert list(inspect.signature(module.build).parameters) == ["config", "optimizer", "examples", *other]
    assert not other or module.OTHER_RUN in {field.name for field in dataclasses.fields(module.Config)}
    assert module.__doc__.strip().splitlines()[0].endswith(".")


@pytest.mark.parametrize(
    ("name", "data_name", "network"),
    [
        ("flow-matching", "moons", {"width": 16, "depth": 2}),
        ("ddpm", "moons", {"width": 16, "depth": 2}),
        ("flow-matching", "digits", {"width": 8, "depth": 1}),
        ("ddpm", "digits", {"network": "dit", "width": 16, "depth": 1, "patch": 4}),
    ],
)
def test_every_path_method_trains_and_samples(name, data_name, network):
    module, dataset = METHODS[name], data.load(data_name)
    event_shape = dataset.train.data.shape[1:]
    config = module.Config(class_conditional=True, network=NetworkOptions(**network))
    method = module.build(config, adamw(1e-3, 4), dataset.examples)
    method = method._replace(init=jit(method.init), compiler_options=QUICKLY_COMPILED)
    per_dispatch = module.recommended(dataset.examples).steps_per_dispatch
    state = loop.fit(method, dataset, 0, steps=4, batch_size=8, steps_per_dispatch=min(per_dispatch, 4), progress=False)
    assert int(state.step) == 4
    sample = jit(
        lambda params, key, label, guidance: method.sample(
            params, key, 4, steps=4, label=label, guidance=guidance, trace=True
        )
    )
    samples, trajectory = sample(state.ema, jax.random.key(0), jnp.arange(4) % 2, 2.0)
    assert samples.shape == (4, *event_shape)
    assert trajectory.x.shape == (5, 4, *event_shape)
    assert np.array_equal(trajectory.x[-1], samples)
    assert np.isfinite(samples).all()
    metrics = jit(method.evaluate)(state.ema, jax.random.key(0), loop.example_batch(dataset, 8))
    assert np.isfinite(metrics["loss"])
