"""How long until the first sample, and what compiling costs: by steps, cold, with the persistent cache, and again.

    python -m benchmarks.compile [--quick]

Compile time and temporary memory of `sample` at 10 and at 1,000 steps; whole processes that import, build a U-Net and draw 16
images, with an empty cache and with the one they left, beside diffusers; `import genjax` beside `import jax`; and how often another
number of steps within a padded grid, another seed and another scale of guidance compile anew. Processes run in turn. Writes
`benchmarks/results/compile.json` and the tables of `benchmarks/README.md`.
"""

import dataclasses
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from benchmarks import kept, report, timing
from benchmarks.sampling import text

STEPS = (10, 1000)
BATCHES = {"mlp": 1024, "unet": 16, "dit": 16}


@dataclasses.dataclass(frozen=True)
class Options:
    """Compile time and the time to the first sample."""

    quick: bool = False
    """fewer rounds: two minutes"""


def growth(rounds: int) -> list[dict[str, Any]]:
    """Compile seconds and temporary memory of `sample`, at each number of steps."""
    import jax
    import jax.numpy as jnp

    from benchmarks import networks
    from genjax import paths, predictions, samplers, times

    path = paths.ddpm(paths.linear_betas(1000))
    found = []
    for name, batch in BATCHES.items():
        net, params = networks.NETWORKS[name].net, networks.initialised(name)
        x = jnp.asarray(networks.inputs(name, batch)[0])

        def run(params: Any, key: Any, x: Any, knots: Any, net: Any = net) -> Any:
            denoise = predictions.denoiser(net.bind(params), path, predictions.noise)
            return samplers.sample(samplers.ddpm(), denoise, key, x, knots)

        seconds: dict[int, list[float]] = {steps: [] for steps in STEPS}
        memory = {}
        for attempt in range(rounds + 1):
            for steps in STEPS:
                grid = paths.knots(path, times.discrete(times.trailing_indices(1000, steps), 1000))
                function = jax.jit(
                    lambda *inputs, run=run: run(*inputs), compiler_options=networks.compiler_options(name)
                )
                start = time.perf_counter()
                compiled = function.lower(params, jax.random.key(2), x, grid).compile()
                if attempt:
                    seconds[steps].append(time.perf_counter() - start)
                memory[steps] = compiled.memory_analysis().temp_size_in_bytes
        short, long = (np.array(seconds[steps]) for steps in STEPS)
        found.append(
            {
                "network": name,
                "batch": batch,
                "compile_s": timing.summary(short),
                "ratio": timing.ratio(long, short),
                "temporary_mib": memory[STEPS[0]] / 2**20,
                "memory_ratio": memory[STEPS[1]] / memory[STEPS[0]],
            }
        )
        print(found[-1], flush=True)
    return found


def seconds_of(command: list[str], environment: dict[str, str]) -> float:
    """Of a whole process.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    start = time.perf_counter()
    subprocess.run(
        command, env=os.environ | environment, check=True, cwd=Path(__file__).parents[1], capture_output=True
    )
    return time.perf_counter() - start


def cache_in(folder: str) -> dict[str, str]:
    """The environment of a process that keeps all that it compiles in `folder`."""
    return {"JAX_COMPILATION_CACHE_DIR": folder, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


def alternating(processes: dict[str, Callable[[], float]], rounds: int) -> dict[str, timing.Timing]:
    """Seconds of each, A B A B ... after one round that fills the caches of the file system."""
    seconds: dict[str, list[float]] = {name: [] for name in processes}
    for index in range(rounds + 1):
        for name, run in processes.items():
            value = run()
            if index:
                seconds[name].append(value)
    return {name: timing.summary(np.array(values)) for name, values in seconds.items()}


def to_first_sample(rounds: int) -> dict[str, timing.Timing]:
    """Seconds of processes from start to end."""
    first = [sys.executable, "-m", "benchmarks.first_sample"]
    python = [sys.executable, "-c"]
    with tempfile.TemporaryDirectory() as kept_cache:

        def cold() -> float:
            with tempfile.TemporaryDirectory() as folder:
                return seconds_of([*first, "genjax"], cache_in(folder))

        processes: dict[str, Callable[[], float]] = {
            "genjax, without a cache": cold,
            "genjax, with the cache": lambda: seconds_of([*first, "genjax"], cache_in(kept_cache)),
            "import jax": lambda: seconds_of([*python, "import jax"], {}),
            "import genjax": lambda: seconds_of([*python, "import genjax"], {}),
        }
        try:
            seconds_of([*first, "diffusers"], {})
            processes["diffusers"] = lambda: seconds_of([*first, "diffusers"], {})
        except subprocess.CalledProcessError as failed:
            print(f"diffusers is left out: {failed.stderr.decode().splitlines()[-1]}", file=sys.stderr)
        return alternating(processes, rounds)


def recompilations() -> dict[str, int]:
    """How often one jitted sampler compiled for several values of what may change."""
    import jax
    import jax.numpy as jnp

    from benchmarks import networks
    from genjax import paths, predictions, samplers, times
    from genjax.networks.mlp import mlp

    net, path = mlp((64, 64), num_classes=3), paths.ddpm(paths.linear_betas(1000))
    x, label = jnp.asarray(networks.inputs("mlp", 8)[0]), jnp.zeros(8, jnp.int32)
    params = net.init(jax.random.key(0), x, jnp.zeros(8), label)

    def run(params: Any, key: Any, x: Any, knots: Any, scale: Any) -> Any:
        guided = samplers.classifier_free(lambda *inputs: net.apply(params, *inputs), label, jnp.int32(3), scale)
        return samplers.sample(samplers.ddpm(), predictions.denoiser(guided, path, predictions.noise), key, x, knots)

    sample = jax.jit(run)
    padded = [times.discrete(times.trailing_indices(1000, steps), 1000) for steps in (50, 20, 35)]
    grids = [paths.knots(path, jnp.pad(t, (0, 51 - len(t)), mode="edge")) for t in padded]
    key, scale = jax.random.key(0), jnp.float32(2.0)
    sample(params, key, x, grids[0], scale)
    counts = {}
    for what, changed in {
        "steps within a padded grid": [(key, grid, scale) for grid in grids],
        "seeds": [(jax.random.key(seed), grids[0], scale) for seed in range(3)],
        "guidance scales": [(key, grids[0], jnp.float32(value)) for value in (1.0, 1.5, 4.0)],
    }.items():
        before = sample._cache_size()  # type: ignore[attr-defined]
        for one_key, grid, one_scale in changed:
            sample(params, one_key, x, grid, one_scale)
        counts[what] = sample._cache_size() - before  # type: ignore[attr-defined]
    return counts


def write(found: dict[str, Any]) -> None:
    """The tables."""
    report.write_table(
        "growth",
        ["network", "trace and compile, 10 steps", "1000 / 10 steps", "temporary memory, 10 steps", "1000 / 10 steps"],
        [
            [
                f"{row['network']}, batch {row['batch']}",
                f"{row['compile_s'][0]:.2f} s",
                text(row["ratio"]),
                f"{row['temporary_mib']:.2f} MiB",
                f"{row['memory_ratio']:.3f}",
            ]
            for row in found["growth"]
        ],
    )
    report.write_table(
        "first",
        ["process", "seconds (quartiles)"],
        [[name, text(seconds)] for name, seconds in found["processes"].items()]
        + [[f"compilations for three {what}", str(count)] for what, count in found["recompilations"].items()],
    )


def main() -> None:
    """Measure, and write the tables."""
    options = tyro.cli(Options, description=__doc__)
    rounds = 2 if options.quick else 7
    found = {"processes": to_first_sample(rounds)}
    print(found["processes"], flush=True)
    import jax

    jax.config.update("jax_enable_compilation_cache", False)
    found |= {"growth": growth(rounds), "recompilations": recompilations()}
    print(found["recompilations"], flush=True)
    if not options.quick:
        kept.write("compile", found)
        write(found)


if __name__ == "__main__":
    main()
