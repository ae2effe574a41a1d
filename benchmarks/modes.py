"""Whether default training finds every mode of a mixture of narrow Gaussians: PacGAN's ring and grid.

    python -m benchmarks.modes [--seeds 5] [--data ring8 grid25] [--methods gan]

Each run trains with the method's own defaults and draws 100,000 samples; what is counted is defined in
`genjax.metrics.modes`. Exact samples of the mixtures are counted beside them. Writes the table of `benchmarks/README.md`.
Finished runs are kept in `benchmarks/results/modes.json`: an interrupted benchmark continues, and the table has all of them.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks import kept, report
from benchmarks.trained import train
from genjax.drawing import draw, jitted_sample
from genjax.metrics.modes import mode_coverage
from genjax.training.data import toys

NUM = 100_000
BATCH = 2500
EXACT = "exact samples"


@dataclasses.dataclass(frozen=True)
class Options:
    """Mode coverage."""

    seeds: int = 5
    """runs of each, seeds 0, 1, ..."""
    data: tuple[str, ...] = ("ring8", "grid25")
    """data sets, of those that are mixtures"""
    methods: tuple[str, ...] = ("gan",)
    """methods"""


def train_and_measure(method_name: str, data_name: str, seed: int) -> dict[str, float]:
    """Mode coverage of a run's samples, and its training time."""
    method, dataset, state, seconds = train(method_name, data_name, seed)
    samples = draw(jitted_sample(method, BATCH), state.ema, jax.random.key(seed), NUM, batch_size=BATCH)
    return {**measure(data_name, np.asarray(dataset.scaling.to_data(samples))), "train_seconds": seconds}


def measure(data_name: str, samples: np.ndarray) -> dict[str, float]:
    """Mode coverage of samples in data units."""
    mixture = toys.MIXTURES[data_name]
    means = jnp.asarray(mixture.means, jnp.float32)
    modes = mode_coverage(jnp.asarray(samples), means, deviation=float(mixture.deviations[0]))
    return {
        "found": int(modes.found),
        "high_quality": float(modes.high_quality),
        "divergence": float(modes.divergence),
        "least_deviation": float(np.min(modes.deviations)),
        "greatest_deviation": float(np.max(modes.deviations)),
    }


def exact(data_name: str, seed: int) -> dict[str, float]:
    """Mode coverage of exact samples."""
    points, _ = toys.GENERATORS[data_name](np.random.default_rng([2026, seed]), NUM)
    return measure(data_name, points)


def _row(data_name: str, method_name: str, seed: str, run: dict[str, float]) -> list[str]:
    minutes = f"{run['train_seconds'] / 60:.1f}" if "train_seconds" in run else ""
    return [
        data_name,
        method_name,
        "" if method_name == EXACT else seed,
        f"{run['found']} of {len(toys.MIXTURES[data_name].means)}",
        f"{100 * run['high_quality']:.1f} %",
        f"{run['divergence']:.4f}",
        f"{run['least_deviation']:.2f} to {run['greatest_deviation']:.2f}",
        minutes,
    ]


def main() -> None:
    """Measure what was asked for and is not there yet; the table has every run that is."""
    options = tyro.cli(Options, description=__doc__)
    for data_name in options.data:
        kept.keep("modes", f"{EXACT}/{data_name}/0", lambda d=data_name: exact(d, 0))
        for method_name in options.methods:
            for seed in range(options.seeds):
                kept.keep(
                    "modes",
                    f"{method_name}/{data_name}/{seed}",
                    lambda m=method_name, d=data_name, s=seed: train_and_measure(m, d, s),
                )
    found = {tuple(name.split("/")): run for name, run in kept.read("modes").items()}
    order = sorted(found, key=lambda name: (name[1], name[0] != EXACT, name[0], int(name[2])))
    rows = [
        _row(data_name, method_name, seed, found[method_name, data_name, seed])
        for method_name, data_name, seed in order
    ]
    header = [
        "data",
        "method",
        "seed",
        "modes",
        "high quality",
        "KL to uniform, nats",
        "deviation of a mode / exact",
        "minutes",
    ]
    report.write_table("modes", header, rows)


if __name__ == "__main__":
    main()
