"""How close exact-likelihood models come to the truth on 2-D data: nats above the entropy on fresh points.

    python -m benchmarks.likelihood [--methods spline-flow ...] [--data rings ...] [--seeds 1]

Each run trains with the method's own defaults and is scored on 40,000 points that no training has seen. The gap is its
negative log-likelihood less the entropy of the data; its standard error is that of the mean over the points. A gap
below zero by more than three of them would be an error of the density. Writes the table of `benchmarks/README.md`.
Finished runs are kept in `benchmarks/results/likelihood.json`, so an interrupted benchmark continues.
"""

import dataclasses
from typing import Any

import jax
import numpy as np
import tyro

from benchmarks import kept, report
from benchmarks.trained import train
from genjax.training.data import Scaling, toys

NUM = 40_000
ENTROPY = {
    "eight_gaussians": 2.832,
    "checkerboard": 3.466,
    "two_spirals": 2.645,
    "swiss_roll": 2.670,
    "rings": 2.623,
    "moons": 1.008,
}
"""Nats, by quadrature (`genjax/training/data/toys.py`)."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Negative log-likelihood on 2-D data."""

    methods: tuple[str, ...] = ("spline-flow", "realnvp", "made")
    """methods"""
    data: tuple[str, ...] = tuple(ENTROPY)
    """data sets"""
    seeds: int = 1
    """runs of each"""


def train_and_score(method_name: str, data_name: str, seed: int) -> dict[str, float]:
    """Nats on fresh points in data units, their standard error, and the seconds of training."""
    method, dataset, state, seconds = train(method_name, data_name, seed)
    fresh, _ = toys.GENERATORS[data_name](np.random.default_rng([2026, seed]), NUM)
    log_prob = jax.jit(lambda x: method.log_prob(state.ema, jax.random.key(0), x))
    return {**score(log_prob, dataset.scaling, fresh, parts=10), "train_seconds": seconds}


def score(log_density: Any, scaling: Scaling, points: np.ndarray, *, parts: int) -> dict[str, float]:
    """Nats in data units of `points [N, D]` by a density in model units, so many parts at a time, and their standard error."""
    in_model_units = np.split(np.asarray(scaling.to_model(points)), parts)
    nats = -np.concatenate([np.asarray(log_density(part), np.float64) for part in in_model_units])
    nats += np.sum(np.log(np.asarray(scaling.scale, np.float64)))
    return {"nats": nats.mean(), "error": nats.std() / len(nats) ** 0.5}


def main() -> None:
    """Measure what is not there yet and write the table."""
    options = tyro.cli(Options, description=__doc__)
    rows = []
    for data_name in options.data:
        for method_name in options.methods:
            runs = []
            for seed in range(options.seeds):
                name = f"{method_name}/{data_name}/{seed}"
                run = kept.keep("likelihood", name, lambda m=method_name, d=data_name, s=seed: train_and_score(m, d, s))
                print(f"gap {run['nats'] - ENTROPY[data_name]:.4f}", flush=True)
                runs.append(run)
            nats = np.array([run["nats"] for run in runs])
            rows.append(
                [
                    data_name,
                    method_name,
                    f"{nats.mean():.3f}",
                    f"{ENTROPY[data_name]:.3f}",
                    ", ".join(f"{value - ENTROPY[data_name]:.4f}" for value in nats),
                    f"{max(run['error'] for run in runs):.4f}",
                    f"{np.median([run['train_seconds'] for run in runs]) / 60:.1f}",
                ]
            )
    header = ["data", "method", "nats", "entropy", "gap of each run", "standard error", "minutes of training"]
    report.write_table("likelihood", header, rows)


if __name__ == "__main__":
    main()
