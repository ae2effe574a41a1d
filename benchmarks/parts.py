"""What does a large batch of images cost in parts that a core's cache holds, over what it costs whole?

    python -m benchmarks.parts [--quick]

A loop of calls of each network, over the devices that share a batch of samples, as sampling calls it on this backend and as it is,
in turn; what they compute is compared. To be asked anew for another processor.
Writes `benchmarks/results/parts.json` and the table of `benchmarks/README.md`; `genjax/training/compilation.py` has the answer.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import tyro

from benchmarks import kept, report, timing
from benchmarks.sampling import bare_loop, text
from genjax.methods import network_options
from genjax.methods.network_options import NetworkOptions

CALLS, TOLERANCE = 3, 1e-4


class Case(NamedTuple):
    """A network, images, and how many."""

    network: NetworkOptions
    event_shape: tuple[int, ...]
    batch: int


CASES = (
    Case(NetworkOptions("unet", width=32), (28, 28, 1), 16),
    Case(NetworkOptions("unet", width=32), (28, 28, 1), 128),
    Case(NetworkOptions("unet", width=32), (8, 8, 1), 1024),
    Case(NetworkOptions("unet", width=64), (32, 32, 3), 64),
    Case(NetworkOptions("unet", width=64), (64, 64, 3), 32),
    Case(NetworkOptions("unet", width=128), (16, 16, 4), 128),
    Case(NetworkOptions("dit", patch=4), (28, 28, 1), 16),
    Case(NetworkOptions("dit", patch=4), (28, 28, 1), 128),
    Case(NetworkOptions("dit", patch=2), (28, 28, 1), 64),
    Case(NetworkOptions("dit", patch=7), (28, 28, 1), 256),
    Case(NetworkOptions("dit", patch=2), (8, 8, 1), 1024),
    Case(NetworkOptions("dit", width=384, patch=4), (32, 32, 3), 64),
    Case(NetworkOptions("dit", patch=8), (64, 64, 3), 64),
)
QUICK_CASES = (CASES[1], CASES[7])


@dataclasses.dataclass(frozen=True)
class Options:
    """Large batches in parts."""

    quick: bool = False
    """fewer networks and rounds"""


def measure(cases: tuple[Case, ...], rounds: int) -> list[dict[str, Any]]:
    """Ratios of the time in parts to that of whole batches, how many images a part has, and the largest differences."""
    import jax
    import jax.numpy as jnp

    from benchmarks import networks
    from genjax import cli
    from genjax.training.sharding import over_devices
    from genjax.typing import Net

    cli.use_two_devices_of_a_cpu()
    rng, found = np.random.default_rng(0), []
    for case in cases:
        options = network_options.resolve(case.network, case.event_shape)
        net, taken = network_options.make_net(options, case.event_shape, 0), []

        def watched(params: Any, x: Any, t: Any, net: Net = net, taken: list[int] = taken) -> Any:
            taken.append(len(x))
            return net.apply(params, x, t)

        x = jnp.asarray(rng.standard_normal((case.batch, *case.event_shape)), jnp.float32)
        params = networks.not_constant(net.init(jax.random.key(0), x[:1], jnp.ones(1)))
        of_sampling = network_options.sampling_options(options)
        assert of_sampling is not None
        given = *over_devices(params, x), jnp.linspace(0.1, 0.9, CALLS)
        in_parts, whole = (
            partial(bare_loop(called, of_sampling(case.batch)), *given)
            for called in (network_options.sampling_net(options, Net(net.init, watched)), net)
        )
        name = f"{options}, {'x'.join(map(str, case.event_shape))}"
        difference = timing.check_equal([np.asarray(in_parts())], [np.asarray(whole())], name, TOLERANCE)
        seconds, floor = timing.alternate([in_parts, whole], rounds=rounds, warmup=1)
        found.append(
            {
                "network": str(options),
                "event_shape": case.event_shape,
                "batch": case.batch,
                "part": taken[0],
                "ms": 1e3 * timing.summary(floor).median,
                "ratio": timing.ratio(seconds, floor),
                "difference": difference,
            }
        )
        print(found[-1], flush=True)
    return found


def write(found: list[dict[str, Any]]) -> None:
    """The table."""
    report.write_table(
        "parts",
        ["network", "images", "of", "a part, over all devices", "whole", "in parts", "they differ by"],
        [
            [
                row["network"],
                str(row["batch"]),
                "x".join(map(str, row["event_shape"])),
                str(row["part"]),
                f"{row['ms']:.3g} ms",
                text(row["ratio"]),
                f"{row['difference']:.0e}",
            ]
            for row in found
        ],
    )


def main() -> None:
    """Measure, and write the table."""
    options = tyro.cli(Options, description=__doc__)
    found = measure(QUICK_CASES, 3) if options.quick else measure(CASES, 5)
    if not options.quick:
        kept.write("parts", found)
        write(found)


if __name__ == "__main__":
    main()
