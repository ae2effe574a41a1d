"""What sampling costs: every sampler over the bare network, and the loops of other libraries over the same network.

    python -m benchmarks.sampling [--quick] [--networks mlp unet dit]

The floor is a loop of the network alone over as many calls with the same inputs: a `lax.scan` for ours, a Python loop for
those of torch. We, torch and torch with the network compiled have a process each with all cores; they run in turn, three
rounds in each of three sets of processes. The peers have our parameters, and what they compute is compared with ours before
anything is timed. Writes `benchmarks/results/sampling.json`, the tables of `benchmarks/README.md` and a figure. Needs the
extra `bench` for the peers; one that is not there is left out.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro

from benchmarks import kept, report, timing
from benchmarks.timing import Timing, Worker

TRAIN_STEPS = 1000
ROUNDS = 3
"""Measured in a process."""
OURS = "benchmarks.sampling:ours"


@dataclasses.dataclass(frozen=True)
class Options:
    """Sampling over the floor, and beside the peers."""

    quick: bool = False
    """the MLP alone, fewer processes, samplers and peers' loops: two minutes"""
    networks: tuple[str, ...] = ("mlp", "unet", "dit")
    """which networks"""


def bare_loop(net: Any, compiler_options: Any) -> Callable[..., Any]:
    """`f(params, x, t [calls])`: the network on its own output, once a time."""
    import jax
    import jax.numpy as jnp

    def run(params: Any, x: Any, t: Any) -> Any:
        def body(x: Any, t: Any) -> tuple[Any, None]:
            return net.apply(params, x, jnp.broadcast_to(t, x.shape[:1])), None

        return jax.lax.scan(body, x, t)[0]

    return jax.jit(run, compiler_options=compiler_options)


def ours(network: str, parameters: str, batch: int, calls: dict[str, int]) -> dict[str, Callable[[], Any]]:
    """A run of each sampler of `calls` (name: network calls in all), the floor of each number of them, and one call.

    More points than `sample.py` draws at once are drawn in as many runs as there; the floor is of all at once.
    """
    import jax
    import jax.numpy as jnp

    from benchmarks import networks
    from genjax import cli, drawing, paths, predictions, samplers, times
    from genjax.arrays import example_keys
    from genjax.training import sharding

    cli.use_two_devices_of_a_cpu()
    net = networks.NETWORKS[network].net
    x, t = (jnp.asarray(values) for values in networks.inputs(network, batch))
    keys = example_keys(jax.random.key(0), batch)
    params, x, t, keys = sharding.over_devices(networks.read(parameters), x, t, keys)
    size = drawing.batch_size_for(networks.NETWORKS[network].event_shape, batch)
    options = networks.sampling_options(network, size)
    path = paths.ddpm(paths.linear_betas(TRAIN_STEPS))

    def grid(steps: int) -> Any:
        return paths.knots(path, times.discrete(times.trailing_indices(TRAIN_STEPS, steps), TRAIN_STEPS))

    def sampling(name: str, count: int) -> Callable[[], Any]:
        sampler = samplers.SAMPLERS[name](path, first_order_end=True)

        def run(params: Any, keys: Any, x: Any, knots: Any) -> Any:
            denoise = predictions.denoiser(net.bind(params), path, predictions.noise)
            return samplers.sample(sampler, denoise, keys, x, knots)

        knots = grid(count // samplers.calls_per_step(sampler, x.shape))
        compiled = jax.jit(run, compiler_options=options)
        if size == batch:
            return lambda: compiled(params, keys, x, knots)
        starts = range(0, batch, size)
        parts = {at: sharding.over_devices(params, keys[at : at + size], x[at : at + size]) for at in starts}
        return lambda: drawing.in_batches(lambda at: compiled(*parts[at], knots), batch, batch_size=size)

    looped = bare_loop(net, options)

    def floor(count: int) -> Callable[[], Any]:
        t = grid(count).t[:-1]
        return lambda: looped(params, x, t)

    network_call = jax.jit(net.apply, compiler_options=options)
    runs = {name: sampling(name, count) for name, count in calls.items()}
    floors = {f"floor {count}": floor(count) for count in sorted(set(calls.values()))}
    return {**runs, **floors, "network": lambda: network_call(params, x, t)}


def diffusers_loops(
    network: str, parameters: str, batch: int, calls: dict[str, int], compiled: bool
) -> dict[str, Callable[[], Any]]:
    """diffusers' schedulers in its own loop, the bare network in one as long, and one call; the network compiled or not."""
    import torch
    from diffusers import DDIMScheduler, DDPMScheduler

    from benchmarks.torch_networks import NETWORKS, load

    with np.load(parameters) as arrays:
        net = load(NETWORKS[network](), dict(arrays)).eval()
    x, t = torch_inputs(network, batch)
    schedulers = {"ddim": DDIMScheduler, "ddpm": DDPMScheduler}

    def scheduler_of(name: str, steps: int) -> Any:
        scheduler = schedulers[name](
            num_train_timesteps=TRAIN_STEPS,
            beta_schedule="linear",
            beta_start=1e-4,
            beta_end=0.02,
            clip_sample=False,
            timestep_spacing="trailing",
        )
        scheduler.set_timesteps(steps)
        return scheduler

    def clock(scheduler: Any) -> Any:
        return ((scheduler.timesteps + 1) / TRAIN_STEPS)[:, None].expand(-1, batch).contiguous()

    model = torch.compile(net) if compiled else net

    def loop(name: str, steps: int) -> Callable[[], Any]:
        scheduler = scheduler_of(name, steps)
        times = clock(scheduler)

        @torch.inference_mode()
        def run() -> Any:
            state = x
            for timestep, t in zip(scheduler.timesteps, times, strict=True):
                state = scheduler.step(model(state, t), timestep, state).prev_sample
            return state

        return run

    def floor(steps: int) -> Callable[[], Any]:
        times = clock(scheduler_of("ddim", steps))

        @torch.inference_mode()
        def run() -> Any:
            state = x
            for t in times:
                state = model(state, t)
            return state

        return run

    loops = {name: loop(name, steps) for name, steps in calls.items()}
    floors = {f"floor {steps}": floor(steps) for steps in sorted(set(calls.values()))}
    return {**loops, **floors, "network": torch.inference_mode()(lambda: net(x, t))}


def torch_inputs(network: str, batch: int) -> tuple[Any, Any]:
    """Ours, with the channels before the pixels."""
    import torch

    from benchmarks import networks

    x, t = networks.inputs(network, batch)
    return torch.tensor(x if x.ndim == 2 else x.transpose(0, 3, 1, 2).copy()), torch.tensor(t)


EULER_STEPS, TOLERANCE = 100, 1e-5


def our_flow(network: str, parameters: str, batch: int) -> dict[str, Callable[[], Any]]:
    """The network as a velocity: Euler's steps and Dormand and Prince's to a tolerance, and the floor of the former."""
    import diffrax
    import jax
    import jax.numpy as jnp

    from benchmarks import networks
    from genjax import continuous_flows, paths, predictions, samplers, times

    net, params = networks.NETWORKS[network].net, networks.read(parameters)
    x, t = (jnp.asarray(values) for values in networks.inputs(network, batch))
    path, key = paths.linear(), jax.random.key(0)
    solver = continuous_flows.Solver(tolerance=TOLERANCE, method=diffrax.Dopri5())

    @jax.jit
    def euler(params: Any, x: Any, knots: Any) -> Any:
        denoise = predictions.denoiser(net.bind(params), path, predictions.velocity)
        return samplers.sample(samplers.euler(path), denoise, key, x, knots)

    @jax.jit
    def adaptive(params: Any, x: Any) -> Any:
        return continuous_flows.flow_and_steps(net.bind(params), x, start=path.t_noise, stop=path.t_data, solver=solver)

    knots = paths.knots(path, times.uniform(path, EULER_STEPS))
    network_call, looped = jax.jit(net.apply), bare_loop(net, None)
    return {
        "network": lambda: network_call(params, x, t),
        "euler": lambda: euler(params, x, knots),
        "floor": lambda: looped(params, x, knots.t[:-1]),
        "dopri5": lambda: adaptive(params, x)[0],
        "dopri5 steps": lambda: adaptive(params, x)[1],
    }


def torchcfm_loops(network: str, parameters: str, batch: int) -> dict[str, Callable[[], Any]]:
    """torchcfm's network sampled as its tutorial does, by torchdyn's NeuralODE; by flow_matching; and by torchdiffeq."""
    import torch
    from flow_matching.solver import ODESolver
    from torchcfm.models.models import MLP
    from torchcfm.utils import torch_wrapper
    from torchdiffeq import odeint
    from torchdyn.core import NeuralODE

    net = MLP(dim=2, time_varying=True, w=64)
    with np.load(parameters) as arrays:
        layers = (net.net[index] for index in (0, 2, 4, 6))
        for name, layer in zip(("in", "hidden_0", "hidden_1", "out"), layers, strict=True):
            layer.weight.data = torch.tensor(arrays[f"{name}/kernel"].T.copy())
            layer.bias.data = torch.tensor(arrays[f"{name}/bias"])
    x, t = torch_inputs(network, batch)
    node = NeuralODE(torch_wrapper(net), solver="euler", sensitivity="adjoint")
    counted = [0]

    def velocity(t: Any, x: Any) -> Any:
        counted[0] += 1
        return net(torch.cat([x, t.expand(len(x), 1)], dim=1))

    solver = ODESolver(velocity_model=lambda x, t: velocity(t, x))
    grid = torch.linspace(0, 1, EULER_STEPS + 1)

    @torch.no_grad()
    def calls_of_adaptive() -> Any:
        counted[0] = 0
        odeint(velocity, x, torch.tensor([0.0, 1.0]), rtol=TOLERANCE, atol=TOLERANCE, method="dopri5")
        return torch.tensor([counted[0]])

    adaptive = dict(rtol=TOLERANCE, atol=TOLERANCE, method="dopri5")
    no_grad = torch.no_grad()
    return {
        "network": no_grad(lambda: net(torch.cat([x, t[:, None]], dim=1))),
        "euler torchcfm": no_grad(lambda: node.trajectory(x, t_span=grid)[-1]),
        "euler flow_matching": lambda: solver.sample(x_init=x, step_size=1 / EULER_STEPS, method="euler"),
        "dopri5": no_grad(lambda: odeint(velocity, x, torch.tensor([0.0, 1.0]), **adaptive)[-1]),
        "dopri5 calls": calls_of_adaptive,
    }


class Row(NamedTuple):
    """A case beside its peers."""

    network: str
    batch: int
    sampler: str
    steps: int
    target: float
    """the most of the peer's time that is aimed at"""


ROWS = (
    Row("mlp", 1, "ddim", 50, 0.045),
    Row("mlp", 1, "ddpm", 1000, 0.027),
    Row("mlp", 1024, "ddpm", 1000, 0.70),
    Row("mlp", 16384, "ddim", 50, 0.45),
    Row("unet", 16, "ddim", 10, 0.90),
    Row("dit", 1, "ddim", 50, 0.70),
)
BATCHES = {"mlp": (1, 1024), "unet": (16,), "dit": (1, 4)}
NETWORK_TOLERANCE, TRAJECTORY_TOLERANCE = 1e-5, 1e-4
ADAPTIVE_TOLERANCE = 1e-2
"""Of adaptive solvers: at 1e-5 a step either is 1.3e-3 from the solution, as the slope of this network jumps."""


def over_floor(networks: tuple[str, ...], files: dict[str, str], processes: int, quick: bool) -> dict[str, Any]:
    """Every sampler's time over the floor, by case and sampler."""
    from genjax import paths, samplers

    path = paths.ddpm(paths.linear_betas(TRAIN_STEPS))
    found: dict[str, Any] = {}
    for network in networks:
        for batch in BATCHES[network][-1:] if quick else BATCHES[network]:
            count = 12 * (50 if (network, batch) == ("mlp", 1) else 10 if network == "mlp" else 1)
            names = [name for name in samplers.SAMPLERS if not quick or name in ("ddim", "ddpm", "unipc", "heun")]
            calls = {
                name: count
                for name in names
                if count % samplers.calls_per_step(samplers.SAMPLERS[name](path, first_order_end=True), (1, 2)) == 0
            }
            arguments = dict(network=network, parameters=files[network], batch=batch, calls=calls)
            case = found[f"{network}, batch {batch}"] = samplers_over_floor(arguments, count, processes)
            for name in calls:
                print(f"{network}, batch {batch}, {name}: {case[name]['ratio']:.3f} of the floor", flush=True)
    return found


def samplers_over_floor(arguments: dict[str, Any], count: int, processes: int) -> dict[str, Any]:
    """The samplers of one network and batch."""
    names, first = list(arguments["calls"]), {}
    peaks: list[float] = []

    def measure(made: dict[str, Worker | None]) -> list[np.ndarray]:
        worker = made["ours"]
        assert worker is not None
        seconds: list[np.ndarray] = []
        for name in names:
            pair = timing.alternate_workers([(worker, name), (worker, f"floor {count}")], rounds=ROUNDS)
            print(f"{name}: {timing.ratio(*pair):.3f} of the floor in this process", flush=True)
            seconds += pair
        first.update(worker.first)
        peaks.append(worker.peak_mebibytes())
        return seconds

    seconds = timing.in_processes(processes, measure, ours=(OURS, arguments))
    found = {
        name: {
            "ratio": timing.ratio(own, floor),
            "call_ms": 1e3 * timing.summary(floor).median / count,
            "first_s": first[name],
        }
        for name, own, floor in zip(names, seconds[::2], seconds[1::2], strict=True)
    }
    return {**found, "peak_mib": max(peaks)}


def beside_diffusers(
    networks: tuple[str, ...], files: dict[str, str], processes: int, quick: bool
) -> list[dict[str, Any]]:
    """The cases of `ROWS`; none without the peer."""
    found = []
    for network in networks:
        batches = sorted({row.batch for row in ROWS if row.network == network})
        for batch in batches[:1] if quick else batches:
            rows = [row for row in ROWS if (row.network, row.batch) == (network, batch)]
            for one in rows_beside_diffusers(rows, files[network], processes):
                found.append(one)
                print(one, flush=True)
    return found


def rows_beside_diffusers(rows: list[Row], parameters: str, processes: int) -> list[dict[str, Any]]:
    """The rows of one network and batch; none without the peer."""
    network, batch, calls = rows[0].network, rows[0].batch, {row.sampler: row.steps for row in rows}
    facts: dict[str, Any] = {}

    def measure(made: dict[str, Worker | None]) -> list[np.ndarray]:
        worker, eager, compiled = made["ours"], made["diffusers"], made["diffusers, compiled"]
        if worker is None or eager is None or compiled is None:
            return []
        for peer in (eager, compiled):
            facts["difference"] = same_network(worker, peer, network)
            if "ddim" in calls:
                trajectory = images_last(peer.output("ddim"))
                timing.check_equal(worker.output("ddim"), trajectory, f"{network} ddim", TRAJECTORY_TOLERANCE)
        seconds = [one for row in rows for one in beside((worker, eager, compiled), row)]
        facts["first"], facts["compiled_first"] = worker.first, compiled.first
        facts["peaks"] = {"peak_mib": worker.peak_mebibytes(), "peer_peak_mib": eager.peak_mebibytes()}
        return seconds

    arguments = dict(network=network, parameters=parameters, batch=batch, calls=calls)
    builds = {"ours": (OURS, arguments)}
    for name, compiled in (("diffusers", False), ("diffusers, compiled", True)):
        builds[name] = ("benchmarks.sampling:diffusers_loops", {**arguments, "compiled": compiled})
    seconds = timing.in_processes(processes, measure, **builds)
    if not seconds:
        return []
    return [
        {
            **row._asdict(),
            "difference": facts["difference"],
            **ratios(*seconds[6 * index : 6 * index + 6]),
            "first_s": facts["first"][row.sampler],
            "compiled_first_s": facts["compiled_first"][row.sampler],
            **facts["peaks"],
        }
        for index, row in enumerate(rows)
    ]


def beside(made: tuple[Worker, ...], row: Row) -> list[np.ndarray]:
    """Seconds of one case: each worker's sampler and its floor."""
    calls = [(worker, name) for worker in made for name in (row.sampler, f"floor {row.steps}")]
    return timing.alternate_workers(calls, rounds=ROUNDS)


def ratios(
    ours: np.ndarray,
    our_floor: np.ndarray,
    eager: np.ndarray,
    eager_floor: np.ndarray,
    compiled: np.ndarray,
    compiled_floor: np.ndarray,
) -> dict[str, Any]:
    """Ratios of one case: to the peer, eager and compiled, and of each to its floor."""
    return {
        "ours_ms": 1e3 * timing.summary(ours).median,
        "over_floor": timing.ratio(ours, our_floor),
        "of_eager": timing.ratio(ours, eager),
        "of_compiled": timing.ratio(ours, compiled),
        "eager_over_floor": timing.ratio(eager, eager_floor),
        "compiled_over_floor": timing.ratio(compiled, compiled_floor),
    }


def images_last(arrays: list[np.ndarray]) -> list[np.ndarray]:
    """`[B, C, H, W]` to `[B, H, W, C]`; points as they are."""
    return [array.transpose(0, 2, 3, 1) if array.ndim == 4 else array for array in arrays]


def same_network(worker: Worker, peer: Worker, network: str) -> float:
    """The largest difference of one call."""
    return timing.check_equal(
        worker.output("network"), images_last(peer.output("network")), f"the network {network}", NETWORK_TOLERANCE
    )


def beside_torchcfm(files: dict[str, str], processes: int) -> list[dict[str, Any]]:
    """Velocities of 2-D points: 100 steps of Euler, and an adaptive solver, of which the calls are counted."""
    names = ("euler torchcfm", "euler flow_matching", "dopri5")
    calls: dict[str, int] = {}

    def measure(made: dict[str, Worker | None]) -> list[np.ndarray]:
        worker, peer = made["ours"], made["peer"]
        if worker is None or peer is None:
            return []
        same_network(worker, peer, "mlp-64")
        for theirs in ("euler torchcfm", "euler flow_matching"):
            timing.check_equal(worker.output("euler"), peer.output(theirs), theirs, TRAJECTORY_TOLERANCE)
        timing.check_equal(worker.output("dopri5"), peer.output("dopri5"), "dopri5", ADAPTIVE_TOLERANCE)
        calls["ours"] = 1 + 6 * int(worker.output("dopri5 steps")[0])
        calls["theirs"] = int(peer.output("dopri5 calls")[0][0])
        own = [(worker, name) for name in ("euler", "floor", "dopri5")]
        return timing.alternate_workers([*own, *((peer, name) for name in names)], rounds=ROUNDS)

    arguments = dict(network="mlp-64", parameters=files["mlp-64"], batch=1024)
    builds = {
        "ours": ("benchmarks.sampling:our_flow", arguments),
        "peer": ("benchmarks.sampling:torchcfm_loops", arguments),
    }
    seconds = timing.in_processes(processes, measure, **builds)
    if not seconds:
        return []
    euler, floor, dopri5, *theirs = seconds
    return [
        {
            "what": name,
            "ratio": timing.ratio(dopri5 if name == "dopri5" else euler, one),
            "over_floor": None if name == "dopri5" else timing.ratio(euler, floor),
            "our_calls": calls["ours"] if name == "dopri5" else EULER_STEPS,
            "their_calls": calls["theirs"] if name == "dopri5" else EULER_STEPS,
            "target": 0.75 if name == "dopri5" else 0.65,
        }
        for name, one in zip(names, theirs, strict=True)
    ]


def text(ratio: Timing | list[float] | None) -> str:
    """A ratio with its quartiles."""
    return "" if ratio is None else f"{Timing(*ratio):.3g}"


def write(found: dict[str, Any]) -> None:
    """The three tables and the figure."""
    cases = list(found["floor"])
    names = sorted({name for case in cases for name in found["floor"][case] if name != "peak_mib"})
    cell = lambda case, name: text(found["floor"][case].get(name, {}).get("ratio"))  # noqa: E731
    rows = [[name, *(cell(case, name) for case in cases)] for name in names]
    calls = [
        f"{np.median([one['call_ms'] for name, one in found['floor'][case].items() if name != 'peak_mib']):.3g} ms"
        for case in cases
    ]
    peaks = [f"{found['floor'][case]['peak_mib']:.0f} MiB" for case in cases]
    rows += [["one call of the network", *calls], ["most memory of the process", *peaks]]
    report.write_table("sampling", ["sampler", *cases], rows)
    header = ["network", "batch", "sampler", "calls", "ours", "of diffusers' time", "aim", "of diffusers', compiled"]
    header += ["ours / floor", "diffusers / floor", "compiled / floor", "first run, ours and compiled"]
    report.write_table(
        "diffusers",
        header,
        [
            [
                row["network"],
                str(row["batch"]),
                row["sampler"],
                str(row["steps"]),
                f"{row['ours_ms']:.3g} ms",
                text(row["of_eager"]),
                f"{row['target']:.3g}",
                text(row["of_compiled"]),
                text(row["over_floor"]),
                text(row["eager_over_floor"]),
                text(row["compiled_over_floor"]),
                f"{row['first_s']:.2g} s, {row['compiled_first_s']:.2g} s",
            ]
            for row in found["diffusers"]
        ],
    )
    report.write_table(
        "torchcfm",
        ["peer", "of the peer's time", "aim", "ours / floor", "calls, ours", "calls, peer"],
        [
            [
                row["what"],
                text(row["ratio"]),
                f"{row['target']}",
                text(row["over_floor"]),
                str(row["our_calls"]),
                str(row["their_calls"]),
            ]
            for row in found["torchcfm"]
        ],
    )
    draw(found["floor"], report.README.parents[1] / "docs" / "images" / "sampling.png")


def draw(by_case: dict[str, Any], file: Path) -> None:
    """Ratios to the floor: a row for each sampler, a mark for each network."""
    from matplotlib.figure import Figure

    names = sorted({name for found in by_case.values() for name in found if name != "peak_mib"}, reverse=True)
    figure = Figure(figsize=(8.0, 6.0), layout="constrained")
    axes = figure.subplots()
    for number, (case, found) in enumerate(by_case.items()):
        known = [name for name in names if name in found]
        middle, low, high = (np.array([found[name]["ratio"][index] for name in known]) for index in range(3))
        at = np.array([names.index(name) for name in known]) + 0.12 * (number - (len(by_case) - 1) / 2)
        errors = np.clip([middle - low, high - middle], 0, None)
        axes.errorbar(middle, at, xerr=errors, fmt="osD^v"[number], markersize=4, linewidth=1, label=case)
    axes.axvline(1, color="#888888", linewidth=1)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("time / floor: the bare network in a loop of as many calls")
    axes.grid(visible=True, axis="x", color="#e5e5e5")
    figure.legend(loc="outside lower center", ncols=len(by_case), frameon=False)
    figure.savefig(file, dpi=120)


def main() -> None:
    """Measure, and write what was found."""
    from benchmarks import networks

    options = tyro.cli(Options, description=__doc__)
    processes = 1 if options.quick else 3
    chosen = ("mlp",) if options.quick else options.networks
    with networks.saved(*chosen, "mlp-64") as files:
        found = {
            "floor": over_floor(chosen, files, processes, options.quick),
            "diffusers": beside_diffusers(chosen, files, processes, options.quick),
            "torchcfm": beside_torchcfm(files, processes),
        }
    if not options.quick:
        kept.write("sampling", found)
        write(found)


if __name__ == "__main__":
    main()
