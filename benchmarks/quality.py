"""How good default training is on 2-D data: exact 2-Wasserstein distance to fresh data, beside the floor.

    python -m benchmarks.quality [--seeds 5] [--data moons ...] [--methods ddpm ...]

Each run trains with the method's own defaults, draws 10,000 samples with its default sampler and solves the
assignment problem against 10,000 fresh points exactly. The floor is the distance of two fresh sets of that size.
Writes the table of `benchmarks/README.md`. Finished runs are kept in `benchmarks/results/quality.json`, so an
interrupted benchmark continues.
"""

import dataclasses
import time

import jax
import numpy as np
import tyro

from benchmarks import kept, report
from benchmarks.trained import train
from genjax.drawing import draw, jitted_sample
from genjax.training.data import toys
from genjax.transport import wasserstein

NUM = 10_000
BATCH = 2500


@dataclasses.dataclass(frozen=True)
class Options:
    """Trained quality on 2-D data."""

    seeds: int = 5
    """runs of each"""
    data: tuple[str, ...] = ("moons", "eight_gaussians")
    """data sets"""
    methods: tuple[str, ...] = ("flow-matching", "ddpm")
    """methods"""


def train_and_measure(method_name: str, data_name: str, seed: int) -> dict[str, float]:
    """W2 of a run's samples, its training time and its sampling time."""
    method, dataset, state, seconds = train(method_name, data_name, seed)
    start = time.perf_counter()
    samples = draw(jitted_sample(method, BATCH), state.ema, jax.random.key(seed), NUM, batch_size=BATCH)
    drawn = time.perf_counter()
    samples = np.asarray(dataset.scaling.to_data(samples))
    return {
        "w2": wasserstein(samples, fresh(data_name, 2 * seed + 1)),
        "train_seconds": seconds,
        "sample_seconds": drawn - start,
    }


def fresh(data_name: str, seed: int) -> np.ndarray:
    """10,000 points that no training has seen, in data units."""
    points, _ = toys.GENERATORS[data_name](np.random.default_rng([2026, seed]), NUM)
    return points


def main() -> None:
    """Measure what is not there yet and write the table."""
    options = tyro.cli(Options, description=__doc__)
    rows = []
    for data_name in options.data:
        floors = [
            kept.keep(
                "quality",
                f"floor/{data_name}/{seed}",
                lambda d=data_name, s=seed: wasserstein(fresh(d, 2 * s), fresh(d, 2 * s + 1)),
            )
            for seed in range(options.seeds)
        ]
        for method_name in options.methods:
            runs = [
                kept.keep(
                    "quality",
                    f"{method_name}/{data_name}/{seed}",
                    lambda m=method_name, d=data_name, s=seed: train_and_measure(m, d, s),
                )
                for seed in range(options.seeds)
            ]
            w2 = [run["w2"] for run in runs]
            minutes = np.median([run["train_seconds"] for run in runs]) / 60
            rows.append(
                [
                    data_name,
                    method_name,
                    f"{np.mean(w2):.3f} ± {np.std(w2, ddof=1):.3f}",
                    f"{max(w2):.3f}",
                    f"{np.mean(floors):.3f} ± {np.std(floors, ddof=1):.3f}",
                    f"{minutes:.1f}",
                ]
            )
    header = ["data", "method", "W2 (mean ± deviation of the runs)", "worst run", "floor", "minutes of training"]
    report.write_table("quality", header, rows)


if __name__ == "__main__":
    main()
