"""Continuous normalizing flow: an ODE from noise to data, trained by maximum likelihood through its solver.

    dx/dt = f(x, t),   x(0) ~ N(0, I),   x(1) data
    loss    -log p(x(1)) + kinetic energy + Jacobian,   log p(x(1)) = log N(x(0); 0, I) - integral of div f dt
    sample  x(1) from x(0) ~ N(0, I)

Flow matching learns the same ODE, on the same clock, without solving it. What the regularisers weigh are the integrals of
`genjax.continuous_flows`, per example. In training a batch is one ODE; a log-likelihood and a sample are each an ODE of
their own, to a lower tolerance and with the exact trace. A solve that fails makes the loss, or the sample, NaN.

Chen et al. 2018 (arXiv 1806.07366), Grathwohl et al. 2019 (FFJORD, 1810.01367); the regularisers: Finlay et al. 2020
(2002.02798).
"""

import dataclasses
import math
from functools import partial
from typing import Annotated, Literal

import jax.numpy as jnp
import optax
import tyro

from genjax import continuous_flows
from genjax.arrays import each_alone, normal
from genjax.continuous_flows import Solver
from genjax.errors import UsageError
from genjax.methods import density_models, labels, network_options
from genjax.methods.network_options import ByData, NetworkOptions
from genjax.methods.recommended import Recommended
from genjax.typing import Array, Examples, Key, Method, Metrics, Params
from genjax.vector_fields import draw_probes

_T_NOISE, _T_DATA = 0.0, 1.0

_MOST_EXACT = 3
"""Dimensions up to which training takes the exact trace unless told otherwise; beyond, it is the dearer one."""

_TOLERANCE = 1e-4
"""Of training: the gradient needs no better, and steps are what training costs."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Continuous normalizing flow."""

    divergence: Annotated[
        Literal["exact", "hutchinson"] | None,
        tyro.conf.arg(metavar="{exact,hutchinson}", help_behavior_hint="(default: by data)"),
    ] = None
    """the trace in training: exact, or an unbiased estimate by one random direction an example"""
    kinetic: float = 0.0
    """weight of the kinetic energy, which makes paths straight and the solver's steps few; 0.01 in the paper"""
    jacobian: float = 0.0
    """weight of the squared norm of the field's Jacobian; 0.01 in the paper"""
    tolerance: Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="(default: 1e-4)")] = None
    """relative and absolute error of a solver's step in training"""
    solver_steps: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: by tolerance)")] = (
        None
    )
    """solver's steps in training, of equal length whatever their error"""
    max_solver_steps: int = 256
    """a solve that needs more has failed, in training, sampling and likelihoods"""
    adjoint: Literal["checkpoints", "backsolve"] = "checkpoints"
    """the gradient: of the solver's steps, or of the ODE, solved back again in constant memory"""
    sampling_tolerance: float = 1e-5
    """relative and absolute error of a solver's step in sampling and likelihoods"""
    class_conditional: bool = False
    """learn p(data | label)"""
    ema_decay: float = 0.999
    """decay of the moving average of the parameters that sampling uses"""
    width: Annotated[int | None, ByData] = None
    """hidden units of the network"""
    depth: Annotated[int | None, ByData] = None
    """its hidden layers"""


def recommended(examples: Examples) -> Recommended:
    """Training that gives a good result on such examples."""
    return Recommended(steps=2_000, batch_size=256, learning_rate=5e-3, steps_per_dispatch=50)


def resolve(config: Config, examples: Examples) -> Config:
    """`config` with every default chosen.

    Raises:
        UsageError: options that do not fit the data or each other.
    """
    if examples.are_images:
        raise UsageError(
            f"cnf is for points such as --data moons; for images of shape {examples.event_shape} "
            "use flow-matching, which trains the same ODE without solving it"
        )
    labels.check_config(config.class_conditional, examples.num_classes)
    for name in ("kinetic", "jacobian"):
        if not 0 <= getattr(config, name) < math.inf:
            raise UsageError(f"--{name} is {getattr(config, name)}; expected a number of at least 0")
    for name in ("tolerance", "sampling_tolerance"):
        value = getattr(config, name)
        if value is not None and not 0 < value < 1:
            raise UsageError(f"--{name.replace('_', '-')} is {value}; expected more than 0 and below 1")
    for name in ("solver_steps", "max_solver_steps", "width", "depth"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} is {value}; expected at least 1")
    if config.solver_steps is not None and config.tolerance is not None:
        raise UsageError("--solver-steps are taken whatever their error: give it or --tolerance")
    if config.solver_steps is not None and config.adjoint == "backsolve":
        raise UsageError("--adjoint backsolve chooses its own steps: not with --solver-steps")
    by_data: Literal["exact", "hutchinson"] = (
        "exact" if math.prod(examples.event_shape) <= _MOST_EXACT else "hutchinson"
    )
    adaptive = config.solver_steps is None
    return dataclasses.replace(
        config,
        divergence=config.divergence or by_data,
        tolerance=(config.tolerance or _TOLERANCE) if adaptive else None,
        width=config.width or 64,
        depth=config.depth or 3,
    )


def build(config: Config, optimizer: optax.GradientTransformation, examples: Examples) -> Method:
    """The method for such examples, given their labels if class-conditional."""
    config = resolve(config, examples)
    num_classes = examples.num_classes if config.class_conditional else 0
    options = NetworkOptions(network="mlp", width=config.width, depth=config.depth)
    net = network_options.make_net(options, examples.event_shape, num_classes)
    training = Solver(config.tolerance or _TOLERANCE, config.solver_steps, config.max_solver_steps, config.adjoint)
    accurate = Solver(config.sampling_tolerance, max_steps=config.max_solver_steps)

    def init(key: Key, data: Array, label: Array | None) -> Params:
        given = () if label is None else (label,)
        return net.init(key, data, jnp.full(data.shape[:1], _T_DATA, data.dtype), *given)

    def objective(params: Params, key: Key, data: Array, label: Array | None) -> tuple[Array, Metrics]:
        probe = None if config.divergence == "exact" else draw_probes(key, data)
        end = continuous_flows.flow_and_log_det(
            net.bind(params, label), data, start=_T_DATA, stop=_T_NOISE, probe=probe, solver=training
        )
        nats = -continuous_flows.standard_normal(end.x) - end.log_det
        losses = nats + config.kinetic * end.kinetic + config.jacobian * end.jacobian
        return losses, {
            "nats": jnp.mean(nats),
            "kinetic": jnp.mean(end.kinetic),
            "jacobian": jnp.mean(end.jacobian),
            "solver_steps": end.steps.astype(jnp.float32),
        }

    def log_density(params: Params, key: Key, data: Array, label: Array | None) -> Array:
        return each_alone(
            lambda data, label: continuous_flows.log_density(net.bind(params, label), data, solver=accurate),
            data,
            label,
        )

    def draw(params: Params, keys: Key, label: Array | None) -> Array:
        noise = normal(keys, (len(keys), *examples.event_shape))
        to_data = partial(continuous_flows.flow, start=_T_NOISE, stop=_T_DATA, solver=accurate)
        return each_alone(lambda noise, label: to_data(net.bind(params, label), noise), noise, label)

    return density_models.build(
        init,
        log_density,
        draw,
        optimizer,
        examples=examples,
        num_classes=num_classes,
        network_calls=None,
        ema_decay=config.ema_decay,
        objective=objective,
    )
