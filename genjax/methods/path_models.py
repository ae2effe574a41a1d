"""What all models on a Gaussian probability path share: a labelled network, a denoising loss, a sampler by name.

Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598): with labels, training replaces each by the null label
`num_classes` with probability `label_dropout`, and sampling at scale s uses `uncond + s (cond - uncond)`.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from genjax import paths, predictions, samplers, times
from genjax.arrays import as_example_keys, expand, fold_each, normal
from genjax.couplings import Coupling
from genjax.errors import UsageError, unknown
from genjax.losses import denoising
from genjax.methods import labels, probability_flow
from genjax.samplers.guidance import is_number
from genjax.training.steps import from_loss, new_state, with_ema
from genjax.typing import (
    Array,
    Batch,
    CompilerOptions,
    Examples,
    Key,
    Knot,
    Method,
    Metrics,
    Model,
    Net,
    Params,
    Path,
    PathModel,
    State,
    Trajectory,
)

_INITIAL_NOISE = 2**31 - 1
"""Folded into an example's key for the noise it starts from; steps fold in 0, 1, 2, ..."""

_SOURCE = 2
"""Folded into a step's key, which is split in two, for draws of the source and their pairs."""


Source = Callable[[Key], Array]
"""`keys [B] -> [B, ...]`, draws of the distribution at the noise end, each from its own key."""

_FOR_ANY_SOURCE = ("euler", "heun", "midpoint", "rk4", "ddim", probability_flow.SAMPLER)
"""Samplers that add no Gaussian noise of their own."""


def check_labels(class_conditional: bool, label_dropout: float, num_classes: int) -> None:
    """Refuse (UsageError) a class-conditional model of unlabelled data, and a dropout that is no probability."""
    labels.check_config(class_conditional, num_classes)
    if not 0 <= label_dropout < 1:
        raise UsageError(f"--label-dropout is {label_dropout}; expected at least 0 and below 1")


def drop_labels(key: Key, label: Array, label_dropout: float, num_classes: int) -> Array:
    """Each label `[B]` replaced by the null label `num_classes` with probability `label_dropout`."""
    return jnp.where(jax.random.bernoulli(key, label_dropout, label.shape), num_classes, label)


def singular_at_noise(path: Path, predict: predictions.Kind) -> bool:
    """Whether a prediction of `predict` leaves the data undetermined where the path is noise (alpha = 0)."""
    with jax.ensure_compile_time_eval():
        alpha = path.alpha(jnp.asarray(path.t_noise, jnp.float32))
        return bool(alpha == 0) and predict in (predictions.noise, predictions.score)


def uniform_knots(path: Path, predict: predictions.Kind, steps: int) -> Knot:
    """`steps + 1` knots evenly spaced in t, over the whole path.

    Where the prediction is singular at the noise end the grid starts at alpha / sigma = 0.001 instead.
    """
    start = None
    if singular_at_noise(path, predict):
        with jax.ensure_compile_time_eval():
            start = float(paths.time_of_log_snr(path, 2 * jnp.log(0.001)))
    return paths.knots(path, times.uniform(path, steps, start=start))


def data_std(examples: Examples) -> float:
    """About the standard deviation of such data in model units: points are standardised, images fill (-1, 1)."""
    return 0.5 if examples.are_images else 1.0


def greatest_distance(examples: Examples) -> float:
    """About the greatest distance between two examples in model units, where noise that hides all data begins.

    Song & Ermon 2020 (arXiv 2006.09011), section 3.1.
    """
    return 50.0 if examples.are_images else 10.0


def check_levels(sigma_min: float, sigma_max: float) -> None:
    """Refuse (UsageError) noise levels that are not finite, positive and in order."""
    if not 0 < sigma_min < sigma_max < math.inf:
        raise UsageError(f"--sigma-min is {sigma_min} and --sigma-max {sigma_max}; expected 0 < min < max")


def ending_at_data(grid: Knot) -> Knot:
    """`grid` with its last noise level replaced by 0, so that samplers land on the mean of the data given x."""
    return grid._replace(sigma=grid.sigma.at[-1].set(0.0))


def with_unit_input(net: Net, path: Path, *, data_std: float, clock: Callable[[Array], Array] = lambda t: t) -> Net:
    """`net` shown `x_t` divided by its standard deviation, and `clock(t)`: for paths on which x_t grows.

    Karras et al. 2022 (arXiv 2206.00364), `c_in` and `c_noise` of table 1.
    """

    def apply(params: Params, x: Array, t: Array, *label: Array) -> Array:
        scale = jax.lax.rsqrt(path.sigma(t) ** 2 + (data_std * path.alpha(t)) ** 2)
        return net.apply(params, expand(scale, x) * x, clock(t), *label)

    return Net(net.init, apply)


def build(
    net: Net,
    optimizer: optax.GradientTransformation,
    *,
    examples: Examples,
    num_classes: int,
    path: Path,
    predict: predictions.Kind,
    error: predictions.Kind,
    weighting: denoising.Weighting,
    density: times.TimeDensity,
    knots: Callable[[int], Knot],
    default_sampler: str,
    default_steps: int,
    first_order_end: bool,
    ema_decay: float,
    label_dropout: float,
    compiler_options: CompilerOptions,
    sampling_net: Net | None = None,
    training_options: Callable[[int], CompilerOptions] | None = None,
    sampling_options: Callable[[int], CompilerOptions] | None = None,
    source: Source | None = None,
    coupling: Coupling | None = None,
    least_ratio: float = 0.002,
) -> Method:
    """The method of a network that predicts `predict` on `path`.

    Args:
        net: takes `(x, t)`, or `(x, t, label)` when `num_classes` > 0.
        optimizer: from `genjax.training.steps.adamw`, or any of optax.
        examples: their shape, and their levels if they are integers.
        num_classes: 0 for a model without labels.
        path: of training and sampling.
        predict: what the network predicts.
        error: the quantity whose squared error is the loss.
        weighting: of that error.
        density: of the training times.
        knots: the sampling grid of a number of steps.
        default_sampler: a name in `samplers.SAMPLERS`.
        default_steps: of that sampler.
        first_order_end: the last step is to land on the estimate of the data: where the network cannot be called at
            sigma = 0, and for images, whose exact black a second call there would leave half as noisy as it was.
        ema_decay: of the moving average that sampling uses.
        label_dropout: probability of the null label in training.
        compiler_options: for a `jit` of the step and the sampling.
        sampling_net: what sampling calls, of the same parameters and values; default `net`.
        training_options: the former's where all devices share it, of the number of examples; None where a CPU's do not.
        sampling_options: the latter's, of the number of examples a call; default the same.
        source: what is at the noise end; default N(0, I).
        coupling: pairs its draws with the examples of a batch, within classes where there are labels; default as drawn.
        least_ratio: of sigma to alpha, down to which adaptive sampling and likelihoods solve the ODE.
    """
    event_shape = examples.event_shape
    called = sampling_net or net
    draw_source = source or (lambda keys: normal(keys, (len(keys), *event_shape)))

    def paired_source(key: Key, data: Array, label: Array | None) -> Array | None:
        if source is None and coupling is None:
            return None
        draw_key, pair_key = jax.random.split(key)
        drawn = draw_source(as_example_keys(draw_key, len(data)))
        return drawn if coupling is None else drawn[coupling(pair_key, drawn, data, label=label)]

    def loss(params: Params, key: Key, batch: Batch) -> tuple[Array, Metrics]:
        loss_key, label_key = jax.random.split(key)
        noise = paired_source(jax.random.fold_in(key, _SOURCE), batch.data, labels.of_batch(batch, num_classes))
        label = labels.of_batch(batch, num_classes)
        if label is not None:
            label = drop_labels(label_key, label, label_dropout, num_classes)
        errors = denoising.denoising_loss(
            net.bind(params, label),
            loss_key,
            batch.data,
            path=path,
            predict=predict,
            error=error,
            weighting=weighting,
            density=density,
            noise=noise,
        )
        return jnp.mean(errors), {}

    def init(key: Key, batch: Batch) -> State:
        t = jnp.full(batch.data.shape[:1], path.t_noise, batch.data.dtype)
        label = labels.of_batch(batch, num_classes)
        run_key, net_key = jax.random.split(key)
        params = net.init(net_key, batch.data, t, *(() if label is None else (label,)))
        return new_state(run_key, params, optimizer.init(params))

    def evaluate(params: Params, key: Key, batch: Batch) -> Metrics:
        value, _ = loss(params, key, batch)
        return {"loss": value}

    def sample(
        params: Params,
        key: Key,
        num: int,
        *,
        sampler: str = default_sampler,
        steps: int = default_steps,
        label: Array | None = None,
        guidance: Array | float = 1.0,
        noise: Array | None = None,
        tolerance: float | None = None,
        trace: bool = False,
        counted: bool = False,
    ) -> Any:
        """`num` draws `[num, ...]` in model units; with `trace` the pair of them and the `Trajectory`.

        The sampler `adaptive` solves an ODE an example to a `tolerance`, whatever the `steps`; a draw for which that fails is
        NaN. It has no `trace`; with `counted` it gives the pair of draws and network calls `[num]`.

        `key` may hold one key an example `[num]`; `noise` replaces the start `[num, ...]`. `label [num]` and `guidance` (a
        number; 1 calls the network once a step, anything else on a doubled batch) need a class-conditional model; without
        `label` it draws unconditionally.
        """
        chosen, grid = sampler_of(sampler, tolerance), grid_of(steps)
        keys = as_example_keys(key, num)
        if noise is None:
            noise = draw_source(fold_each(keys, jnp.uint32(_INITIAL_NOISE)))
        if chosen is None:
            if trace:
                raise UsageError(f"--trajectory does not apply: --sampler {sampler} takes steps of its own")
            solved = adaptive(params, noise, label, guidance, tolerance or probability_flow.TOLERANCE)
            return solved if counted else solved[0]
        denoise = predictions.denoiser(sampling_model(params, num, label, guidance), path, predict)
        start = grid.sigma[0] * noise
        if not trace:
            return samplers.sample(chosen, denoise, keys, start, grid)
        x, states = samplers.sample(chosen, denoise, keys, start, grid, trace=True)
        return x, Trajectory(grid.t, states)

    def ends() -> dict[str, Array]:
        """Of the ODE: where sampling starts, and `least_ratio`."""
        stop = probability_flow.time_of_ratio(path, least_ratio)
        return {"start": grid_of(default_steps).t[0], "stop": stop}

    def adaptive(params: Params, noise: Array, label: Array | None, guidance: Array | float, tolerance: float) -> Any:
        guided = label is not None and not is_number(guidance, 1)
        x, calls = probability_flow.draws(
            lambda label: sampling_model(params, 1, label, guidance),
            noise,
            label,
            path=path,
            predict=predict,
            tolerance=tolerance,
            **ends(),
        )
        return x, calls * (2 if guided else 1)

    def log_prob(params: Params, key: Key, data: Array) -> Array:
        """`log p(data)` of the probability-flow ODE down to `least_ratio`, without labels: `[B]`, nats.

        Exact for points; for images an unbiased estimate, or if they are integers of a lower bound.
        """
        return probability_flow.log_densities(
            lambda label: sampling_model(params, 1, label, 1.0),
            key,
            data,
            path=path,
            predict=predict,
            levels=examples.levels,
            **ends(),
        )

    def sampler_of(name: str, tolerance: float | None = None) -> samplers.Sampler | None:
        """None for the adaptive one."""
        if tolerance is not None and not 0 < tolerance < 1:
            raise UsageError(f"--tolerance is {tolerance}; expected more than 0 and below 1")
        if name == probability_flow.SAMPLER:
            return None
        if name not in samplers.SAMPLERS:
            raise unknown("sampler", name, [*samplers.SAMPLERS, probability_flow.SAMPLER])
        if tolerance is not None:
            raise UsageError(f"--tolerance does not apply: --sampler {name} takes a number of steps")
        if source is not None and name not in _FOR_ANY_SOURCE:
            raise UsageError(
                f"--sampler {name} needs Gaussian noise, which --source replaces: use {', '.join(_FOR_ANY_SOURCE)}"
            )
        return samplers.SAMPLERS[name](path, first_order_end=first_order_end or None)

    def grid_of(steps: int) -> Knot:
        if steps < 1:
            raise UsageError(f"--steps is {steps}; expected at least 1")
        return knots(steps)

    def network_calls(
        *,
        sampler: str = default_sampler,
        steps: int = default_steps,
        label: Array | None = None,
        guidance: Array | float = 1.0,
        tolerance: float | None = None,
        **_: Any,
    ) -> int | None:
        """Evaluations for one example; raises UsageError for options that `sample` would refuse."""
        guided = label is not None and not is_number(guidance, 1)
        grid_of(steps)
        chosen = sampler_of(sampler, tolerance)
        if chosen is None:
            return None
        return steps * samplers.calls_per_step(chosen, (1, *event_shape)) * (2 if guided else 1)

    def sampling_model(params: Params, num: int, label: Array | None, guidance: Array | float) -> Model:
        labels.check(label, num_classes)
        if not num_classes:
            return called.bind(params)
        null = jnp.asarray(num_classes, jnp.int32)
        if label is None:
            return called.bind(params, jnp.full((num,), null))
        if is_number(guidance, 1):
            return called.bind(params, label)
        return samplers.classifier_free(
            lambda *inputs: called.apply(params, *inputs), label, null, jnp.asarray(guidance)
        )

    step = with_ema(from_loss(loss, optimizer), ema_decay)
    return Method(
        init,
        step,
        sample,
        network_calls,
        evaluate,
        log_prob if source is None else None,
        bounds_log_prob=examples.levels > 0,
        path_model=PathModel(path, predict, sampling_model) if source is None and coupling is None else None,
        compiler_options=compiler_options,
        training_options=training_options,
        sampling_options=sampling_options,
    )
