"""Which compiler options does a kind of network want? To be asked anew for each version of jaxlib.

    python -m benchmarks.options [--quick]

A loop of calls of each network, over the devices that share a batch of samples, and the gradient of its mean square, on one
device and over those, by XLA's defaults, without the library that runs its fused convolutions and products on CPU, with wide
vectors, and with both, in turn; what they compute is compared.
Writes `benchmarks/results/options.json` and the table of `benchmarks/README.md`; `genjax/training/compilation.py` has the answer.
"""

import dataclasses
from functools import partial
from typing import Any

import numpy as np
import tyro

from benchmarks import kept, report, timing
from benchmarks.sampling import bare_loop, text

CASES = (("mlp", 64), ("mlp", 1024), ("mlp", 4096), ("dit", 16), ("unet", 1), ("unet", 16), ("unet", 64))
QUICK_CASES = (("mlp", 64), ("unet", 1))
CALLS, LOOP_TOLERANCE, GRADIENT_TOLERANCE = 5, 1e-4, 1e-5
OPTIONS = ("without YNN", "wide vectors", "both")


@dataclasses.dataclass(frozen=True)
class Options:
    """Compiler options by network."""

    quick: bool = False
    """fewer networks and rounds"""


def measure(cases: tuple[tuple[str, int], ...], rounds: int) -> list[dict[str, Any]]:
    """Ratios of the time with the option to that by default, and the largest differences."""
    import jax
    import jax.numpy as jnp

    from benchmarks import networks
    from genjax import cli
    from genjax.environment import use_one_kernel_for_small_loops
    from genjax.training.compilation import LOOPS_AS_THEY_COME, WIDE_VECTORS, WITHOUT_YNN
    from genjax.training.sharding import over_devices

    use_one_kernel_for_small_loops()
    cli.use_two_devices_of_a_cpu()
    without_ynn = WITHOUT_YNN | LOOPS_AS_THEY_COME
    compared = (None, without_ynn, WIDE_VECTORS, without_ynn | WIDE_VECTORS)
    found = []
    for name, batch in cases:
        net, params = networks.NETWORKS[name].net, networks.initialised(name)
        x, t = (jnp.asarray(values) for values in networks.inputs(name, batch))

        def gradient(params: Any, x: Any, t: Any, net: Any = net) -> Any:
            return jax.grad(lambda params: jnp.mean(net.apply(params, x, t) ** 2))(params)

        loops = [
            partial(bare_loop(net, options), *over_devices(params, x), jnp.resize(t, CALLS)) for options in compared
        ]
        compiled = [jax.jit(lambda *given, of=gradient: of(*given), compiler_options=options) for options in compared]
        gradients, shared = (
            [partial(function, *given) for function in compiled]
            for given in ((params, x, t), over_devices(params, x, t))
        )
        timed = [(f"{CALLS} calls", loops, LOOP_TOLERANCE), ("gradient", gradients, GRADIENT_TOLERANCE)]
        if batch > 1:
            timed.append(("gradient, devices share it", shared, GRADIENT_TOLERANCE))
        for what, calls, tolerance in timed:
            one, *others = ([np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(call())] for call in calls)
            difference = max(timing.check_equal(one, other, f"{what} of {name}", tolerance) for other in others)
            by_default, *with_options = timing.alternate(calls, rounds=rounds)
            found.append(
                {
                    "network": networks.NETWORKS[name].title,
                    "batch": batch,
                    "what": what,
                    "ms": 1e3 * timing.summary(by_default).median,
                    "ratios": [timing.ratio(seconds, by_default) for seconds in with_options],
                    "difference": difference,
                }
            )
            print(found[-1], flush=True)
    return found


def write(found: list[dict[str, Any]]) -> None:
    """The table."""
    header = ["network", "batch", "what", "by default", *OPTIONS, "they differ by"]
    report.write_table(
        "options",
        header,
        [
            [
                row["network"],
                str(row["batch"]),
                row["what"],
                f"{row['ms']:.3g} ms",
                *(text(ratio) for ratio in row["ratios"]),
                f"{row['difference']:.0e}",
            ]
            for row in found
        ],
    )


def main() -> None:
    """Measure, and write the table."""
    options = tyro.cli(Options, description=__doc__)
    found = measure(QUICK_CASES, 3) if options.quick else measure(CASES, 15)
    if not options.quick:
        kept.write("options", found)
        write(found)


if __name__ == "__main__":
    main()
