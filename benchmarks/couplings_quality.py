"""Flow matching and its couplings against the published table of [SF]2M: quality, and how near to optimal transport.

    python -m benchmarks.couplings_quality [--seeds 5] [--methods OT-CFM ...] [--data moons ...] [--quick]

As published (Tong et al. 2023, arXiv 2307.03672, tables 2 and 7): from N(0, I) to three densities in the plane; a network of
three layers of 64 SELU units that is told x and t, 8,706 parameters; AdamW at 1e-3 with weight decay 1e-5; batches of 512; 100
steps of Euler; 10,000 samples; five seeds. Two numbers: the exact 2-Wasserstein distance of the samples to fresh data, here the
mean of four draws of both a run, for one draw of the exact density varies by a fifth; and

    normalised path energy = | E integral |v(x_t, t)|^2 dt - W2^2(q0, q1) | / W2^2(q0, q1)

The data have the settings of the authors' code (github.com/atong01/conditional-flow-matching), N(0, s^2) on each axis:

    moons          2 (p + N(0, 0.05^2)) - (1, 0),     p = (cos a, sin a) or (1 - cos a, 1/2 - sin a), a in [0, pi]
    s_curve        1.5 (p + N(0, 0.05^2)),            p = (sin a, sign(a) (cos a - 1)), a in [-3 pi/2, 3 pi/2]
    eight_gaussians    N(5 (cos k pi/4, sin k pi/4), 1),    k = 0 .. 7

That code has other data of these names too. These were chosen since their floors agree with those stated for the published table:
0.028, about 0.097 and about 0.18. With variance 0.1 the eight Gaussians' floor is about 0.33 (three pairs).

Fresh moons are those of scikit-learn's `make_moons`: their angles are evenly spaced and their halves of one size.
Samples of a model are independent, and even those of the exact density are further from such a set than another such set
is. So there are two floors, each between two sets of 10,000: one set of fresh data and another; and one of fresh data and one
of independent draws of the density. W2 is given twice too: from independent starts, as published, and from starts that are
each N(0, I) but evenly spread together (Sobol points, scrambled), which shows the model with less of the noise of sampling.

What the setup leaves open, and is chosen here: 65,536 pairs of each seed, of Sobol points, formed in pools of 2,048 and
then fixed; 60,000 steps, on moons 200,000, with fresh times, spread evenly over each batch; a learning rate that falls to 0 as a
cosine; an average of the parameters. OT-CFM draws t = u^2, u uniform: optimal ways part at t = 0, where a smooth network
strays most. The energy is that of 32,768 spread starts; the W2^2 it is compared with is the mean of four assignments of 8,192
spread points. All rows but FM end at the data (no blur); FM is Lipman's path with sigma_min = 0.1, SB-CFM has sigma = 1 and
pairs of the entropic plan at regularisation 2, as in the authors' code. I-CFM has no blur either, where theirs has 0.1.

On moons 60,000 steps came first, with W2 0.069 from independent and 0.038 from spread starts over the same five seeds; 200,000 were
tried on another seed and then run on all five.

The table is made of all finished runs, which are kept in `benchmarks/results/couplings_quality.json`; so an interrupted
benchmark continues.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from scipy.special import ndtri
from scipy.stats import qmc
from sklearn.datasets import make_moons

from benchmarks import kept, report
from genjax import couplings, paths, predictions, samplers, times
from genjax.couplings import Coupling
from genjax.losses.flow_matching import Spread, bridge_matching_loss, brownian_spread, constant_spread
from genjax.metrics.energy import path_energy
from genjax.networks import mlp
from genjax.times import TimeDensity
from genjax.training import loop
from genjax.training.data import Dataset, Scaling
from genjax.training.data.dataset import host_batch
from genjax.training.steps import adamw, from_loss, new_state, with_ema
from genjax.transport import wasserstein
from genjax.typing import Array, Batch, Key, Method, Metrics, Params, State
from genjax.typing import Path as ProbabilityPath

NUM = 10_000
EULER_STEPS = 100
BATCH_SIZE = 512
POOL = 2048
NUM_POOLS = 32
EMA_DECAY = 0.999
STEPS = {"moons": 200_000, "s_curve": 60_000, "eight_gaussians": 60_000}
QUICK_SEED = 100
NUM_FOR_ENERGY = 2**15
NUM_FOR_COST = 2**13
DISPATCH = 256
DRAWS = 4


class Setting(NamedTuple):
    """What a row of the table trains with: the pairs, how far bridges stray, the path of their mean, the times."""

    coupling: Coupling
    spread: Spread
    path: ProbabilityPath
    density: TimeDensity


def _squared(density: TimeDensity) -> TimeDensity:
    return lambda key, num: density(key, num) ** 2


STRAIGHT = paths.linear()
EVEN_TIMES = times.low_discrepancy_density(STRAIGHT)
INNER_TIMES = times.low_discrepancy_density(STRAIGHT, start=0.001, end=0.999)
SETTINGS = {
    "OT-CFM": Setting(couplings.optimal, constant_spread(0.0), STRAIGHT, _squared(EVEN_TIMES)),
    "SB-CFM": Setting(couplings.entropic(2.0), brownian_spread(1.0), STRAIGHT, INNER_TIMES),
    "I-CFM": Setting(couplings.independent, constant_spread(0.0), STRAIGHT, EVEN_TIMES),
    "FM": Setting(couplings.independent, constant_spread(0.0), paths.linear(sigma_min=0.1), EVEN_TIMES),
}


def moons(u: np.ndarray) -> np.ndarray:
    """Points `[N, 2]` of the density, from uniforms `[N, 3]`."""
    angle, lower = np.pi * np.mod(2 * u[:, 0], 1), u[:, :1] >= 0.5
    upper_points = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    points = np.where(lower, [1.0, 0.5] - upper_points, upper_points)
    return 2 * (points + 0.05 * ndtri(u[:, 1:])) - [1.0, 0.0]


def s_curve(u: np.ndarray) -> np.ndarray:
    """Points `[N, 2]` of the density, from uniforms `[N, 3]`."""
    angle = 3 * np.pi * (u[:, 0] - 0.5)
    points = np.stack([np.sin(angle), np.sign(angle) * (np.cos(angle) - 1)], axis=1)
    return 1.5 * (points + 0.05 * ndtri(u[:, 1:]))


def eight_gaussians(u: np.ndarray) -> np.ndarray:
    """Points `[N, 2]` of the density, from uniforms `[N, 3]`."""
    angle = np.pi / 4 * np.floor(8 * u[:, 0])
    return 5 * np.stack([np.cos(angle), np.sin(angle)], axis=1) + ndtri(u[:, 1:])


DENSITIES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "moons": moons,
    "s_curve": s_curve,
    "eight_gaussians": eight_gaussians,
}
PUBLISHED = {
    ("moons", "OT-CFM"): (0.130, 0.083),
    ("moons", "FM"): (0.209, None),
    ("moons", "I-CFM"): (0.178, None),
    ("s_curve", "OT-CFM"): (0.144, 0.027),
    ("eight_gaussians", "OT-CFM"): (0.303, 0.031),
}
"""W2 and normalised path energy of [SF]2M, tables 2 and 7."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Flow matching and its couplings against [SF]2M."""

    seeds: int = 5
    """runs of each"""
    methods: tuple[str, ...] = tuple(SETTINGS)
    """rows of the table for each density"""
    data: tuple[str, ...] = tuple(DENSITIES)
    """densities"""
    quick: bool = False
    """one run each of a seed of its own with a twentieth of the steps; nothing is kept"""


def spread_uniforms(seed: int, num: int) -> np.ndarray:
    """`num` (a power of two) scrambled Sobol points `[num, 5]`: each uniform on the cube, evenly spread together."""
    return qmc.Sobol(5, rng=np.random.default_rng([307, seed])).random(num)


def draw_seeds(seed: int) -> list[int]:
    """Of a run's draws; even numbers are left for the floors."""
    return [2 * (DRAWS * seed + number) + 1 for number in range(DRAWS)]


def fresh(data_name: str, seed: int) -> np.ndarray:
    """10,000 points that no training has seen; of moons as scikit-learn spaces them."""
    if data_name == "moons":
        points, _ = make_moons(NUM, noise=0.05, random_state=seed)
        return 2 * points - [1.0, 0.0]
    return independent_draws(data_name, seed)


def independent_draws(data_name: str, seed: int) -> np.ndarray:
    """10,000 independent draws of the density."""
    return DENSITIES[data_name](np.random.default_rng([3672, seed]).uniform(size=(NUM, 3)))


def pairs_of(setting: Setting, data_name: str, seed: int) -> np.ndarray:
    """What a run trains on: pairs of a draw of N(0, I) and one of the density, float32 `[pools * 2048, 2, 2]`."""
    couple = jax.jit(lambda key, source, data: source[setting.coupling(key, source, data)])
    pools = []
    for index in range(NUM_POOLS):
        u = spread_uniforms(1000 * (seed + 1) + index, POOL)
        source, data = (value.astype(np.float32) for value in (ndtri(u[:, :2]), DENSITIES[data_name](u[:, 2:])))
        coupled = couple(jax.random.fold_in(jax.random.key(seed), index), source, data)
        pools.append(np.stack([np.asarray(coupled), data], axis=1))
    return np.concatenate(pools)


def method_of(setting: Setting, steps: int) -> Method:
    """The published network and optimizer; an example of it is a pair, and its samples come with their path energy."""
    net = mlp((64, 64, 64), activation=jax.nn.selu, time_features=0)
    optimizer = adamw(1e-3, steps, weight_decay=1e-5, clip_norm=0.0)
    grid = paths.knots(setting.path, times.uniform(setting.path, EULER_STEPS))
    euler = samplers.euler(setting.path)

    def init(key: Key, batch: Batch) -> State:
        run_key, net_key = jax.random.split(key)
        params = net.init(net_key, batch.data[:, 1], jnp.zeros(len(batch.data)))
        return new_state(run_key, params, optimizer.init(params))

    def loss(params: Params, key: Key, batch: Batch) -> tuple[Array, Metrics]:
        source, data = batch.data[:, 0], batch.data[:, 1]
        errors = bridge_matching_loss(
            net.bind(params),
            key,
            data,
            source,
            spread=setting.spread,
            path=setting.path,
            density=setting.density,
        )
        return jnp.mean(errors), {}

    def sample(params: Params, key: Key, num: int, *, noise: Array) -> tuple[Array, Array]:
        denoise = predictions.denoiser(net.bind(params), setting.path, predictions.velocity)
        points, states = samplers.sample(euler, denoise, key, noise, grid, trace=True)
        return points, path_energy(states, grid.t)

    return Method(init, with_ema(from_loss(loss, optimizer), EMA_DECAY), sample)


def train_and_measure(method_name: str, data_name: str, seed: int, steps: int) -> dict[str, float]:
    """W2 from independent and from spread starts to fresh data, and the mean energy."""
    setting = SETTINGS[method_name]
    pairs = host_batch(pairs_of(setting, data_name, seed), None)
    dataset = Dataset(data_name, pairs, pairs, Scaling(0.0, 1.0, 0), 0, None)
    method = method_of(setting, steps)
    state = loop.fit(method, dataset, seed, steps=steps, batch_size=BATCH_SIZE, steps_per_dispatch=DISPATCH)
    draw = jax.jit(lambda noise: method.sample(state.ema, jax.random.key(seed), len(noise), noise=noise))
    w2, w2_spread = [], []
    for draw_seed in draw_seeds(seed):
        data = fresh(data_name, draw_seed)
        starts = np.random.default_rng([100, draw_seed]).standard_normal((NUM, 2), np.float32)
        w2.append(wasserstein(draw(starts)[0], data))
        starts = ndtri(spread_uniforms(draw_seed, 2**14)[:NUM, :2]).astype(np.float32)
        w2_spread.append(wasserstein(draw(starts)[0], data))
    spread_starts = ndtri(spread_uniforms(seed, NUM_FOR_ENERGY)[:, :2]).astype(np.float32)
    parts = [np.asarray(draw(part)[1], np.float64) for part in np.split(spread_starts, 4)]
    return {
        "w2": float(np.mean(w2)),
        "w2_spread": float(np.mean(w2_spread)),
        "energy": float(np.mean(parts)),
    }


def transport_cost(data_name: str) -> float:
    """`W2^2(N(0, I), density)`: the mean of four assignments of spread points."""
    costs = []
    for seed in range(4):
        u = spread_uniforms(10**6 + seed, NUM_FOR_COST)
        costs.append(wasserstein(ndtri(u[:, :2]), DENSITIES[data_name](u[:, 2:])) ** 2)
    return float(np.mean(costs))


def floors(data_name: str, seed: int) -> dict[str, float]:
    """W2 to the fresh data of a run: of other fresh data, and of independent draws of the density."""
    between, draws = [], []
    for draw_seed in draw_seeds(seed):
        data = fresh(data_name, draw_seed)
        between.append(wasserstein(fresh(data_name, draw_seed - 1), data))
        independent = data_name != "moons"
        draws.append(between[-1] if independent else wasserstein(independent_draws(data_name, draw_seed - 1), data))
    return {"fresh": float(np.mean(between)), "draws": float(np.mean(draws))}


def mean_and_deviation(values: list[float], digits: int = 3) -> str:
    """`mean ± deviation`, or the one value."""
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.{digits}f}"


def rows_of(results: dict[str, Any]) -> list[list[str]]:
    """The table, of whatever is finished."""
    rows = []
    for data_name in DENSITIES:
        for method_name in SETTINGS:
            seeds = [
                int(name.rsplit("/", 1)[1]) for name in results if name.startswith(f"run/{data_name}/{method_name}/")
            ]
            if not seeds:
                continue
            runs = [results[f"run/{data_name}/{method_name}/{seed}"] for seed in seeds]
            floor = [results[f"floor/{data_name}/{seed}"] for seed in seeds]
            cost = results[f"cost/{data_name}"]
            w2, draws = ([run[name] for run in which] for which, name in ((runs, "w2"), (floor, "draws")))
            published_w2, published_energy = PUBLISHED.get((data_name, method_name), (None, None))
            rows.append(
                [
                    data_name,
                    method_name,
                    "" if published_w2 is None else f"{published_w2:.3f}",
                    mean_and_deviation(w2),
                    mean_and_deviation(draws),
                    f"{np.mean(w2) / np.mean(draws):.2f}",
                    mean_and_deviation([run["w2_spread"] for run in runs]),
                    mean_and_deviation([value["fresh"] for value in floor]),
                    "" if published_energy is None else f"{published_energy:.3f}",
                    mean_and_deviation([abs(run["energy"] - cost) / cost for run in runs], 4),
                    str(len(runs)),
                ]
            )
    return rows


HEADER = [
    "data",
    "method",
    "W2, published",
    "W2, independent starts",
    "floor of independent draws",
    "W2 / floor",
    "W2, spread starts",
    "floor of fresh data",
    "path energy, published",
    "path energy",
    "runs",
]


def main() -> None:
    """Measure what is not there yet and write the table."""
    options = tyro.cli(Options, description=__doc__)
    show = lambda _, name, compute: print(name, compute(), flush=True)  # noqa: E731
    keep = show if options.quick else kept.keep
    seeds, fraction = ([QUICK_SEED], 20) if options.quick else (list(range(options.seeds)), 1)
    for data_name in options.data:
        keep("couplings_quality", f"cost/{data_name}", lambda d=data_name: transport_cost(d))
        for seed in seeds:
            keep("couplings_quality", f"floor/{data_name}/{seed}", lambda d=data_name, s=seed: floors(d, s))
            for method_name in options.methods:
                keep(
                    "couplings_quality",
                    f"run/{data_name}/{method_name}/{seed}",
                    lambda m=method_name, d=data_name, s=seed: train_and_measure(m, d, s, STEPS[d] // fraction),
                )
    if not options.quick:
        report.write_table("couplings", HEADER, rows_of(kept.read("couplings_quality")))


if __name__ == "__main__":
    main()
