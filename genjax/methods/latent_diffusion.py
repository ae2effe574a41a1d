"""Latent diffusion: a flow or diffusion model of the codes of a trained autoencoder, decoded when sampled.

    codes   z ~ q(z | x), less their mean and divided by their deviation, both of the first batch and of each channel
    loss    that of `methods.flow_matching` on z: its paths, predictions and samplers
    sample  z by that model, then the mean of p(x | z)

The first stage is a run of `vae`, given by `--first-stage` and not trained further. Its codes are vectors of a few
numbers, or with `vae --spatial` maps of a quarter of the image's sides, so that a step costs a fraction of one on
pixels, and the decoder runs once.
Vahdat, Kreis & Kautz 2021 (arXiv 2106.05931), Rombach et al. 2022 (arXiv 2112.10752), section 3.2 and appendix G.
"""

import dataclasses
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax
import tyro

from genjax.errors import UsageError
from genjax.methods import flow_matching, labels
from genjax.methods.network_options import NetworkOptions
from genjax.methods.recommended import Recommended
from genjax.training.compilation import convolution_steps_per_dispatch
from genjax.training.steps import step_key
from genjax.typing import Array, Batch, Examples, Key, Method, Metrics, OtherRun, Params, State, Trajectory

OTHER_RUN = "first_stage"

_CODES = 3
"""Folded into a step's key for the draw of the codes."""

_STEPS = 25
"""Of the default sampler."""

_LEAST_DEVIATION = 1e-3
"""Of a dimension of the code in which all examples agree."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Model of the codes of an autoencoder."""

    first_stage: Annotated[str | None, tyro.conf.arg(metavar="RUN_DIR")] = None
    """a run of vae, which makes codes of the data and data of codes (required)"""
    codes: flow_matching.Config = dataclasses.field(default_factory=flow_matching.Config)

    @property
    def class_conditional(self) -> bool:
        """Whether it learns p(data | label)."""
        return self.codes.class_conditional

    @property
    def network(self) -> NetworkOptions:
        """Of the model of the codes."""
        return self.codes.network


def recommended(examples: Examples) -> Recommended:
    """Training that gives a good result on such examples."""
    return Recommended(10_000, 256, 1e-3, steps_per_dispatch=convolution_steps_per_dispatch())


def resolve(config: Config, examples: Examples, other: OtherRun | None = None) -> Config:
    """`config` with every default chosen.

    Raises:
        UsageError: options that do not fit the data, the first stage or each other.
    """
    labels.check_config(config.class_conditional, examples.num_classes)
    if other is None:
        raise UsageError(
            "latent-diffusion needs --first-stage RUN_DIR, a run of vae on the same data: python train.py vae"
        )
    if not examples.are_images:
        raise UsageError("latent-diffusion is for images; points take flow-matching, ddpm or edm")
    if other.method.encode is None or other.method.decode is None:
        raise UsageError(
            f"--first-stage {config.first_stage} is a run of {other.name}, which has no encoder: train vae"
        )
    return dataclasses.replace(config, codes=flow_matching.resolve(config.codes, _codes(examples, other)))


def _as_channels(value: Array, z: Array) -> Array:
    return value.reshape((1,) * (z.ndim - 1) + (-1,))


def _codes(examples: Examples, other: OtherRun) -> Examples:
    return Examples(other.method.latent, examples.num_classes)


def build(
    config: Config, optimizer: optax.GradientTransformation, examples: Examples, other: OtherRun | None = None
) -> Method:
    """The method for such examples with this first stage, given their labels if class-conditional."""
    config = resolve(config, examples, other)
    assert other is not None
    first = other.method
    encode, decode = first.encode, first.decode
    assert encode is not None
    assert decode is not None
    inner = flow_matching.build(config.codes, optimizer, _codes(examples, other))
    assert inner.evaluate is not None
    evaluate_codes = inner.evaluate

    def standardised(params: Params, key: Key, batch: Batch) -> Batch:
        z = encode(params["first_stage"], key, batch.data)
        return batch._replace(data=(z - _as_channels(params["mean"], z)) / _as_channels(params["deviation"], z))

    def decoded(params: Params, z: Array) -> Array:
        z = _as_channels(params["mean"], z) + _as_channels(params["deviation"], z) * z
        return decode(params["first_stage"], z)

    def init(key: Key, batch: Batch) -> State:
        first_stage = jax.tree.map(jnp.copy, other.params())
        z = encode(first_stage, jax.random.fold_in(key, _CODES), batch.data)
        over = tuple(range(z.ndim - 1))
        deviation = jnp.maximum(z.std(axis=over), _LEAST_DEVIATION)
        state = inner.init(key, batch._replace(data=z))
        ema = {"model": state.ema, "first_stage": first_stage, "mean": z.mean(axis=over), "deviation": deviation}
        return state._replace(ema=ema)

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        codes = standardised(state.ema, jax.random.fold_in(step_key(state), _CODES), batch)
        after, metrics = inner.step(state._replace(ema=state.ema["model"]), codes)
        return after._replace(ema={**state.ema, "model": after.ema}), metrics

    def evaluate(params: Params, key: Key, batch: Batch) -> Metrics:
        return evaluate_codes(params["model"], key, standardised(params, jax.random.fold_in(key, _CODES), batch))

    def sample(
        params: Params,
        key: Key,
        num: int,
        *,
        sampler: str = "heun",
        steps: int = _STEPS,
        label: Array | None = None,
        guidance: Array | float = 1.0,
        trace: bool = False,
    ) -> Any:
        """`num` draws `[num, ...]` in model units; with `trace` the pair of them and the `Trajectory`, decoded.

        Options as those of `flow_matching`.
        """
        options: Any = dict(sampler=sampler, steps=steps, label=label, guidance=guidance)
        if not trace:
            return decoded(params, inner.sample(params["model"], key, num, **options))
        z, trajectory = inner.sample(params["model"], key, num, **options, trace=True)
        states = jax.lax.map(lambda codes: decoded(params, codes), trajectory.x)
        return decoded(params, z), Trajectory(trajectory.t, states)

    def network_calls(*, steps: int = _STEPS, **options: Any) -> int | None:
        return inner.network_calls(steps=steps, **options)

    def reconstruct(params: Params, key: Key, data: Array) -> Array:
        """What the first stage makes of its codes."""
        assert first.reconstruct is not None
        return first.reconstruct(params["first_stage"], key, data)

    return Method(
        init,
        step,
        sample,
        network_calls,
        evaluate,
        reconstruct=None if first.reconstruct is None else reconstruct,
        compiler_options=first.compiler_options,
    )
