"""What each pure loss costs, forward and with its gradient, beside the same written with torch.

    python -m benchmarks.losses [--quick]

Losses of likelihoods are of 256 images of 28x28 and differentiate what the network would give; the others are of 1,024 points
in the plane through an MLP 3x256, and differentiate its parameters. The values `[B]` and the gradients
are compared before anything is timed. Each framework has a process of its own with all cores; they run in turn.
Writes `benchmarks/results/losses.json` and the table of `benchmarks/README.md`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tyro

from benchmarks import kept, report, timing
from benchmarks.sampling import text

IMAGES, POINTS, COMPONENTS, LEVELS, SIGMA, DATA_STD, SIGMA_MIN = 256, 1024, 8, 256, 0.5, 0.5, 0.002


@dataclasses.dataclass(frozen=True)
class Options:
    """Losses beside torch's."""

    quick: bool = False
    """fewer rounds: two minutes"""


def arrays() -> dict[str, np.ndarray]:
    """What the losses are given, the same in both frameworks."""
    rng = np.random.default_rng(0)
    images, mixtures = (IMAGES, 28 * 28), (IMAGES, 28 * 28, COMPONENTS)
    values = rng.integers(0, LEVELS, images)
    given = {
        "bits": rng.integers(0, 2, images),
        "centres": (2 * values - LEVELS + 1) / LEVELS,
        "logits": rng.standard_normal(images),
        "log_scale": 0.1 * rng.standard_normal(images) - 2,
        "logits_k": rng.standard_normal(mixtures),
        "mean_k": rng.standard_normal(mixtures),
        "log_scale_k": 0.1 * rng.standard_normal(mixtures) - 1,
        "latent": rng.standard_normal((IMAGES, 64)),
        "data": rng.standard_normal((POINTS, 2)),
        "noise": rng.standard_normal((POINTS, 2)),
        "probe": rng.choice([-1.0, 1.0], (POINTS, 2)),
        "t": rng.uniform(0.05, 0.95, POINTS),
        "real": rng.standard_normal(POINTS),
        "fake": rng.standard_normal(POINTS),
    }
    return {name: value.astype(np.float32) for name, value in given.items()} | {"classes": rng.integers(0, 8, images)}


def ours(parameters: str) -> dict[str, Callable[[], Any]]:
    """Each loss of the package, "NAME values" and "NAME gradient"."""
    import jax.numpy as jnp

    from benchmarks import networks
    from genjax import divergences, paths, predictions
    from genjax.losses import adversarial, consistency, denoising, flow_matching, likelihood, score_matching

    a = {name: jnp.asarray(value) for name, value in arrays().items()}
    net, params = networks.NETWORKS["mlp"].net, networks.read(parameters)
    data, noise, t = a["data"], a["noise"], a["t"]

    def model(params: Any) -> Any:
        return net.bind(params)

    def score(params: Any) -> Any:
        return lambda x: net.apply(params, x, jnp.zeros(len(x)))

    def critic(params: Any) -> Any:
        return lambda x: jnp.sum(net.apply(params, x, jnp.zeros(len(x))), axis=1)

    def consistent(params: Any) -> Any:
        return consistency.consistency_function(net.bind(params), data_std=DATA_STD, sigma_min=SIGMA_MIN)

    def teacher(x: Any, t: Any) -> Any:
        return x / jnp.sqrt(1 + t**2)[:, None]

    kl = lambda mean: jnp.sum(divergences.kl_standard_normal_terms(mean, 0.1 * a["latent"]), axis=1)  # noqa: E731
    kind = dict(path=paths.cosine(), predict=predictions.v)
    of_values = {
        "bernoulli": (lambda z: likelihood.bernoulli(z, a["bits"]), a["logits"]),
        "gaussian": (lambda z: likelihood.gaussian(z, a["centres"], log_variance=a["log_scale"]), a["logits"]),
        "gaussian_mixture": (
            lambda z: likelihood.gaussian_mixture(z, a["mean_k"], a["centres"], log_scale=a["log_scale_k"]),
            a["logits_k"],
        ),
        "categorical": (lambda z: likelihood.categorical(z, a["classes"]), a["logits_k"]),
        "discretized_logistic": (
            lambda z: likelihood.discretized_logistic(z, a["centres"], log_scale=a["log_scale"], levels=LEVELS),
            a["logits"],
        ),
        "kl to N(0, I)": (kl, a["latent"]),
        "game non_saturating": (lambda z: adversarial.non_saturating.critic(z, a["fake"]), a["real"]),
        "game relativistic": (lambda z: adversarial.relativistic.critic(z, a["fake"]), a["real"]),
    }
    of_parameters: dict[str, Callable[[Any], Any]] = {
        "denoising_error (v)": lambda p: denoising.denoising_error(model(p), data, noise, t, **kind),
        "flow_matching_error": lambda p: flow_matching.flow_matching_error(model(p), data, noise, t),
        "denoising_score_matching": lambda p: score_matching.denoising_score_matching_error(
            score(p), data, noise, sigma=SIGMA
        ),
        "implicit_score_matching": lambda p: score_matching.implicit_score_matching_error(score(p), data),
        "sliced_score_matching": lambda p: score_matching.sliced_score_matching_error(score(p), data, a["probe"]),
        "slope_penalty (gradient_penalty)": lambda p: adversarial.slope_penalty(critic(p), data),
        "consistency_training_error": lambda p: consistency.consistency_training_error(
            consistent(p), data, noise, t, 0.9 * t
        ),
        "consistency_distillation_error": lambda p: consistency.consistency_distillation_error(
            consistent(p), data, noise, t, 0.9 * t, teacher=teacher
        ),
    }
    calls: dict[str, Callable[[], Any]] = {}
    for name, (function, value) in of_values.items():
        calls |= _both(name, function, value)
    for name, loss in of_parameters.items():
        calls |= _both(name, loss, params)
    return calls


def _both(name: str, function: Callable[[Any], Any], value: Any) -> dict[str, Callable[[], Any]]:
    import jax
    import jax.numpy as jnp

    values, gradient = jax.jit(function), jax.jit(jax.grad(lambda value: jnp.mean(function(value))))
    return {f"{name} values": lambda: values(value), f"{name} gradient": lambda: gradient(value)}


def with_torch(parameters: str) -> dict[str, Callable[[], Any]]:
    """The same by torch's own functions."""
    import math

    import torch
    import torch.nn.functional as F

    from benchmarks.torch_networks import NETWORKS, load

    a = {name: torch.tensor(value) for name, value in arrays().items()}
    with np.load(parameters) as file:
        net = load(NETWORKS["mlp"](), dict(file))
    data, noise, t = a["data"], a["noise"], a["t"]
    zero = torch.zeros(POINTS)

    def score(x: Any) -> Any:
        return net(x, zero)

    def discretized_logistic(z: Any) -> Any:
        half, inverse = 1 / LEVELS, torch.exp(-a["log_scale"])
        upper, lower = inverse * (a["centres"] + half - z), inverse * (a["centres"] - half - z)
        inside = F.logsigmoid(upper) + F.logsigmoid(-lower) + torch.log(-torch.expm1(lower - upper))
        lowest, highest = a["centres"] < -1 + 2 * half, a["centres"] > 1 - 2 * half
        return torch.where(lowest, F.logsigmoid(upper), torch.where(highest, F.logsigmoid(-lower), inside)).sum(1)

    def gaussian_mixture(z: Any) -> Any:
        standardised = (a["centres"][..., None] - a["mean_k"]) * torch.exp(-a["log_scale_k"])
        component = -0.5 * standardised**2 - a["log_scale_k"] - 0.5 * math.log(2 * math.pi)
        return torch.logsumexp(F.log_softmax(z, dim=-1) + component, dim=-1).sum(1)

    def gaussian(z: Any) -> Any:
        squares = (a["centres"] - z) ** 2 * torch.exp(-a["log_scale"])
        return -0.5 * (squares + a["log_scale"] + math.log(2 * math.pi)).sum(1)

    def categorical(z: Any) -> Any:
        return F.log_softmax(z, dim=-1).gather(-1, a["classes"][..., None]).sum((1, 2))

    def kl(mean: Any) -> Any:
        log_variance = 0.1 * a["latent"]
        return 0.5 * (mean**2 + torch.exp(log_variance) - 1 - log_variance).sum(1)

    def denoising() -> Any:
        alpha, sigma = torch.cos(math.pi / 2 * t)[:, None], torch.sin(math.pi / 2 * t)[:, None]
        return ((net(alpha * data + sigma * noise, t) - (alpha * noise - sigma * data)) ** 2).mean(1)

    def flow() -> Any:
        at = t[:, None]
        return ((net(at * data + (1 - at) * noise, t) - (data - noise)) ** 2).mean(1)

    def denoising_score() -> Any:
        return 0.5 * ((score(data + SIGMA * noise) + noise / SIGMA) ** 2).sum(1)

    def implicit() -> Any:
        x = data.clone().requires_grad_()
        value = score(x)
        rows = [torch.autograd.grad(value[:, i].sum(), x, create_graph=True)[0][:, i] for i in range(2)]
        return sum(rows) + 0.5 * (value**2).sum(1)

    def sliced() -> Any:
        x = data.clone().requires_grad_()
        value = score(x)
        product = torch.autograd.grad((value * a["probe"]).sum(), x, create_graph=True)[0]
        return (product * a["probe"]).sum(1) + 0.5 * (value**2).sum(1)

    def slope() -> Any:
        x = data.clone().requires_grad_()
        slopes = torch.autograd.grad(score(x).sum(), x, create_graph=True)[0]
        return (slopes.norm(dim=1) - 1) ** 2

    def consistent(x: Any, t: Any) -> Any:
        above, size = t - SIGMA_MIN, torch.sqrt(t**2 + DATA_STD**2)
        skip, out, into = 1 / (1 + (above / DATA_STD) ** 2), DATA_STD * above / size, 1 / size
        return skip[:, None] * x + out[:, None] * net(into[:, None] * x, torch.log(t) / 4)

    def consistency_training() -> Any:
        then, c = 0.9 * t, 0.00054 * math.sqrt(2)
        with torch.no_grad():
            goal = consistent(data + then[:, None] * noise, then)
        square = ((consistent(data + t[:, None] * noise, t) - goal) ** 2).sum(1)
        return (torch.sqrt(square + c**2) - c) / (t - then)

    def distillation() -> Any:
        then, x = 0.9 * t, data + t[:, None] * noise
        with torch.no_grad():
            step, first = (then - t)[:, None], x / torch.sqrt(1 + t**2)[:, None]
            second = (x + step * first) / torch.sqrt(1 + then**2)[:, None]
            goal = consistent(x + step / 2 * (first + second), then)
        return ((consistent(x, t) - goal) ** 2).mean(1)

    of_values = {
        "bernoulli": (
            lambda z: -F.binary_cross_entropy_with_logits(z, a["bits"], reduction="none").sum(1),
            a["logits"],
        ),
        "gaussian": (gaussian, a["logits"]),
        "gaussian_mixture": (gaussian_mixture, a["logits_k"]),
        "categorical": (categorical, a["logits_k"]),
        "discretized_logistic": (discretized_logistic, a["logits"]),
        "kl to N(0, I)": (kl, a["latent"]),
        "game non_saturating": (lambda z: F.softplus(-z) + F.softplus(a["fake"]), a["real"]),
        "game relativistic": (lambda z: F.softplus(a["fake"] - z), a["real"]),
    }
    of_parameters: dict[str, Callable[[], Any]] = {
        "denoising_error (v)": denoising,
        "flow_matching_error": flow,
        "denoising_score_matching": denoising_score,
        "implicit_score_matching": implicit,
        "sliced_score_matching": sliced,
        "slope_penalty (gradient_penalty)": slope,
        "consistency_training_error": consistency_training,
        "consistency_distillation_error": distillation,
    }

    def gradient_of_value(function: Any, value: Any) -> Callable[[], Any]:
        leaf = value.clone().requires_grad_()
        return lambda: torch.autograd.grad(function(leaf).mean(), leaf)[0]

    def gradient_of_parameters(loss: Any) -> Callable[[], Any]:
        named = dict(net.named_parameters())
        leaves = list(named.values())
        return lambda: dict(zip(named, torch.autograd.grad(loss().mean(), leaves, materialize_grads=True), strict=True))

    def forward(function: Callable[[], Any], needs_graph: bool) -> Callable[[], Any]:
        return function if needs_graph else torch.no_grad()(function)

    calls: dict[str, Callable[[], Any]] = {}
    for name, (function, value) in of_values.items():
        calls[f"{name} values"] = forward(lambda function=function, value=value: function(value), needs_graph=False)
        calls[f"{name} gradient"] = gradient_of_value(function, value)
    for name, loss in of_parameters.items():
        calls[f"{name} values"] = forward(loss, needs_graph=loss in (implicit, sliced, slope))
        calls[f"{name} gradient"] = gradient_of_parameters(loss)
    return calls


TOLERANCE = 1e-5


def check(worker: timing.Worker, peer: timing.Worker, name: str) -> None:
    """Compare values and gradients; torch keeps the matrices of a network transposed."""
    values, theirs = worker.output(f"{name} values"), peer.output(f"{name} values")
    timing.check_equal(values, theirs, f"{name}, values", TOLERANCE * max(1.0, float(np.abs(values[0]).max())))
    gradient, theirs = worker.output(f"{name} gradient"), peer.output(f"{name} gradient")
    if len(gradient) > 1:
        theirs = [array.T for array in theirs]
    timing.check_equal(gradient, theirs, f"{name}, gradient", TOLERANCE)


def measure(file: str, rounds: int) -> list[dict[str, Any]]:
    """Each loss in both frameworks, values and gradients."""
    builds = {
        "ours": ("benchmarks.losses:ours", dict(parameters=file)),
        "torch": ("benchmarks.losses:with_torch", dict(parameters=file)),
    }
    found = []
    with timing.workers(**builds) as made:
        worker, peer = made["ours"], made["torch"]
        assert worker is not None
        for name in dict.fromkeys(call.rsplit(" ", 1)[0] for call in worker.names):
            calls = [(worker, f"{name} values"), (worker, f"{name} gradient")]
            if peer is not None:
                check(worker, peer, name)
                calls += [(peer, f"{name} values"), (peer, f"{name} gradient")]
            forward, gradient, *theirs = timing.alternate_workers(calls, rounds=rounds)
            found.append(
                {
                    "loss": name,
                    "forward_us": 1e6 * timing.summary(forward).median,
                    "gradient_us": 1e6 * timing.summary(gradient).median,
                    "forward_of_torch": timing.ratio(forward, theirs[0]) if theirs else None,
                    "gradient_of_torch": timing.ratio(gradient, theirs[1]) if theirs else None,
                }
            )
            print(found[-1], flush=True)
    return found


def write(found: list[dict[str, Any]]) -> None:
    """The table."""
    report.write_table(
        "losses",
        ["loss", "forward", "of torch's time", "with its gradient", "of torch's time"],
        [
            [
                row["loss"],
                f"{row['forward_us'] / 1e3:.3g} ms",
                text(row["forward_of_torch"]),
                f"{row['gradient_us'] / 1e3:.3g} ms",
                text(row["gradient_of_torch"]),
            ]
            for row in found
        ],
    )


def main() -> None:
    """Measure, and write the table."""
    from benchmarks import networks

    options = tyro.cli(Options, description=__doc__)
    with networks.saved("mlp") as files:
        found = measure(files["mlp"], 3 if options.quick else 9)
    if not options.quick:
        kept.write("losses", found)
        write(found)


if __name__ == "__main__":
    main()
