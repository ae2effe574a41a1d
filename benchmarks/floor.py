"""What sampling costs beyond its network: time, compile time and memory of `sample` against a scan of the bare network.

    python -m benchmarks.floor [--quick]

The floor is a `lax.scan` of the network alone over the same number of calls at the same batch, under the same compiler
options. Ratios are taken round by round in one process, alternating. Writes the table of `benchmarks/README.md`.
"""

import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import tyro

from benchmarks import report, timing
from genjax import paths, predictions, samplers, times
from genjax.methods import network_options
from genjax.methods.network_options import NetworkOptions


@dataclasses.dataclass(frozen=True)
class Options:
    """Sampling over the floor."""

    quick: bool = False
    """fewer rounds"""


CASES = [
    ("2-D MLP 4x256", (2,), NetworkOptions(), 1, 1000),
    ("2-D MLP 4x256", (2,), NetworkOptions(), 1024, 100),
    ("U-Net 28x28, base 32", (28, 28, 1), NetworkOptions(network="unet", width=32), 16, 10),
]


def _setup(event_shape: tuple[int, ...], options: NetworkOptions, batch: int) -> tuple[Any, Any, Any, Any]:
    resolved = network_options.resolve(options, event_shape)
    net = network_options.make_net(resolved, event_shape, 0)
    x = jax.random.normal(jax.random.key(0), (batch, *event_shape))
    params = net.init(jax.random.key(1), x, jnp.zeros(batch))
    return net, params, x, network_options.compiler_options(resolved)


def _sampling(net: Any, sampler: str, path: Any, compiler_options: Any) -> Any:
    def run(params: Any, key: Any, x: Any, knots: Any) -> Any:
        denoise = predictions.denoiser(net.bind(params), path, predictions.noise)
        return samplers.sample(samplers.SAMPLERS[sampler](path), denoise, key, x, knots)

    return jax.jit(run, compiler_options=compiler_options)


def _bare(net: Any, compiler_options: Any) -> Any:
    def run(params: Any, x: Any, t: Any) -> Any:
        def body(x: Any, t: Any) -> tuple[Any, None]:
            return net.apply(params, x, jnp.broadcast_to(t, x.shape[:1])), None

        return jax.lax.scan(body, x, t)[0]

    return jax.jit(run, compiler_options=compiler_options)


def time_rows(rounds: int) -> list[list[str]]:
    """Ratio of each sampler's time to the floor's, for each case."""
    path = paths.ddpm(paths.linear_betas(1000))
    rows = []
    for name, event_shape, options, batch, steps in CASES:
        net, params, x, compiler_options = _setup(event_shape, options, batch)
        grid = paths.knots(path, times.discrete(times.trailing_indices(1000, steps), 1000))
        key = jax.random.key(2)
        for sampler in ("ddim", "ddpm"):
            ours = functools.partial(_sampling(net, sampler, path, compiler_options), params, key, x, grid)
            floor = functools.partial(_bare(net, compiler_options), params, x, grid.t[:-1])
            seconds = timing.alternate([ours, floor], rounds=rounds)
            measured, per_call = timing.ratio(*seconds), timing.summary(seconds[1]).median / steps
            rows.append(
                [
                    f"{name}, batch {batch}, {steps} steps",
                    sampler,
                    f"{1e3 * per_call:.3g} ms",
                    f"{measured.median:.2f} ({measured.low:.2f} to {measured.high:.2f})",
                ]
            )
            print(" | ".join(rows[-1]), flush=True)
    return rows


def growth_rows() -> list[list[str]]:
    """Compile time and temporary memory of `sample` at 10 and at 1000 steps."""
    path = paths.ddpm(paths.linear_betas(1000))
    rows = []
    for name, event_shape, options, batch, _ in CASES[1:]:
        net, params, x, compiler_options = _setup(event_shape, options, batch)
        seconds: dict[int, list[float]] = {10: [], 1000: []}
        memory = {}
        for attempt in range(4):
            for steps in (10, 1000):
                grid = paths.knots(path, times.discrete(times.trailing_indices(1000, steps), 1000))
                lowered = _sampling(net, "ddpm", path, compiler_options).lower(params, jax.random.key(2), x, grid)
                start = time.perf_counter()
                compiled = lowered.compile()
                if attempt:
                    seconds[steps].append(time.perf_counter() - start)
                memory[steps] = compiled.memory_analysis().temp_size_in_bytes
        compile_seconds = {steps: min(values) for steps, values in seconds.items()}
        rows.append(
            [
                f"{name}, batch {batch}",
                f"{compile_seconds[10]:.2f} s",
                f"{compile_seconds[1000] / compile_seconds[10]:.2f}",
                f"{memory[10] / 2**20:.2f} MiB",
                f"{memory[1000] / memory[10]:.3f}",
            ]
        )
        print(" | ".join(rows[-1]), flush=True)
    return rows


def main() -> None:
    """Measure and write the tables."""
    options = tyro.cli(Options)
    jax.config.update("jax_enable_compilation_cache", False)
    rounds = 5 if options.quick else 15
    report.write_table(
        "floor",
        ["network", "sampler", "one network call", "time over the floor (quartiles)"],
        time_rows(rounds),
    )
    report.write_table(
        "growth",
        ["network", "compile, 10 steps", "1000 / 10 steps", "temporary memory, 10 steps", "1000 / 10 steps"],
        growth_rows(),
    )


if __name__ == "__main__":
    main()
