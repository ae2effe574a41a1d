"""What pairing a batch costs: exact assignment and entropic plans, from 128 to 4,096 points.

    python -m benchmarks.couplings [--quick]

Squared distances of points of N(0, I) to a mixture of eight Gaussians, in 2 and in 64 dimensions. Exact: `couplings.optimal` under
`jit` beside the network simplex of POT and SciPy's assignment alone; the costs of their pairs are compared. Entropic:
`transport.sinkhorn` beside ott-jax and POT in the log domain, at a regularisation of 0.05 of the mean cost until the marginals
deviate by 1e-3 in total; what each reached is in the table. Each library has a process of its own; they run in turn. Writes
`benchmarks/results/couplings.json`, the table of `benchmarks/README.md` and a figure.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tyro

from benchmarks import kept, report, timing
from benchmarks.sampling import text

REGULARISATION, TOLERANCE, ITERATIONS = 0.05, 1e-3, 2000
MOST_FOR_SLOW = 1024
"""Points up to which POT's entropic plan and SciPy's assignment are timed: beyond, one takes up to minutes."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Couplings beside POT and ott-jax."""

    quick: bool = False
    """up to 512 points, fewer rounds: less than two minutes"""


def points(num: int, dimension: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise and data, float32."""
    rng = np.random.default_rng(num)
    angles = np.pi / 4 * rng.integers(0, 8, num)
    data = 0.3 * rng.standard_normal((num, dimension))
    data[:, :2] += 3 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return rng.standard_normal((num, dimension), np.float32), data.astype(np.float32)


def squared_distances(x: Any, y: Any) -> Any:
    """`[n, n]` of JAX arrays."""
    return (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1)[None] - 2 * x @ y.T


def deviation(plan: np.ndarray) -> float:
    """Of both marginals, in total."""
    num = len(plan)
    return float(max(np.abs(plan.sum(axis) - 1 / num).sum() for axis in (0, 1)))


def ours(num: int, dimension: int) -> dict[str, Callable[[], Any]]:
    """Both couplings of the package; "cost" of the exact pairs, and "reached", cost and deviation of the plan."""
    import jax
    import jax.numpy as jnp

    from genjax import couplings, transport

    noise, data = (jnp.asarray(values) for values in points(num, dimension))
    key, optimal = jax.random.key(0), jax.jit(couplings.optimal)

    @jax.jit
    def plan(noise: Any, data: Any) -> Any:
        costs = squared_distances(data, noise)
        solved = transport.sinkhorn(
            costs, regularisation=REGULARISATION * jnp.mean(costs), tolerance=TOLERANCE, max_iterations=ITERATIONS
        )
        return solved.log_plan, jnp.sum(jnp.exp(solved.log_plan) * costs)

    def cost() -> float:
        return float(jnp.mean(jnp.sum((noise[optimal(key, noise, data)] - data) ** 2, axis=1)))

    def reached() -> list[float]:
        log_plan, value = plan(noise, data)
        return [float(value), deviation(np.exp(np.asarray(log_plan, np.float64)))]

    return {
        "exact": lambda: optimal(key, noise, data),
        "entropic": lambda: plan(noise, data)[0],
        "cost": cost,
        "reached": reached,
    }


def with_pot(num: int, dimension: int) -> dict[str, Callable[[], Any]]:
    """POT as torchcfm calls it: double precision, distances included."""
    import ot
    from scipy.optimize import linear_sum_assignment

    noise, data = (values.astype(np.float64) for values in points(num, dimension))
    weights = np.full(num, 1 / num)

    def exact() -> np.ndarray:
        plan: np.ndarray = ot.emd(weights, weights, ot.dist(data, noise), numItermax=10**7)
        return plan

    def entropic() -> np.ndarray:
        costs = ot.dist(data, noise)
        plan: np.ndarray = ot.bregman.sinkhorn_log(
            weights, weights, costs, REGULARISATION * costs.mean(), stopThr=TOLERANCE / num**0.5, numItermax=ITERATIONS
        )
        return plan

    def reached() -> list[float]:
        plan = entropic()
        return [float(np.sum(plan * ot.dist(data, noise))), deviation(plan)]

    return {
        "exact": exact,
        "entropic": entropic,
        "scipy": lambda: linear_sum_assignment(ot.dist(data, noise))[1],
        "cost": lambda: float(np.sum(exact() * ot.dist(data, noise))),
        "reached": reached,
    }


def with_ott(num: int, dimension: int) -> dict[str, Callable[[], Any]]:
    """ott-jax under `jit`."""
    import jax
    import jax.numpy as jnp
    from ott.geometry import pointcloud
    from ott.problems.linear import linear_problem
    from ott.solvers.linear import sinkhorn

    noise, data = (jnp.asarray(values) for values in points(num, dimension))
    solver = sinkhorn.Sinkhorn(threshold=TOLERANCE, max_iterations=ITERATIONS)

    @jax.jit
    def plan(noise: Any, data: Any) -> Any:
        geometry = pointcloud.PointCloud(data, noise, epsilon=REGULARISATION * jnp.mean(squared_distances(data, noise)))
        matrix = solver(linear_problem.LinearProblem(geometry)).matrix
        return matrix, jnp.sum(matrix * geometry.cost_matrix)

    def reached() -> list[float]:
        matrix, value = plan(noise, data)
        return [float(value), deviation(np.asarray(matrix, np.float64))]

    return {"entropic": lambda: plan(noise, data)[0], "reached": reached}


def ratios(ours: str, others: tuple[str, ...], seconds: dict[str, np.ndarray]) -> dict[str, timing.Timing]:
    """Of our time to each of the others that were measured."""
    return {name: timing.ratio(seconds[ours], seconds[name]) for name in others if name in seconds}


def measure(sizes: tuple[int, ...], rounds: int) -> list[dict[str, Any]]:
    """Every size in both dimensions."""
    found = []
    for dimension in (2, 64):
        for num in sizes:
            arguments = dict(num=num, dimension=dimension)
            builds = {name: (f"benchmarks.couplings:{name}", arguments) for name in ("ours", "with_pot", "with_ott")}
            with timing.workers(**builds) as made:
                worker, pot, ott = made["ours"], made["with_pot"], made["with_ott"]
                assert worker is not None
                calls = {"exact": (worker, "exact"), "entropic": (worker, "entropic")}
                if pot is not None:
                    timing.check_equal(worker.output("cost"), pot.output("cost"), f"cost of {num} pairs", 1e-4)
                    calls |= {"emd": (pot, "exact")}
                    if num <= MOST_FOR_SLOW:
                        calls |= {"scipy": (pot, "scipy"), "pot": (pot, "entropic")}
                if ott is not None:
                    calls["ott"] = (ott, "entropic")
                measured = timing.alternate_workers(list(calls.values()), rounds=rounds if num <= MOST_FOR_SLOW else 3)
                seconds = dict(zip(calls, measured, strict=True))
                reached = {
                    name: [float(value) for value in one.output("reached")]
                    for name, one in (("ours", worker), ("pot", pot), ("ott", ott))
                    if one is not None and (name != "pot" or num <= MOST_FOR_SLOW)
                }
            found.append(
                {
                    **arguments,
                    "ms": {name: 1e3 * timing.summary(values).median for name, values in seconds.items()},
                    "exact_of": {
                        name: timing.ratio(seconds["exact"], seconds[name])
                        for name in ("emd", "scipy")
                        if name in calls
                    },
                    "entropic_of": {
                        name: timing.ratio(seconds["entropic"], seconds[name])
                        for name in ("pot", "ott")
                        if name in calls
                    },
                    "reached": reached,
                }
            )
            print(found[-1], flush=True)
    return found


def write(found: list[dict[str, Any]]) -> None:
    """The table and the figure."""
    from matplotlib.figure import Figure

    header = [
        "dimension",
        "points",
        "exact",
        "of POT's time",
        "of SciPy's",
        "entropic",
        "of ott-jax's time",
        "of POT's",
    ]
    report.write_table(
        "pairing",
        [*header, "marginals off by, ours, ott-jax, POT"],
        [
            [
                str(row["dimension"]),
                str(row["num"]),
                f"{row['ms']['exact']:.3g} ms",
                text(row["exact_of"].get("emd")),
                text(row["exact_of"].get("scipy")),
                f"{row['ms']['entropic']:.3g} ms",
                text(row["entropic_of"].get("ott")),
                text(row["entropic_of"].get("pot")),
                ", ".join(
                    f"{row['reached'][name][1]:.0e}" for name in ("ours", "ott", "pot") if name in row["reached"]
                ),
            ]
            for row in found
        ],
    )
    titles = {
        "exact": "exact, genjax",
        "emd": "exact, POT",
        "scipy": "exact, SciPy",
        "entropic": "entropic, genjax",
        "ott": "entropic, ott-jax",
        "pot": "entropic, POT",
    }
    colours = {"genjax": "C0", "POT": "C1", "SciPy": "C2", "ott-jax": "C3"}
    sizes = sorted({row["num"] for row in found})
    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    for axes, dimension in zip(figure.subplots(1, 2, sharey=True), (2, 64), strict=True):
        rows = [row for row in found if row["dimension"] == dimension]
        for name, title in titles.items():
            known = [row for row in rows if name in row["ms"]]
            library = title.split()[-1]
            style = {"color": colours[library], "linestyle": "-" if title.startswith("exact") else "--"}
            axes.loglog(
                [row["num"] for row in known],
                [row["ms"][name] for row in known],
                marker="o",
                markersize=4,
                label=title,
                **style,
            )
        axes.set_title(f"{dimension} dimensions")
        axes.set_xlabel("points")
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.minorticks_off()
        axes.grid(visible=True, color="#e5e5e5")
    figure.axes[0].set_ylabel("ms")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.savefig(report.README.parents[1] / "docs" / "images" / "couplings.png", dpi=120)


def main() -> None:
    """Measure, and write the table."""
    options = tyro.cli(Options, description=__doc__)
    sizes = (128, 256, 512) if options.quick else (128, 256, 512, 1024, 2048, 4096)
    found = measure(sizes, 3 if options.quick else 7)
    if not options.quick:
        kept.write("couplings", found)
        write(found)


if __name__ == "__main__":
    main()
