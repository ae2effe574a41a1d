"""What adversarial methods share: a generator G, a critic D, and a training step for both.

    critic      every step:                  E game.critic(D(data), D(G(z))) + E penalty
    generator   every `critic_steps`-th one: E game.generator(D(data), D(G(z)))

Both follow the learning rate of the training step. Fakes have the labels of the data they are paired with. Sampling
uses a moving average of G (Yazici et al. 2019, arXiv 1806.04498); that of D is kept beside it for `evaluate`.
"""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax
import tyro

from genjax.arrays import as_example_keys, fold_each, normal
from genjax.errors import UsageError
from genjax.losses import adversarial
from genjax.losses.adversarial import Critic
from genjax.methods import labels
from genjax.methods.network_options import ByData, check_halvings
from genjax.methods.recommended import Recommended
from genjax.samplers import importance_resample
from genjax.training.compilation import convolution_cond, convolution_options, convolution_steps_per_dispatch
from genjax.training.steps import apply_gradients, new_state, step_key, with_ema
from genjax.typing import Array, Batch, Examples, Key, Method, Metrics, Net, Params, State

NumberByData = tyro.conf.arg(metavar="FLOAT", help_behavior_hint="(default: by data)")

_HALVINGS = 2
"""How often a critic halves the sides of an image."""

Penalty = Callable[[Critic, Key, Array, Array, Array], Array]
"""`penalty(critic, key, real [B, ...], fake [B, ...], step []) -> [B]`, added to the critic's loss."""


@dataclasses.dataclass(frozen=True)
class Players:
    """Generator and critic. What is not given is chosen by the data."""

    latent: Annotated[int | None, ByData] = None
    """dimensions of the latent"""
    signs: Annotated[int | None, ByData] = None
    """how many of them are +1 or -1 and not Gaussian, so that fakes of separate modes need no bridge between them"""
    width: Annotated[int | None, ByData] = None
    """hidden units (points), channels at full size (images)"""
    depth: Annotated[int | None, ByData] = None
    """hidden layers (points)"""
    octaves: Annotated[int | None, ByData] = None
    """waves that the critic is shown beside each coordinate (points)"""


POINTS = Players(latent=12, signs=8, width=256, depth=3, octaves=7)
"""For a critic that sees fine structure, and fakes of modes far apart."""

SMOOTH_POINTS = Players(latent=4, signs=0, width=128, depth=3, octaves=0)
"""For a critic whose slope is held, which waves would raise."""

_IMAGES = Players(latent=64, signs=0, width=16, depth=0, octaves=0)
_SMALL_IMAGES = dataclasses.replace(_IMAGES, width=32)


def resolve(config: Any, examples: Examples, *, points: Players = POINTS) -> Any:
    """`config` (of a method with `players`, `critic_steps`, `class_conditional`) with the defaults of its players.

    Args:
        config: as the user gave it.
        examples: what the data are.
        points: the defaults where these are points.

    Raises:
        UsageError: options that do not fit the data or each other.
    """
    labels.check_config(config.class_conditional, examples.num_classes)
    if config.critic_steps < 1:
        raise UsageError(f"--critic-steps is {config.critic_steps}; expected at least 1")
    return dataclasses.replace(config, players=_resolve_players(config.players, examples, points))


def _resolve_players(players: Players, examples: Examples, points: Players) -> Players:
    given = {name: value for name, value in dataclasses.asdict(players).items() if value is not None}
    for name, least in {"latent": 1, "signs": 0, "width": 1, "depth": 0, "octaves": 0}.items():
        if name in given and given[name] < least:
            raise UsageError(f"--{name} is {given[name]}; expected at least {least}")
    if examples.are_images:
        for name in ("depth", "octaves"):
            if given.get(name):
                raise UsageError(f"--{name} is for points; images have layers by their size")
        check_halvings(examples, _HALVINGS)
    images = _SMALL_IMAGES if examples.are_small_images else _IMAGES
    defaults = dataclasses.asdict(images if examples.are_images else points)
    defaults["signs"] = min(defaults["signs"], given.get("latent", defaults["latent"]) - 1)
    players = Players(**(defaults | given))
    if (players.signs or 0) >= (players.latent or 0):
        raise UsageError(f"--signs is {players.signs}; expected below --latent, which is {players.latent}")
    return players


def check_positive(**options: float) -> None:
    """Refuse (UsageError) options that are not above 0."""
    for name, value in options.items():
        if not value > 0:
            raise UsageError(f"--{name.replace('_', '-')} is {value}; expected more than 0")


def recommended(examples: Examples, *, critic_steps: int = 1) -> Recommended:
    """Training that gives a good result on such examples; no momentum, as the game turns."""
    if not examples.are_images:
        return Recommended(30_000, 256, 2e-3, steps_per_dispatch=200, b1=0.0, b2=0.99)
    steps = 4_000 if critic_steps == 1 or examples.are_small_images else 10_000
    return Recommended(steps, 64, 1e-3, steps_per_dispatch=convolution_steps_per_dispatch(), b1=0.0, b2=0.99)


def build(
    players: Players,
    optimizer: optax.GradientTransformation,
    examples: Examples,
    *,
    num_classes: int,
    game: adversarial.Game,
    penalty: Penalty | None = None,
    critic_params: Callable[[Params], Params] = lambda params: params,
    constrain: Callable[[Params], Params] = lambda params: params,
    critic_steps: int,
    generator_rate: float = 1.0,
    ema_decay: float,
    candidates: int | None = None,
    held_out: Callable[[Array, Array], Metrics],
) -> Method:
    """The method of a game between resolved `players`.

    Args:
        players: from `resolve`.
        optimizer: from `genjax.training.steps.adamw`, or any of optax; each player has a state of it.
        examples: what the data are.
        num_classes: 0 for a method without labels.
        game: the losses of the two.
        penalty: of the critic, or None.
        critic_params: the parameters that the critic computes with, of those that are trained.
        constrain: applied to the critic's parameters after each of its updates.
        critic_steps: critic updates for one of the generator.
        generator_rate: factor on the generator's updates (Heusel et al. 2017, arXiv 1706.08500).
        ema_decay: of the moving average.
        candidates: of how many fakes sampling keeps one, where nothing else is asked for; None for a game whose logits are
            not `log p/q`.
        held_out: metrics of the averaged networks, from `(real logits, fake logits)`, each `[B]`.
    """
    generator, critic = _networks(players, examples, num_classes)
    latent, signs = players.latent or 0, players.signs or 0

    def draw_latents(key: Key, num: int) -> Array:
        z = normal(fold_each(as_example_keys(key, num), jnp.uint32(0)), (num, latent))
        return jnp.concatenate([jnp.sign(z[:, :signs]), z[:, signs:]], axis=-1)

    def generate(params: Params, key: Key, num: int, label: Array | None) -> Array:
        z = draw_latents(key, num)
        return generator.apply(params, z) if label is None else generator.apply(params, z, label)

    def critic_with(params: Params, label: Array | None) -> Critic:
        params = critic_params(params)
        return lambda x: critic.apply(params, x) if label is None else critic.apply(params, x, label)

    def init(key: Key, batch: Batch) -> State:
        run_key, generator_key, critic_key = jax.random.split(key, 3)
        label = labels.of_batch(batch, num_classes)
        given = () if label is None else (label,)
        params = {
            "generator": generator.init(generator_key, jnp.zeros((len(batch.data), latent)), *given),
            "critic": critic.init(critic_key, batch.data, *given),
        }
        return new_state(run_key, params, {name: optimizer.init(params[name]) for name in params})

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        fake_key, penalty_key, generator_key = jax.random.split(step_key(state), 3)
        num, label = len(batch.data), labels.of_batch(batch, num_classes)
        fake = generate(state.params["generator"], fake_key, num, label)

        def critic_loss(params: Params) -> tuple[Array, Metrics]:
            judge = critic_with(params, label)
            logits = judge(batch.data), judge(fake)
            loss = jnp.mean(game.critic(*logits))
            metrics = {"critic_loss": loss, "generator_loss": jnp.mean(game.generator(*logits))}
            if penalty is None:
                return loss, metrics
            cost = jnp.mean(penalty(judge, penalty_key, batch.data, fake, state.step))
            return loss + cost, {**metrics, "penalty": cost}

        def generator_loss(params: Params, judge: Critic) -> Array:
            return jnp.mean(game.generator(judge(batch.data), judge(generate(params, generator_key, num, label))))

        def update(name: str, grads: Params) -> tuple[Params, Params]:
            return apply_gradients(optimizer, grads, state.opt_state[name], state.params[name], step=state.step)

        grads, metrics = jax.grad(critic_loss, has_aux=True)(state.params["critic"])
        critic_after, critic_memory = update("critic", grads)
        critic_after = constrain(critic_after)

        def update_generator() -> tuple[Params, Params]:
            judge = critic_with(critic_after, label)
            before = state.params["generator"]
            after, memory = update("generator", jax.grad(generator_loss)(before, judge))
            return jax.tree.map(lambda old, new: old + generator_rate * (new - old), before, after), memory

        def keep_generator() -> tuple[Params, Params]:
            return state.params["generator"], state.opt_state["generator"]

        if critic_steps == 1:
            generator_after, generator_memory = update_generator()
        else:
            cond = convolution_cond if examples.are_images else jax.lax.cond
            due = (state.step + 1) % critic_steps == 0
            generator_after, generator_memory = cond(due, update_generator, keep_generator)
        state = state._replace(
            step=state.step + 1,
            params={"generator": generator_after, "critic": critic_after},
            opt_state={"generator": generator_memory, "critic": critic_memory},
        )
        return state, metrics

    def evaluate(params: Params, key: Key, batch: Batch) -> Metrics:
        label = labels.of_batch(batch, num_classes)
        judge = critic_with(params["critic"], label)
        return held_out(judge(batch.data), judge(generate(params["generator"], key, len(batch.data), label)))

    def sample_plainly(params: Params, key: Key, num: int, *, label: Array | None = None) -> Array:
        """`num` draws `[num, ...]` in model units; a class-conditional model draws the labels that are not given."""
        keys = as_example_keys(key, num)
        return generate(params["generator"], keys, num, labels.given_or_drawn(label, keys, num_classes))

    def sample_resampled(
        params: Params, key: Key, num: int, *, label: Array | None = None, candidates: int = candidates or 1
    ) -> Array:
        """The same, each drawn from `candidates` fakes by the critic's odds; 1 is the generator alone."""
        if network_calls(candidates) == 1:
            return sample_plainly(params, key, num, label=label)
        keys = as_example_keys(key, num)
        label = labels.given_or_drawn(label, keys, num_classes)
        each = jax.vmap(lambda one: jax.random.split(one, candidates))(fold_each(keys, jnp.uint32(2))).reshape(-1)
        repeated = None if label is None else jnp.repeat(label, candidates)
        fakes = generate(params["generator"], each, len(each), repeated)
        logits = critic_with(params["critic"], repeated)(fakes)
        rows = (num, candidates)
        return importance_resample(
            fold_each(keys, jnp.uint32(3)), fakes.reshape(*rows, *examples.event_shape), logits.reshape(rows)
        )

    def network_calls(candidates: int = candidates or 1, **_: Any) -> int:
        if candidates < 1:
            raise UsageError(f"--candidates is {candidates}; expected at least 1")
        return 1 if candidates == 1 else 2 * candidates

    options = convolution_options() if examples.are_images else None
    sample = sample_plainly if candidates is None else sample_resampled
    return Method(init, with_ema(step, ema_decay), sample, network_calls, evaluate, compiler_options=options)


def _networks(players: Players, examples: Examples, num_classes: int) -> tuple[Net, Net]:
    from genjax.networks.critic import image_critic, point_critic
    from genjax.networks.generator import image_generator, point_generator

    width = players.width or 0
    if examples.are_images:
        options = dict(base=width, halvings=_HALVINGS, num_classes=num_classes)
        return image_generator(examples.event_shape, **options), image_critic(examples.event_shape, **options)
    features = (width,) * (players.depth or 0)
    return (
        point_generator(examples.event_shape[0], features=features, num_classes=num_classes),
        point_critic(features=features, octaves=players.octaves or 0, num_classes=num_classes),
    )
