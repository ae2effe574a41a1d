"""What maximum likelihood and flow matching make of one network: nats on fresh points, and what training costs.

    python -m benchmarks.continuous_flows [--data moons ...] [--methods cnf flow-matching] [--seeds 1]

Both methods train the same network as the velocity of an ODE from noise to data: `cnf` through the solver by its own
defaults, flow matching by its own defaults without one. Each is scored on the same 40,000 points that no training has
seen by the same solve: an ODE an example, exact trace, tolerance 1e-5. Writes the table of `benchmarks/README.md`.
Finished runs are kept in `benchmarks/results/continuous_flows.json`, so an interrupted benchmark continues.
"""

import dataclasses

import jax
import numpy as np
import tyro

from benchmarks import kept, report
from benchmarks.likelihood import ENTROPY, NUM, score
from benchmarks.trained import train
from genjax import continuous_flows
from genjax.continuous_flows import Solver
from genjax.methods import METHODS, cnf, network_options
from genjax.methods.network_options import NetworkOptions
from genjax.training import data
from genjax.training.data import toys
from genjax.typing import Array


@dataclasses.dataclass(frozen=True)
class Options:
    """One network, trained by maximum likelihood and by flow matching."""

    data: tuple[str, ...] = ("moons",)
    """data sets"""
    methods: tuple[str, ...] = ("cnf", "flow-matching")
    """methods"""
    seeds: int = 1
    """runs of each"""


def train_and_score(method_name: str, data_name: str, seed: int) -> dict[str, float]:
    """Nats on fresh points in data units, their standard error, the seconds and steps of training, and of the solver."""
    examples = data.load(data_name).examples
    own = cnf.resolve(cnf.Config(), examples)
    network = NetworkOptions(network="mlp", width=own.width, depth=own.depth)
    config = own if method_name == "cnf" else METHODS[method_name].Config(network=network)
    _, dataset, state, seconds = train(method_name, data_name, seed, config=config)
    recommended = METHODS[method_name].recommended(examples)
    model = network_options.make_net(network, examples.event_shape, 0).bind(state.ema)

    def each(x: Array) -> Array:
        return continuous_flows.log_density(model, x[None], solver=Solver(1e-5))[0]

    def steps_of(x: Array) -> Array:
        return continuous_flows.flow_and_log_det(model, x[None], start=1.0, stop=0.0, solver=Solver(1e-5)).steps

    fresh, _ = toys.GENERATORS[data_name](np.random.default_rng([2026, seed]), NUM)
    log_density, solver_steps = jax.jit(jax.vmap(each)), jax.jit(jax.vmap(steps_of))
    return {
        **score(log_density, dataset.scaling, fresh, parts=20),
        "train_seconds": seconds,
        "train_steps": recommended.steps,
        "batch_size": recommended.batch_size,
        "solver_steps": float(np.mean(solver_steps(dataset.scaling.to_model(fresh[: NUM // 20])))),
    }


def main() -> None:
    """Measure what is not there yet and write the table."""
    options = tyro.cli(Options, description=__doc__)
    rows = []
    for data_name in options.data:
        for method_name in options.methods:
            runs = []
            for seed in range(options.seeds):
                name = f"{method_name}/{data_name}/{seed}"
                run = kept.keep(
                    "continuous_flows", name, lambda m=method_name, d=data_name, s=seed: train_and_score(m, d, s)
                )
                print(f"gap {run['nats'] - ENTROPY[data_name]:.4f}", flush=True)
                runs.append(run)
            mean = {key: np.mean([run[key] for run in runs]) for key in runs[0]}
            rows.append(
                [
                    data_name,
                    method_name,
                    f"{mean['nats']:.3f}",
                    f"{ENTROPY[data_name]:.3f}",
                    ", ".join(f"{run['nats'] - ENTROPY[data_name]:.4f}" for run in runs),
                    f"{max(run['error'] for run in runs):.4f}",
                    f"{mean['train_steps']:,.0f} of {mean['batch_size']:.0f}",
                    f"{mean['train_seconds'] / 60:.1f}",
                    f"{mean['solver_steps']:.0f}",
                ]
            )
    header = ["data", "method", "nats", "entropy", "gap of each run", "standard error", "training steps"]
    report.write_table("continuous_flows", [*header, "minutes of training", "solver steps an example"], rows)


if __name__ == "__main__":
    main()
