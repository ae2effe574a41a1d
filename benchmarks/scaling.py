"""How the cost of sampling grows: with steps, batch, samples, dimension and virtual devices.

    python -m benchmarks.scaling [--quick]

Times of `sample` with DDPM's steps, in turn, and the exponent that a line through their logarithms has; drawn as `sample.py` draws,
over two devices of a CPU, in batches of which a device's part keeps it busy. A batch is one call; samples are drawn in calls of as
many as `sample.py` draws at once. The dimension is that of events under a denoiser that costs almost nothing, so it is the
sampler's own. On virtual devices the batch is split between them; they share the same cores.
Writes `benchmarks/results/scaling.json`, the table of `benchmarks/README.md` and a figure.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tyro

from benchmarks import kept, report, timing


@dataclasses.dataclass(frozen=True)
class Options:
    """Exponents of time."""

    quick: bool = False
    """fewer rounds, sweeps and devices: two minutes"""


class Sweep(NamedTuple):
    """One thing varied, the others fixed."""

    network: str
    over: str
    values: tuple[int, ...]
    steps: int
    batch: int


SWEEPS = (
    Sweep("mlp", "steps", (50, 100, 200, 400, 800), 0, 1024),
    Sweep("unet", "steps", (10, 20, 40, 80), 0, 16),
    Sweep("dit", "steps", (10, 20, 40, 80), 0, 16),
    Sweep("mlp", "batch", (1024, 2048, 4096, 8192, 16384), 50, 0),
    Sweep("unet", "batch", (16, 32, 64, 128), 10, 0),
    Sweep("dit", "batch", (16, 32, 64, 128), 10, 0),
    Sweep("unet", "samples", (16, 32, 64, 128), 10, 0),
    Sweep("dit", "samples", (16, 32, 64, 128), 10, 0),
    Sweep("none", "dimension", (2**14, 2**15, 2**16, 2**17), 20, 16),
)
DEVICES = (1, 2, 4)
LOOKS = ("mlp", "unet", "dit", "none")
"""Each has its colour and its mark in every panel of the figure."""


def sampling(sweep: dict[str, Any], parameters: str | None) -> dict[str, Callable[[], Any]]:
    """A run for each value of a sweep, named by it."""
    from genjax import arrays, cli, drawing, paths, predictions, samplers, times
    from genjax.training import sharding

    cli.use_two_devices_of_a_cpu()
    import jax

    from benchmarks import networks

    path, over = paths.ddpm(paths.linear_betas(1000)), sweep["over"]
    net = networks.sampling_net(sweep["network"]) if parameters else None
    params = networks.read(parameters) if parameters else None

    def run(params: Any, keys: Any, x: Any, knots: Any) -> Any:
        model = net.bind(params) if net is not None else lambda x, t: 0.5 * x
        return samplers.sample(samplers.ddpm(), predictions.denoiser(model, path, predictions.noise), keys, x, knots)

    def of(value: int) -> Callable[[], Any]:
        chosen = {**sweep, over: value}
        num = value if over in ("batch", "samples") else sweep["batch"]
        if net is None:
            x = np.random.default_rng(0).standard_normal((num, chosen["dimension"]), np.float32)
        else:
            x = networks.inputs(sweep["network"], num)[0]
        size = drawing.batch_size_for(x.shape[1:], num) if over == "samples" else num
        options = networks.sampling_options(sweep["network"], size) if net is not None else None
        knots = paths.knots(path, times.discrete(times.trailing_indices(1000, chosen["steps"]), 1000))
        keys = arrays.example_keys(jax.random.key(0), num)
        (on_each, knots), _ = sharding.over_devices((params, knots), x[:size])
        starts = range(0, num, size)
        parts = {at: sharding.over_devices((), keys[at : at + size], x[at : at + size])[1:] for at in starts}
        compiled = jax.jit(run, compiler_options=options)
        if over != "samples":
            return lambda: compiled(on_each, *parts[0], knots)
        return lambda: drawing.in_batches(lambda at: compiled(on_each, *parts[at], knots), num, batch_size=size)

    return {str(value): of(value) for value in sweep["values"]}


def on_devices(devices: int, parameters: str) -> dict[str, Callable[[], Any]]:
    """The U-Net, 64 images, split between virtual devices."""
    import os

    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    import jax
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    from benchmarks import networks
    from genjax import arrays, paths, predictions, samplers, times

    path, net = paths.ddpm(paths.linear_betas(1000)), networks.sampling_net("unet")
    mesh = jax.make_mesh((devices,), ("batch",), (AxisType.Auto,))
    split, whole = NamedSharding(mesh, PartitionSpec("batch")), NamedSharding(mesh, PartitionSpec())
    params = jax.device_put(networks.read(parameters), whole)
    x = jax.device_put(networks.inputs("unet", 64)[0], split)
    keys = jax.device_put(arrays.example_keys(jax.random.key(0), 64), split)
    knots = jax.device_put(paths.knots(path, times.discrete(times.trailing_indices(1000, 4), 1000)), whole)

    def run(params: Any, keys: Any, x: Any, knots: Any) -> Any:
        denoise = predictions.denoiser(net.bind(params), path, predictions.noise)
        return samplers.sample(samplers.ddpm(), denoise, keys, x, knots)

    compiled = jax.jit(run, compiler_options=networks.sampling_options("unet", 64))
    return {"sample": lambda: compiled(params, keys, x, knots)}


def exponent(values: tuple[int, ...], seconds: np.ndarray) -> timing.Timing:
    """Of the power law through `seconds [values, rounds]`, fitted round by round."""
    slopes = np.polyfit(np.log(values), np.log(seconds), 1)[0]
    return timing.summary(slopes)


def measure(rounds: int, sweeps: tuple[Sweep, ...], devices: tuple[int, ...]) -> dict[str, Any]:
    """Every sweep, and the devices."""
    from benchmarks import networks

    found: dict[str, Any] = {"sweeps": []}
    with networks.saved("mlp", "unet", "dit") as files:
        for sweep in sweeps:
            arguments = dict(sweep={**sweep._asdict(), "dimension": 0}, parameters=files.get(sweep.network))
            with timing.workers(ours=("benchmarks.scaling:sampling", arguments)) as made:
                worker = made["ours"]
                assert worker is not None
                seconds = timing.alternate_workers([(worker, str(value)) for value in sweep.values], rounds=rounds)
            found["sweeps"].append(
                {
                    **sweep._asdict(),
                    "exponent": exponent(sweep.values, np.array(seconds)),
                    "seconds": [timing.summary(values).median for values in seconds],
                }
            )
            print(found["sweeps"][-1], flush=True)
        builds = {
            str(count): ("benchmarks.scaling:on_devices", dict(devices=count, parameters=files["unet"]))
            for count in devices
        }
        with timing.workers(**builds) as made:
            calls = [(worker, "sample") for worker in made.values() if worker is not None]
            one, *more = timing.alternate_workers(calls, rounds=rounds)
            ratios = zip(devices[1:], more, strict=True)
            found["devices"] = {str(count): timing.ratio(seconds, one) for count, seconds in ratios}
    return found


def write(found: dict[str, Any]) -> None:
    """The table and the figure."""
    from matplotlib.figure import Figure

    rows = [
        [
            row["network"],
            row["over"],
            f"{row['values'][0]} to {row['values'][-1]}",
            f"{timing.Timing(*row['exponent']):.3f}",
            f"{1e3 * row['seconds'][0]:.3g} to {1e3 * row['seconds'][-1]:.3g} ms",
        ]
        for row in found["sweeps"]
    ]
    rows += [
        ["unet", f"{count} virtual devices over one", "64 images", f"{timing.Timing(*ratio):.3f}", ""]
        for count, ratio in found["devices"].items()
    ]
    report.write_table("scaling", ["network", "over", "range", "exponent, or ratio", "time"], rows)
    figure = Figure(figsize=(12.0, 4.0), layout="constrained")
    for axes, over in zip(figure.subplots(1, 4, sharey=True), ("steps", "batch", "samples", "dimension"), strict=True):
        for row in (row for row in found["sweeps"] if row["over"] == over):
            label = (
                f"{row['network']}: {row['exponent'][0]:.2f}"
                if row["network"] != "none"
                else f"{row['exponent'][0]:.2f}"
            )
            look = LOOKS.index(row["network"])
            axes.loglog(row["values"], row["seconds"], f"C{look}", marker="osDv"[look], markersize=4, label=label)
        axes.set_xlabel(over)
        axes.grid(visible=True, color="#e5e5e5")
        axes.legend(frameon=False, title="exponent", loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=8)
        if over in ("samples", "dimension"):
            axes.set_xticks(row["values"], [f"{value:,}" for value in row["values"]])
            axes.minorticks_off()
    figure.axes[0].set_ylabel("seconds")
    figure.savefig(report.README.parents[1] / "docs" / "images" / "scaling.png", dpi=120)


def main() -> None:
    """Measure, and write the table."""
    options = tyro.cli(Options, description=__doc__)
    sweeps = tuple(sweep for sweep in SWEEPS if not options.quick or sweep.network in ("mlp", "none"))
    found = measure(2, sweeps, DEVICES[:2]) if options.quick else measure(7, sweeps, DEVICES)
    print(found["devices"], flush=True)
    if not options.quick:
        kept.write("scaling", found)
        write(found)


if __name__ == "__main__":
    main()
