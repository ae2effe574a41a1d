"""What one network call costs in quality: consistency models beside the many steps of their teacher, on 2-D data.

    python -m benchmarks.one_step [--seeds 5] [--data moons ...]

A seed trains a teacher (edm), a student that distils it and a consistency model of the data alone, all with their
defaults. Each draws 4,000 samples four times; the exact 2-Wasserstein distance of each draw is to 4,000 fresh points of
its own, and the floor is that of fresh points to the same. Writes the table of `benchmarks/README.md`. Finished runs are
kept in `benchmarks/results/one_step.json`, so an interrupted benchmark continues.
"""

import dataclasses
from typing import Any

import jax
import numpy as np
import tyro

from benchmarks import kept, report
from benchmarks.trained import Trained, train
from genjax.drawing import draw, jitted_sample
from genjax.methods import consistency
from genjax.training.data import toys
from genjax.transport import wasserstein
from genjax.typing import OtherRun

NUM, DRAWS, TEACHER_STEPS = 4_000, 4, 100
ORDER = ("floor", "teacher", "distillation", "improved-training")


@dataclasses.dataclass(frozen=True)
class Options:
    """One call against many."""

    seeds: int = 5
    """runs of each"""
    data: tuple[str, ...] = ("moons", "eight_gaussians")
    """data sets"""


def fresh(data_name: str, *seeds: int) -> np.ndarray:
    """4,000 points that no training has seen, in data units."""
    points, _ = toys.GENERATORS[data_name](np.random.default_rng([2026, *seeds]), NUM)
    return points


def distances(run: Trained, data_name: str, seed: int, steps: int) -> list[float]:
    """W2 of each draw by so many steps to its own fresh points."""
    sample = jitted_sample(run.method, NUM, steps=steps)
    found = []
    for index in range(DRAWS):
        key = jax.random.fold_in(jax.random.key(seed), index)
        samples = np.asarray(run.dataset.scaling.to_data(draw(sample, run.state.ema, key, NUM, batch_size=NUM)))
        found.append(wasserstein(samples, fresh(data_name, seed, index, 0)))
    return found


def by_calls(name: str, run: Trained, data_name: str, seed: int) -> dict[str, list[float]]:
    """Distances of a consistency model by one call and by two."""
    return {f"{name}, {n} call{'s' * (n > 1)}": distances(run, data_name, seed, n) for n in (1, 2)}


def with_teacher(data_name: str, seed: int) -> dict[str, Any]:
    """Distances by name, and seconds of training: the floor, a teacher and its student."""
    teacher = train("edm", data_name, seed)
    other = OtherRun("edm", teacher.method, 0, lambda: teacher.state.ema)
    student = train("consistency", data_name, seed, config=consistency.Config(), other=other)
    return {
        "floor": [wasserstein(fresh(data_name, seed, i, 1), fresh(data_name, seed, i, 0)) for i in range(DRAWS)],
        f"teacher, {TEACHER_STEPS} steps": distances(teacher, data_name, seed, TEACHER_STEPS),
        **by_calls("distillation", student, data_name, seed),
        "seconds": {"teacher": teacher.seconds, "distillation": student.seconds},
    }


def alone(data_name: str, seed: int) -> dict[str, Any]:
    """The same of a consistency model that learns from the data."""
    run = train("consistency", data_name, seed, config=consistency.Config(recipe="improved-training"))
    name = "improved-training"
    return {**by_calls(name, run, data_name, seed), "seconds": {name: run.seconds}}


def main() -> None:
    """Measure what is not there yet and write the table."""
    options = tyro.cli(Options, description=__doc__)
    rows = []
    for data_name in options.data:
        runs = []
        for seed in range(options.seeds):
            both: dict[str, Any] = {"seconds": {}}
            for part in (with_teacher, alone):
                name = f"{data_name}/{part.__name__}/{seed}"
                found = kept.keep("one_step", name, lambda part=part, d=data_name, s=seed: part(d, s))
                both = {**both, **found, "seconds": {**both["seconds"], **found["seconds"]}}
            runs.append(both)
        floor = np.mean([run["floor"] for run in runs])
        for what in sorted(
            (name for name in runs[0] if name != "seconds"), key=lambda name: ORDER.index(name.split(",")[0])
        ):
            of_seed = np.mean([run[what] for run in runs], axis=1)
            error = f" ± {of_seed.std(ddof=1) / len(runs) ** 0.5:.4f}" if len(runs) > 1 else ""
            seconds = [run["seconds"].get(what.split(",")[0], 0) for run in runs]
            over = [f"{of_seed.mean() - floor:.4f}", f"{np.median(seconds) / 60:.1f}"] if what != "floor" else ["", ""]
            rows.append([data_name, what, f"{of_seed.mean():.4f}{error}", *over])
    header = ["data", "samples", "W2 (mean ± standard error of the seeds)", "over the floor", "minutes of training"]
    report.write_table("one_step", header, rows)


if __name__ == "__main__":
    main()
