"""The types and the few records that every floor of genjax shares.

Notation used everywhere: a batch has `B` examples, an example has event shape `[...]`, and a
Gaussian probability path is `x_t = alpha(t) * data + sigma(t) * noise`. Each path keeps the clock
of its literature (see `genjax.paths`); knots of a sampling grid always run from noise to data.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Array = jax.Array
Key = jax.Array
Params = Any
Metrics = dict[str, Array]
CompilerOptions = dict[str, str] | None

Model = Callable[[Array, Array], Array]
"""`f(x [B, ...], t [B]) -> prediction [B, ...]`: a network with its parameters (and labels) bound."""


class Path(NamedTuple):
    """A Gaussian probability path `x_t = alpha(t) * data + sigma(t) * noise` on its own clock.

    `time_of_ratio` is the inverse of `sigma / alpha`, where it has a closed form; without it, it is found by bisection
    (`paths.time_of_log_snr`).
    """

    alpha: Callable[[Array], Array]
    sigma: Callable[[Array], Array]
    t_data: float
    t_noise: float
    time_of_ratio: Callable[[Array], Array] | None = None


class Knot(NamedTuple):
    """One point of a sampling grid (three scalars), or a whole grid (three arrays `[steps + 1]`)."""

    t: Array
    alpha: Array
    sigma: Array


class Prediction(NamedTuple):
    """The pair that every prediction kind is a linear map of; both `[B, ...]`."""

    data: Array
    noise: Array


Denoiser = Callable[[Array, Knot], Prediction]
"""`denoise(x [B, ...], knot) -> (data, noise)`, what samplers call."""


class Net(NamedTuple):
    """A network as a pair of functions.

    `init(key, *example_inputs) -> params` and `apply(params, *inputs) -> output`; for the networks
    of continuous-time models the inputs are `(x [B, ...], t [B])`, or `(x, t, label [B] int32)`.
    """

    init: Callable[..., Params]
    apply: Callable[..., Array]

    def bind(self, params: Params, label: Array | None = None) -> Model:
        """The model `f(x, t)` with these parameters, and labels `[B]` if any."""
        if label is None:
            return lambda x, t: self.apply(params, x, t)
        return lambda x, t: self.apply(params, x, t, label)


class Batch(NamedTuple):
    """What a training step receives: `data [B, ...]`, and `label [B]` int32 where there are labels."""

    data: Array
    label: Array | None = None


class Examples(NamedTuple):
    """What a method is told of the data it is built for.

    `num_classes` is 0 without labels; `levels` is 0 for continuous data and L for integers 0 .. L - 1, which lie at
    `(2 v - L + 1) / L` in model units.
    """

    event_shape: tuple[int, ...]
    num_classes: int = 0
    levels: int = 0

    @property
    def are_images(self) -> bool:
        """Whether an example is `[H, W, C]`, not a point `[D]`."""
        return len(self.event_shape) == 3

    @property
    def are_small_images(self) -> bool:
        """Whether an example is an image of at most 16x16 pixels, for which defaults are wider networks and fewer steps."""
        return self.are_images and max(self.event_shape[:2]) <= 16


class State(NamedTuple):
    """Everything that training changes, and so everything that a checkpoint holds.

    `seed` is the raw data (uint32) of the run's key: the randomness of a step is
    `fold_in(seed, step)`, so no key needs to be carried. `ema` is what sampling uses. `frozen` holds
    arrays that steps read and never change (a teacher, a first stage); `()` for most methods.
    """

    step: Array
    seed: Array
    params: Params
    ema: Params
    opt_state: Any
    frozen: Any = ()


class Trajectory(NamedTuple):
    """What a sampler passed through: times `t [steps + 1]` from noise to data, and `x [steps + 1, num, ...]`."""

    t: Array
    x: Array


class PathModel(NamedTuple):
    """A model on a Gaussian path from data to N(0, I), for whoever wants more of it than samples: a student, a likelihood.

    - `predict`: what it predicts, a kind of `genjax.predictions`.
    - `model(params, num, label [num] | None, guidance) -> Model`: with `params` as `Method.sample` takes them.
    """

    path: Path
    predict: Callable[..., Any]
    model: Callable[..., Model]


class Method(NamedTuple):
    """A family of generative models as functions; every trainer and script sees only this.

    - `init(key, batch) -> State`
    - `step(state, batch) -> (State, metrics)`: one training step, pure; metrics are scalars.
    - `sample(params, key, num, **options) -> [num, ...]`: `params` is `State.ema`; example i depends on the key and
      i alone, or on `key[i]` where one key an example is given. The keyword-only parameters of its signature are the
      options that `sample.py` offers for the method. With `trace=True`, if it has that one: `(samples, Trajectory)`.
    - `network_calls(**options) -> int`: evaluations of the network for one example by `sample` with these options;
      None where they depend on the example, as those of an adaptive solver do.
    - `evaluate(params, key, batch) -> metrics`: means over a held-out batch; None where there are none.
    - `log_prob(params, key, data) -> [B]`, nats, of `data [B, ...]` in model units: for integers
      (`Examples.levels > 0`) the log of their probability, else of the density in model units. Exact, or a lower bound
      in the mean over the key, which its docstring says. A continuous density says of integers what
      `losses.likelihood.dequantised` makes of it. None where the family has none.
    - `bounds_log_prob`: whether `log_prob` is a lower bound, not exact.
    - `reconstruct(params, key, data) -> data`, in model units; None where the family has none.
    - `encode(params, key, data) -> z [N, *latent]`: a draw of the code of each example.
    - `decode(params, z [N, *latent]) -> [N, ...]`: the mean of what a code stands for, in model units; codes are
      N(0, I) of shape `latent`. None, None and () where the family has no code of its own shape.
    - `path_model`: the `PathModel` that it samples with; None where there is none.
    - `compiler_options`: what to give to a `jit` of its step and its sampling on this backend.
    - `training_options(batch_size) -> options`: for a `jit` of steps that all devices share; None where a CPU's do not.
    - `sampling_options(num) -> options`: for a `jit` that samples `num` examples a call; None for `compiler_options`.
    """

    init: Callable[[Key, Batch], State]
    step: Callable[[State, Batch], tuple[State, Metrics]]
    sample: Callable[..., Any]
    network_calls: Callable[..., int | None] = lambda **options: 1
    evaluate: Callable[[Params, Key, Batch], Metrics] | None = None
    log_prob: Callable[..., Array] | None = None
    reconstruct: Callable[..., Array] | None = None
    encode: Callable[[Params, Key, Array], Array] | None = None
    decode: Callable[[Params, Array], Array] | None = None
    latent: tuple[int, ...] = ()
    path_model: PathModel | None = None
    bounds_log_prob: bool = False
    compiler_options: CompilerOptions = None
    training_options: Callable[[int], CompilerOptions] | None = None
    sampling_options: Callable[[int], CompilerOptions] | None = None


class OtherRun(NamedTuple):
    """A trained run that another builds on: a teacher, the first stage of a latent model.

    - `name`: of its method, for messages.
    - `num_classes`: 0 if it is not class-conditional.
    - `params() -> Params`: what its `method.sample` takes; read when called.
    """

    name: str
    method: Method
    num_classes: int
    params: Callable[[], Params]
