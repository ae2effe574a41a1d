"""What a training step costs: beside torch with the same network, beside torchcfm's loop, and of every family.

    python -m benchmarks.training [--quick] [--networks mlp dit unet] [--no-families]

The same step in both frameworks: flow matching on a straight path, the same parameters and batch, the gradient clipped to norm 1,
AdamW. The gradients of a given batch, noise and time are compared before anything is timed. torch runs eagerly with its
optimizer as it comes, and at its fastest: the network compiled, the optimizer fused. Ours runs as the training loop does, many
steps a dispatch but for convolutions, whose batch two devices of the CPU share as in `train.py`. The floor is the gradient of
the mean square of the bare network and a step along it, in the same loop.
Each framework has a process of its own with all cores and its large buffers in huge pages, as `train.py` asks for them; they
run in turn, five rounds in each of three sets of processes.
Writes `benchmarks/results/training.json` and the tables of `benchmarks/README.md`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tyro

from benchmarks import kept, report, timing
from benchmarks.sampling import text, torch_inputs
from genjax.environment import SMALL_TRAINING_LOOPS, use_huge_pages, use_one_kernel_for_small_loops

LEARNING_RATE, WEIGHT_DECAY, CLIP_NORM = 1e-3, 1e-4, 1.0
ROUNDS = 5
"""Measured in a process."""
STEPS = {"mlp": 50, "dit": 10, "unet": 1}
"""Of one dispatch of ours."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Training steps."""

    quick: bool = False
    """the MLP alone, one loop, fewer processes, no families: two minutes"""
    networks: tuple[str, ...] = ("mlp", "dit", "unet")
    """which networks"""
    families: bool = True
    """every method with its defaults too: eight minutes; without, that table stays"""


def our_step(network: str, parameters: str, batch: int, steps: int) -> dict[str, Callable[[], Any]]:
    """A dispatch of so many steps with the state donated, its floor, and the gradient of a given batch."""
    use_one_kernel_for_small_loops(SMALL_TRAINING_LOOPS)
    import jax
    import jax.numpy as jnp

    from benchmarks import networks
    from genjax import cli, paths, predictions
    from genjax.losses import denoising
    from genjax.training import loop, sharding
    from genjax.training.data import Scaling
    from genjax.training.steps import adamw, from_loss, new_state
    from genjax.typing import Batch, Method

    cli.use_two_devices_of_a_cpu()
    net, params = networks.NETWORKS[network].net, networks.read(parameters)
    path = paths.linear()
    x, t = (jnp.asarray(values) for values in networks.inputs(network, batch))
    optimizer = adamw(LEARNING_RATE, 1, schedule="constant", weight_decay=WEIGHT_DECAY, clip_norm=CLIP_NORM)
    kind = dict(path=path, predict=predictions.velocity)

    def loss(params: Any, key: Any, batch: Any) -> Any:
        return jnp.mean(denoising.denoising_loss(net.bind(params), key, batch.data, **kind)), {}

    def given_loss(params: Any, x: Any, t: Any) -> Any:
        return jnp.mean(denoising.denoising_error(net.bind(params), x, x[::-1], t, **kind))

    def floor(params: Any, x: Any, t: Any) -> Any:
        def one(params: Any, _: Any) -> Any:
            gradient = jax.grad(lambda params: jnp.mean(net.apply(params, x, t) ** 2))(params)
            return jax.tree.map(lambda value, slope: value - 1e-6 * slope, params, gradient), None

        return one(params, None)[0] if steps == 1 else jax.lax.scan(one, params, None, steps)[0]

    method = Method(
        lambda *_: None,
        from_loss(loss, optimizer),
        lambda *_: None,
        compiler_options=networks.compiler_options(network),
        training_options=networks.training_options(network),
    )
    dispatch = loop.make_dispatch(method, Scaling(0.0, 1.0, 0), batch)
    copy = jax.tree.map(jnp.copy, params)
    state, source = jax.device_put(
        ([new_state(jax.random.key(0), copy, optimizer.init(copy))], Batch(x)), sharding.of_steps(method, batch).whole
    )
    indices = np.tile(np.arange(batch, dtype=np.int32), (steps, 1))

    def run() -> Any:
        state[0], metrics = dispatch(state[0], source, indices)
        return float(metrics["loss"])

    options = sharding.step_options(method, batch)
    floor_steps, gradient = (jax.jit(function, compiler_options=options) for function in (floor, jax.grad(given_loss)))
    if sharding.of_steps(method, batch).whole is not None:
        params, x, t = sharding.over_devices(params, x, t)
    return {
        "step": run,
        "floor": lambda: floor_steps(params, x, t),
        "gradient": lambda: norms(jax.device_get(gradient(params, x, t))),
    }


def torch_step(network: str, parameters: str, batch: int) -> dict[str, Callable[[], Any]]:
    """The same step with torch, eager and compiled, and the gradient of the given batch."""
    import torch

    from benchmarks.torch_networks import NETWORKS, load

    data, times = torch_inputs(network, batch)

    def fresh() -> Any:
        with np.load(parameters) as arrays:
            return load(NETWORKS[network](), dict(arrays))

    def loss_of(model: Any, x: Any, noise: Any, t: Any) -> Any:
        at = t.view(-1, *(1,) * (x.ndim - 1))
        return torch.nn.functional.mse_loss(model(at * x + (1 - at) * noise, t), x - noise)

    def stepping(net: Any, model: Any, fused: bool) -> Callable[[], Any]:
        parameters = list(net.parameters())
        optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=fused)

        def run() -> Any:
            optimizer.zero_grad()
            loss = loss_of(model, data, torch.randn_like(data), torch.rand(batch))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
            optimizer.step()
            return loss

        return run

    def gradient() -> Any:
        net = fresh()
        loss_of(net, data, data.flip(0), times).backward()
        return norms({name: value.grad.numpy() for name, value in net.named_parameters()})

    eager, compiled = fresh(), fresh()
    return {
        "eager": stepping(eager, eager, fused=False),
        "compiled": stepping(compiled, torch.compile(compiled), fused=True),
        "gradient": gradient,
    }


def norms(gradient: Any, prefix: str = "") -> dict[str, float]:
    """The norm of each array of a gradient, by the name that torch gives it."""
    if not isinstance(gradient, dict):
        *parents, leaf = prefix.split(".")
        leaf = {"kernel": "weight", "gain": "weight", "shift": "bias"}.get(leaf, leaf)
        return {".".join([*parents, leaf]): float(np.linalg.norm(gradient))}
    found: dict[str, float] = {}
    for name, part in gradient.items():
        found |= norms(part, f"{prefix}.{name}" if prefix else name)
    return found


LOOP_STEPS, LOOP_BATCH, DISPATCH, LOOP_SIGMA = 200, 256, 50, 0.1
"""torchcfm's tutorial: eight Gaussians to moons, Adam, batches of 256."""


def our_loop(parameters: str, coupling: str) -> dict[str, Callable[[], Any]]:
    """Flow matching as `train.py` runs it: 200 steps, 50 a dispatch, the loss read once a dispatch."""
    use_one_kernel_for_small_loops(SMALL_TRAINING_LOOPS)
    import jax
    import jax.numpy as jnp
    import optax

    from benchmarks import networks
    from genjax import cli, couplings, paths, predictions, times
    from genjax.losses import denoising
    from genjax.methods import path_models
    from genjax.training import loop
    from genjax.training.data import batch_indices, toys

    cli.use_two_devices_of_a_cpu()
    dataset, source = toys.toy("moons"), toys.toy("eight_gaussians")
    starts, path = jnp.asarray(source.scaling.to_model(source.train.data)), paths.linear(LOOP_SIGMA)

    def draw(keys: Any) -> Any:
        return starts[jax.vmap(lambda key: jax.random.randint(key, (), 0, len(starts)))(keys)]

    method = path_models.build(
        networks.NETWORKS["mlp-64"].net,
        optax.adam(LEARNING_RATE),
        examples=dataset.examples,
        num_classes=0,
        path=path,
        predict=predictions.velocity,
        error=predictions.velocity,
        weighting=denoising.uniform,
        density=times.uniform_density(path),
        knots=lambda steps: path_models.uniform_knots(path, predictions.velocity, steps),
        default_sampler="euler",
        default_steps=100,
        first_order_end=False,
        ema_decay=0.999,
        label_dropout=0.0,
        compiler_options=None,
        source=draw,
        coupling={
            "independent": None,
            "optimal": couplings.optimal,
            "entropic": couplings.entropic(0.05, relative=True),
        }[coupling],
    )
    data = jax.tree.map(jnp.asarray, dataset.train)
    dispatch = loop.make_dispatch(method, dataset.scaling, LOOP_BATCH)
    state = [method.init(jax.random.key(0), loop.example_batch(dataset))]

    def run() -> Any:
        for _ in range(LOOP_STEPS // DISPATCH):
            indices = batch_indices(0, int(state[0].step), DISPATCH, LOOP_BATCH, len(data.data))
            state[0], metrics = dispatch(state[0], data, indices)
            loss = float(metrics["loss"])
        return loss

    return {"loop": run}


def torchcfm_loop(coupling: str) -> dict[str, Callable[[], Any]]:
    """200 steps of the loop of torchcfm's tutorial, fresh points each step."""
    import torch
    from torchcfm import conditional_flow_matching as cfm
    from torchcfm.models.models import MLP
    from torchcfm.utils import sample_8gaussians, sample_moons

    matcher = {
        "independent": cfm.ConditionalFlowMatcher,
        "optimal": cfm.ExactOptimalTransportConditionalFlowMatcher,
        "entropic": cfm.SchrodingerBridgeConditionalFlowMatcher,
    }[coupling](sigma=LOOP_SIGMA)
    model = MLP(dim=2, time_varying=True, w=64)
    optimizer = torch.optim.Adam(model.parameters())

    def run() -> Any:
        for _ in range(LOOP_STEPS):
            optimizer.zero_grad()
            source, data = sample_8gaussians(LOOP_BATCH), sample_moons(LOOP_BATCH)
            t, x_t, velocity = matcher.sample_location_and_conditional_flow(source, data)
            loss = torch.mean((model(torch.cat([x_t, t[:, None]], dim=-1)) - velocity) ** 2)
            loss.backward()
            optimizer.step()
        return loss

    return {"loop": run}


def family(method_name: str, data_name: str) -> dict[str, Callable[[], Any]]:
    """A dispatch of a method with its defaults; and what its state and its compiled step take of memory."""
    use_one_kernel_for_small_loops(SMALL_TRAINING_LOOPS)
    import jax

    from genjax import cli
    from genjax.methods import METHODS
    from genjax.training import data, loop, sharding
    from genjax.training.data import batch_indices
    from genjax.training.steps import adamw

    cli.use_two_devices_of_a_cpu()
    module: Any = METHODS[method_name]
    dataset = data.load(data_name)
    recommended = module.recommended(dataset.examples)
    optimizer = adamw(
        recommended.learning_rate, recommended.steps, b1=recommended.b1, clip_update=recommended.clip_update
    )
    method = module.build(module.Config(), optimizer, dataset.examples)
    count = recommended.steps_per_dispatch
    dispatch = loop.make_dispatch(method, dataset.scaling, recommended.batch_size)
    state, source = jax.device_put(
        ([method.init(jax.random.key(0), loop.example_batch(dataset))], dataset.train),
        sharding.of_steps(method, recommended.batch_size).whole,
    )
    indices = batch_indices(0, 0, count, recommended.batch_size, len(source.data))
    memory: list[Any] = []

    def run() -> Any:
        state[0], metrics = dispatch(state[0], source, indices)
        return jax.device_get(metrics)

    def facts() -> Any:
        if not memory:
            compiled = dispatch.lower(state[0], source, indices).compile()
            cost, analysis = compiled.cost_analysis(), compiled.memory_analysis()
            size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state[0]))
            memory.append(
                [count, recommended.batch_size, size, analysis.alias_size_in_bytes, analysis.temp_size_in_bytes]
            )
            memory[0].append(cost.get("flops", 0.0))
        return memory[0]

    return {"dispatch": run, "facts": facts}


class Row(NamedTuple):
    """A training step beside torch's."""

    network: str
    batch: int
    target: float
    """the most of torch's time that is aimed at"""


ROWS = (
    Row("mlp", 1, 0.10),
    Row("mlp", 1024, 0.80),
    Row("dit", 1, 0.60),
    Row("dit", 16, 1.00),
    Row("unet", 16, 1.00),
)
LOOPS = {"independent": 0.20, "optimal": 0.90, "entropic": None}
GRADIENT_TOLERANCE = 1e-5


def beside_torch(networks: tuple[str, ...], files: dict[str, str], processes: int) -> list[dict[str, Any]]:
    """The cases of `ROWS`."""
    found = []
    for row in (row for row in ROWS if row.network in networks):
        found.append(row_beside_torch(row, files[row.network], processes))
        print(found[-1], flush=True)
    return found


def row_beside_torch(row: Row, parameters: str, processes: int) -> dict[str, Any]:
    """One case; without the peer, ours and its floor."""
    steps, facts = STEPS[row.network], {}

    def measure(made: dict[str, timing.Worker | None]) -> list[np.ndarray]:
        worker, peer = made["ours"], made["torch"]
        assert worker is not None
        calls = [(worker, "step"), (worker, "floor")]
        if peer is not None:
            own, theirs = worker.output("gradient"), peer.output("gradient")
            timing.check_equal(own, theirs, f"gradient of {row.network}", GRADIENT_TOLERANCE)
            calls += [(peer, "eager"), (peer, "compiled")]
        seconds = timing.alternate_workers(calls, rounds=ROUNDS)
        facts["first_s"], facts["peak_mib"] = worker.first["step"], worker.peak_mebibytes()
        facts["torch_peak_mib"] = peer.peak_mebibytes() if peer is not None else None
        return seconds

    arguments = dict(network=row.network, parameters=parameters, batch=row.batch)
    builds = {
        "ours": ("benchmarks.training:our_step", {**arguments, "steps": steps}),
        "torch": ("benchmarks.training:torch_step", arguments),
    }
    ours, floor, *theirs = timing.in_processes(processes, measure, **builds)
    return {
        **row._asdict(),
        "ours_ms": 1e3 * timing.summary(ours).median / steps,
        "over_floor": timing.ratio(ours, floor),
        "of_eager": timing.ratio(ours / steps, theirs[0]) if theirs else None,
        "of_compiled": timing.ratio(ours / steps, theirs[1]) if theirs else None,
        **facts,
    }


def beside_torchcfm(couplings: dict[str, float | None], file: str, processes: int) -> list[dict[str, Any]]:
    """Whole loops on 2-D points; none without the peer."""

    def measure(made: dict[str, timing.Worker | None]) -> list[np.ndarray]:
        worker, peer = made["ours"], made["torchcfm"]
        if worker is None or peer is None:
            return []
        return timing.alternate_workers([(worker, "loop"), (peer, "loop")], rounds=ROUNDS)

    found = []
    for coupling, target in couplings.items():
        builds = {
            "ours": ("benchmarks.training:our_loop", dict(parameters=file, coupling=coupling)),
            "torchcfm": ("benchmarks.training:torchcfm_loop", dict(coupling=coupling)),
        }
        seconds = timing.in_processes(processes, measure, **builds)
        if not seconds:
            return found
        ours, theirs = seconds
        ms = 1e3 * timing.summary(ours).median / LOOP_STEPS
        found.append({"coupling": coupling, "target": target, "ours_ms": ms, "ratio": timing.ratio(ours, theirs)})
        print(found[-1], flush=True)
    return found


IMAGES_ONLY = ("pixelcnn",)
NEEDS_ANOTHER_RUN = ("latent-diffusion",)
POINTS_ONLY = ("cnf", "made")


def families(rounds: int) -> list[dict[str, Any]]:
    """Every method with its defaults, on points and on digits."""
    from genjax.methods import METHODS

    found = []
    for data_name in ("moons", "digits"):
        left_out = (IMAGES_ONLY if data_name == "moons" else POINTS_ONLY) + NEEDS_ANOTHER_RUN
        for method_name in (name for name in METHODS if name not in left_out):
            arguments = dict(method_name=method_name, data_name=data_name)
            with timing.workers(ours=("benchmarks.training:family", arguments)) as made:
                worker = made["ours"]
                assert worker is not None
                seconds = timing.alternate_workers([(worker, "dispatch")], rounds=rounds)[0]
                count, batch, state, aliased, temporary, flops = (float(value) for value in worker.output("facts"))
            per_step = timing.summary(seconds / count)
            found.append(
                {
                    "method": method_name,
                    "data": data_name,
                    "batch": int(batch),
                    "step_ms": [1e3 * value for value in per_step],
                    "first_s": worker.first["dispatch"],
                    "state_mib": state / 2**20,
                    "donated": aliased / state,
                    "temporary_mib": temporary / 2**20,
                    "gflop_per_step": flops / 1e9,
                }
            )
            print(found[-1], flush=True)
    return found


def write(found: dict[str, Any]) -> None:
    """The tables."""
    header = ["network", "batch", "ours", "of torch's time", "aim", "of torch's, compiled", "ours / floor", "first run"]
    report.write_table(
        "training",
        [*header, "most memory, ours and torch"],
        [
            [
                row["network"],
                str(row["batch"]),
                f"{row['ours_ms']:.3g} ms",
                text(row["of_eager"]),
                f"{row['target']:.2g}",
                text(row["of_compiled"]),
                text(row["over_floor"]),
                f"{row['first_s']:.2g} s",
                " and ".join(f"{row[name]:.0f} MiB" for name in ("peak_mib", "torch_peak_mib") if row[name]),
            ]
            for row in found["torch"]
        ],
    )
    report.write_table(
        "loops",
        ["coupling", "ours, a step", "of torchcfm's time", "aim"],
        [
            [row["coupling"], f"{row['ours_ms']:.3g} ms", text(row["ratio"]), f"{row['target'] or ''}"]
            for row in found["torchcfm"]
        ],
    )
    if "families" in found:
        write_families(found["families"])


def write_families(found: list[dict[str, Any]]) -> None:
    """The table of every method."""
    report.write_table(
        "families",
        ["data", "method", "batch", "a step", "first run", "state", "of it donated", "temporary memory"],
        [
            [
                row["data"],
                row["method"],
                str(row["batch"]),
                f"{row['step_ms'][0]:.3g} ms",
                f"{row['first_s']:.2g} s",
                f"{row['state_mib']:.2f} MiB",
                f"{100 * row['donated']:.0f} %",
                f"{row['temporary_mib']:.2f} MiB",
            ]
            for row in found
        ],
    )


def main() -> None:
    """Measure, and write what was found."""
    use_huge_pages()
    from benchmarks import networks

    options = tyro.cli(Options, description=__doc__)
    processes = 1 if options.quick else 3
    chosen = ("mlp",) if options.quick else options.networks
    couplings = {"independent": LOOPS["independent"]} if options.quick else LOOPS
    with networks.saved(*chosen, "mlp-64") as files:
        found = {
            "torch": beside_torch(chosen, files, processes),
            "torchcfm": beside_torchcfm(couplings, files["mlp-64"], processes),
        }
    if not options.quick:
        found |= {"families": families(rounds=9)} if options.families else {}
        kept.write("training", kept.read("training") | found)
        write(found)


if __name__ == "__main__":
    main()
