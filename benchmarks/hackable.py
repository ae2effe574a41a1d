"""What sampling costs beside hackable_diffusion, which is also of JAX: the same network, parameters, grid and compiler options.

    python -m benchmarks.hackable [--python PATH] [--quick]

hackable_diffusion needs Python 3.12; `--python` is an interpreter of an environment with it and this project, and both
run in that one, each in a process of its own, in turn. DDIM's results are compared before anything is timed. The path is the
cosine one, the network predicts v, and a U-Net gets the options that our methods give it. Writes
`benchmarks/results/hackable.json` and the table of `benchmarks/README.md`.
"""

import dataclasses
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import tyro

from benchmarks import kept, report, timing
from benchmarks.sampling import TRAJECTORY_TOLERANCE, text

EDGE = 1e-6
"""How far from 0 and 1 the grid of `UniformTimeSchedule` ends."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Sampling beside hackable_diffusion."""

    python: str = sys.executable
    """an interpreter with hackable_diffusion and this project"""
    quick: bool = False
    """the MLP alone, fewer rounds: a minute"""


class Row(NamedTuple):
    """A case."""

    network: str
    batch: int
    sampler: str
    steps: int


ROWS = (
    Row("mlp", 1, "ddim", 50),
    Row("mlp", 1, "ddpm", 1000),
    Row("mlp", 1024, "ddim", 50),
    Row("mlp", 1024, "ddpm", 1000),
    Row("unet", 16, "ddim", 10),
    Row("unet", 16, "ddpm", 10),
    Row("dit", 1, "ddim", 50),
    Row("dit", 1, "ddpm", 50),
)


def ours(network: str, parameters: str, batch: int, steps: int) -> dict[str, Callable[[], Any]]:
    """DDIM and DDPM on the grid of theirs."""
    import jax
    import jax.numpy as jnp

    from benchmarks import networks
    from genjax import cli, paths, predictions, samplers
    from genjax.arrays import example_keys
    from genjax.training import sharding

    cli.use_two_devices_of_a_cpu()
    net, path = networks.NETWORKS[network].net, paths.cosine()
    x, keys = jnp.asarray(networks.inputs(network, batch)[0]), example_keys(jax.random.key(0), batch)
    params, x, keys = sharding.over_devices(networks.read(parameters), x, keys)
    knots = paths.knots(path, jnp.linspace(1 - EDGE, EDGE, steps + 1))

    def of(sampler: Any) -> Callable[[], Any]:
        def run(params: Any, keys: Any, x: Any, knots: Any) -> Any:
            denoise = predictions.denoiser(net.bind(params), path, predictions.v)
            return samplers.sample(sampler, denoise, keys, x, knots)

        compiled = jax.jit(run, compiler_options=networks.sampling_options(network, batch))
        return lambda: compiled(params, keys, x, knots)

    return {"ddim": of(samplers.ddim()), "ddpm": of(samplers.ddpm())}


def theirs(network: str, parameters: str, batch: int, steps: int) -> dict[str, Callable[[], Any]]:
    """`DiffusionSampler` with `DDIMStep`, of which `stoch_coeff` 1 is DDPM; only the last state is kept."""
    import jax
    import jax.numpy as jnp
    from hackable_diffusion.lib.corruption.gaussian import GaussianProcess
    from hackable_diffusion.lib.corruption.schedules import CosineSchedule
    from hackable_diffusion.lib.sampling.gaussian_step_sampler import DDIMStep
    from hackable_diffusion.lib.sampling.sampling import DiffusionSampler
    from hackable_diffusion.lib.sampling.time_scheduling import UniformTimeSchedule

    from benchmarks import networks

    net, params = networks.NETWORKS[network].net, networks.read(parameters)
    x, key = jnp.asarray(networks.inputs(network, batch)[0]), jax.random.PRNGKey(0)

    def of(stochastic: float) -> Callable[[], Any]:
        sampler = DiffusionSampler(
            time_schedule=UniformTimeSchedule(),
            stepper=DDIMStep(corruption_process=GaussianProcess(schedule=CosineSchedule()), stoch_coeff=stochastic),
            num_steps=steps + 1,
            store_trajectory=False,
        )

        def run(params: Any, key: Any, x: Any) -> Any:
            def inference(xt: Any, conditioning: Any, time: Any) -> Any:
                return {"v": net.apply(params, xt, time.reshape(batch))}

            return sampler(inference_fn=inference, rng=key, initial_noise=x)[0].xt

        compiled = jax.jit(run, compiler_options=networks.sampling_options(network, batch))
        return lambda: compiled(params, key, x)

    return {"ddim": of(0.0), "ddpm": of(1.0)}


def measure(row: Row, parameters: str, python: str, rounds: int) -> dict[str, Any] | None:
    """One case; None without the peer."""
    arguments = dict(network=row.network, parameters=parameters, batch=row.batch, steps=row.steps)
    builds = {name: (f"benchmarks.hackable:{name}", arguments) for name in ("ours", "theirs")}
    with timing.workers(python=python, **builds) as made:
        worker, peer = made["ours"], made["theirs"]
        if worker is None or peer is None:
            return None
        name = f"{row.network} ddim"
        difference = timing.check_equal(worker.output("ddim"), peer.output("ddim"), name, TRAJECTORY_TOLERANCE)
        first, second = timing.alternate_workers([(worker, row.sampler), (peer, row.sampler)], rounds=rounds)
        return {
            "ours_ms": 1e3 * timing.summary(first).median,
            "ratio": timing.ratio(first, second),
            "difference": difference,
            "first_s": worker.first[row.sampler],
            "their_first_s": peer.first[row.sampler],
        }


def write(found: list[dict[str, Any]]) -> None:
    """The table."""
    header = ["network", "batch", "sampler", "calls", "ours", "of hackable_diffusion's time", "DDIM differs by"]
    header += ["first run, ours and theirs"]
    rows = [
        [
            row["network"],
            str(row["batch"]),
            row["sampler"],
            str(row["steps"]),
            f"{row['ours_ms']:.3g} ms",
            text(row["ratio"]),
            f"{row['difference']:.0e}",
            f"{row['first_s']:.2g} s, {row['their_first_s']:.2g} s",
        ]
        for row in found
    ]
    report.write_table("hackable", header, rows)


def main() -> None:
    """Measure, and write what was found."""
    from benchmarks import networks

    options = tyro.cli(Options, description=__doc__)
    rows = [row for row in ROWS if row.network == "mlp"] if options.quick else ROWS
    found = []
    with networks.saved("mlp", "unet", "dit") as files:
        for row in rows:
            measured = measure(row, files[row.network], options.python, 3 if options.quick else 9)
            if measured is None:
                return
            found.append({**row._asdict(), **measured})
            print(found[-1], flush=True)
    if not options.quick:
        kept.write("hackable", found)
        write(found)


if __name__ == "__main__":
    main()
