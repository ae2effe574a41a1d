"""Error against network calls, of every sampler of the package, on exact oracles: no training, no network.

    python -m benchmarks.frontier

Three data densities whose denoisers are exact: a mixture of three Gaussians in the plane; a Gaussian in 64 dimensions with
standard deviations from 1 to 0.01; a mixture of ten Gaussians in 784 dimensions that fills 16 of them and has deviation 0.05 in the
others. All samplers run on the path of EDM from noise level 80 to 0, on two grids: that of Karras et al., and one even in the log
SNR, both with sigma from 80 to 0.002 before the last step. The better one of the two counts. Some samplers run on a grid
optimised for them too (`times.optimise` of the mean logarithm over 64 starts; scored on 192 others).

Deterministic samplers: how far 256 starts end from where the exact flow takes them, the median over the starts of the root mean
square of a dimension, over that of the data from 0. (The mean would tell of few starts: where modes lie apart, a start near
the border of two ends in the other one, by any sampler of few steps: 3 % of the 784-D starts.) Stochastic ones: the root of the
Frechet distance (of means and covariances; the first 16 dimensions) of 2,048 samples to the exact moments, over the same; beside
it what 2,048 exact draws have.

In double precision. Writes the figure `docs/images/frontier.png` and the tables of `docs/samplers.md`.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks import report
from genjax import oracles, paths, samplers, times
from genjax.metrics.frechet import frechet_distance_to
from genjax.samplers import SAMPLERS
from genjax.typing import Array, Denoiser, Knot, Prediction

DOCS = Path(__file__).parents[1] / "docs"
CALLS = (5, 10, 20, 50)
PATH = paths.edm()
SIGMA_MIN, SIGMA_MAX = 0.002, 80.0
STOCHASTIC = ("ddpm", "euler-maruyama", "dpmpp-2m-sde", "dpm-2-ancestral", "heun-churn", "predictor-corrector")
OPTIMISED = ("plms", "unipc")
OPTIMISED_CALLS = (5, 10)
LEFT_OUT = ("euler", "ddpm-large", "annealed-langevin")
"""euler is ddim on this path; annealed Langevin steps have a grid of their own."""
DETERMINISTIC = tuple(name for name in SAMPLERS if name not in (*STOCHASTIC, *LEFT_OUT))


class Density(NamedTuple):
    """Data `[D]` with an exact denoiser: in some leading dimensions a mixture, in the others N(0, deviation^2)."""

    mixture: oracles.Mixture
    leading: int
    deviation: Array

    @property
    def dimensions(self) -> int:
        return self.leading + len(self.deviation)


def planar() -> Density:
    weights, means = [0.3, 0.5, 0.2], np.array([[1.0, 0.5], [-1.0, 0.2], [0.3, -1.2]])
    covariances = np.array([[[0.3, 0.1], [0.1, 0.2]], [[0.2, 0.0], [0.0, 0.4]], [[0.25, -0.1], [-0.1, 0.2]]])
    return Density(oracles.mixture(weights, means, covariances), 2, jnp.zeros(0))


def anisotropic() -> Density:
    deviation = np.geomspace(1.0, 0.01, 64)
    return Density(oracles.mixture([1.0], np.zeros((1, 1)), np.ones((1, 1, 1))), 1, jnp.asarray(deviation[1:]))


def low_rank() -> Density:
    generator = np.random.default_rng(0)
    means = generator.normal(size=(10, 16))
    factors = generator.normal(size=(10, 16, 4)) / 4
    covariances = factors @ factors.transpose(0, 2, 1) + 0.05**2 * np.eye(16)
    return Density(oracles.mixture(np.full(10, 0.1), means, covariances), 16, jnp.full(768, 0.05))


DENSITIES: dict[str, Callable[[], Density]] = {
    "2-D mixture": planar,
    "64-D Gaussian": anisotropic,
    "784-D mixture": low_rank,
}


def denoiser(density: Density) -> Denoiser:
    """The exact `(data, noise)`."""

    def denoise(x: Array, knot: Knot) -> Prediction:
        leading = oracles.denoise(density.mixture, x[:, : density.leading], knot.alpha, knot.sigma)
        gain = knot.sigma / ((knot.alpha * density.deviation) ** 2 + knot.sigma**2)
        noise = jnp.concatenate([leading.noise, gain[None] * x[:, density.leading :]], axis=1)
        rest = (knot.alpha * density.deviation**2 / knot.sigma * gain)[None] * x[:, density.leading :]
        return Prediction(jnp.concatenate([leading.data, rest], axis=1), noise)

    return denoise


def exact_draws(density: Density, num: int) -> Array:
    leading_key, rest_key = jax.random.split(jax.random.key(1))
    leading = oracles.sample(density.mixture, leading_key, num)
    return jnp.concatenate([leading, density.deviation * jax.random.normal(rest_key, (num, len(density.deviation)))], 1)


def moments(density: Density) -> tuple[Array, Array]:
    """Exact mean and covariance of the first 16 dimensions, or all."""
    mix = density.mixture
    second = (
        jnp.einsum("kij,kj,klj->kil", mix.eigenvectors, mix.eigenvalues, mix.eigenvectors)
        + mix.means[:, :, None] * mix.means[:, None]
    )
    weights = jnp.exp(mix.log_weights)
    mean, rest = weights @ mix.means, density.deviation[: max(0, 16 - density.leading)]
    covariance = jnp.einsum("k,kij->ij", weights, second) - mean[:, None] * mean[None]
    whole = jax.scipy.linalg.block_diag(covariance, jnp.diag(rest**2)) if len(rest) else covariance
    return jnp.concatenate([mean, jnp.zeros_like(rest)]), whole


def grids(calls_per_step: int, most: int) -> Knot:
    """Knots `[2, calls, most + 1]`; those of fewer steps repeat the first one."""

    def padded(t: Array) -> np.ndarray:
        return np.concatenate([np.full(most + 1 - len(t), t[0]), t])

    ends = {"sigma_min": SIGMA_MIN, "sigma_max": SIGMA_MAX}
    low, high = (-2 * float(np.log(sigma)) for sigma in (SIGMA_MAX, SIGMA_MIN))
    by_kind = [
        [padded(times.karras(PATH, calls // calls_per_step, **ends)) for calls in CALLS],
        [padded(times.log_snr(PATH, calls // calls_per_step, low=low, high=high)) for calls in CALLS],
    ]
    return paths.knots(PATH, jnp.asarray(by_kind))


def exact_ends(density: Density, noise: Array) -> Array:
    """Where the exact flow takes the starts `80 noise`: a fine solve, in closed form where the data are Gaussian."""
    t = times.log_snr(PATH, 800, low=-2 * float(np.log(SIGMA_MAX)), high=24.0)
    run = jax.jit(
        lambda x, knots: samplers.sample(SAMPLERS["dpm-3"](PATH), denoiser(density), jax.random.key(0), x, knots)
    )
    leading = run(SIGMA_MAX * noise, paths.knots(PATH, t))[:, : density.leading]
    rest = SIGMA_MAX * noise[:, density.leading :] * density.deviation / jnp.sqrt(density.deviation**2 + SIGMA_MAX**2)
    return jnp.concatenate([leading, rest], axis=1)


def distances_between(x: Array, ends: Array) -> Array:
    """The root mean square of a dimension, of every example, `[B]`."""
    return jnp.sqrt(jnp.mean((x - ends) ** 2, axis=1))


def errors_of(name: str, density: Density, start: Array, score: Callable[[Array], Array]) -> np.ndarray:
    """`score` of the ends of `start` by every number of calls, `[calls]`: the better grid's."""
    sampler = SAMPLERS[name](PATH, first_order_end=True)
    per_step = samplers.calls_per_step(sampler, (1, density.dimensions))

    @functools.partial(jax.jit, static_argnums=0)
    def run(score: Callable[[Array], Array], start: Array, knots: Knot) -> Array:
        one = lambda knots: score(samplers.sample(sampler, denoiser(density), jax.random.key(2), start, knots))  # noqa: E731
        return jax.lax.map(lambda row: jax.lax.map(one, row), knots)

    found = np.asarray(run(score, start, grids(per_step, CALLS[-1] // per_step)))
    return np.nanmin(np.where(np.isfinite(found), found, np.inf), axis=0)


def optimised_errors(name: str, density: Density, start: Array, ends: Array, size: Array) -> dict[int, float]:
    """The distance on grids optimised on one half of the starts, on the other half."""
    sampler = SAMPLERS[name](PATH, first_order_end=True)
    parts = [(start[half], ends[half]) for half in (slice(0, 64), slice(64, 256))]

    def error(knots: Knot, start: Array, ends: Array) -> Array:
        found = samplers.sample(sampler, denoiser(density), jax.random.key(2), start, knots)
        return distances_between(found, ends) / size

    errors = {}
    for calls in OPTIMISED_CALLS:
        t = times.log_snr(PATH, calls, low=-2 * float(np.log(SIGMA_MAX)), high=-2 * float(np.log(SIGMA_MIN)))
        t = times.optimise(lambda knots: jnp.exp(jnp.mean(jnp.log(error(knots, *parts[0])))), PATH, t, iterations=60)
        errors[calls] = float(jnp.median(jax.jit(error)(paths.knots(PATH, t), *parts[1])))
    return errors


class Measured(NamedTuple):
    """Errors by density and sampler: of the deterministic ones, of some on optimised grids, of the others and exact draws."""

    distances: dict[str, dict[str, np.ndarray]]
    optimised: dict[str, dict[str, dict[int, float]]]
    laws: dict[str, dict[str, np.ndarray]]


def measure() -> Measured:
    """Every error."""
    optimised: dict[str, dict[str, dict[int, float]]] = {}
    distances: dict[str, dict[str, np.ndarray]] = {}
    laws: dict[str, dict[str, np.ndarray]] = {}
    for density_name, make in DENSITIES.items():
        density = make()
        size = jnp.sqrt(jnp.mean(exact_draws(density, 2048) ** 2))
        noise = jax.random.normal(jax.random.key(0), (2048, density.dimensions))
        ends = exact_ends(density, noise[:256])
        mean, covariance = moments(density)

        def distance(x: Array, ends: Array = ends, size: Array = size) -> Array:
            return jnp.median(distances_between(x, ends)) / size

        def law(x: Array, mean: Array = mean, covariance: Array = covariance) -> Array:
            total = jnp.trace(covariance) + mean @ mean
            return jnp.sqrt(jnp.maximum(frechet_distance_to(x[:, : len(mean)], mean, covariance), 0) / total)

        distances[density_name], laws[density_name] = {}, {}
        for name in DETERMINISTIC:
            distances[density_name][name] = errors_of(name, density, SIGMA_MAX * noise[:256], distance)
            print(density_name, name, distances[density_name][name], flush=True)
        optimised[density_name] = {
            name: optimised_errors(name, density, SIGMA_MAX * noise[:256], ends, size) for name in OPTIMISED
        }
        print(density_name, "on optimised grids", optimised[density_name], flush=True)
        for name in STOCHASTIC:
            laws[density_name][name] = errors_of(name, density, SIGMA_MAX * noise, law)
            print(density_name, name, laws[density_name][name], flush=True)
        floor = float(law(exact_draws(density, 2048)))
        laws[density_name]["exact draws"] = np.full(len(CALLS), floor)
    return Measured(distances, optimised, laws)


def best_rows(measured: Measured) -> list[list[str]]:
    """The best deterministic sampler at each number of calls, and on an optimised grid, beside DDIM."""
    rows = []
    for density, by_name in measured.distances.items():
        for index, calls in enumerate(CALLS):
            best = min(by_name, key=lambda name: by_name[name][index])
            error, ddim = by_name[best][index], by_name["ddim"][index]
            row = [density, str(calls), f"{ddim:.1e}", best, f"{error:.1e}", f"{ddim / error:.0f}"]
            on_optimised = {
                name: errors[calls] for name, errors in measured.optimised[density].items() if calls in errors
            }
            if on_optimised:
                best = min(on_optimised, key=lambda name: on_optimised[name])
                row += [best, f"{on_optimised[best]:.1e}", f"{ddim / on_optimised[best]:.0f}"]
            rows.append(row + [""] * (9 - len(row)))
    return rows


def all_rows(errors: dict[str, dict[str, np.ndarray]]) -> list[list[str]]:
    """Every sampler's errors, a column for each density and number of calls."""
    names = next(iter(errors.values()))
    return [[name, *(f"{value:.1e}" for by_name in errors.values() for value in by_name[name])] for name in names]


def draw(distances: dict[str, dict[str, np.ndarray]], path: Path) -> None:
    """A panel for each density: error against calls."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.0, 4.6), layout="constrained")
    styles: list[Any] = ["-", "--", ":"]
    for axes, (density, by_name) in zip(figure.subplots(1, 3), distances.items(), strict=True):
        for number, (name, errors) in enumerate(by_name.items()):
            colour, style, marker = f"C{number % 5}", styles[number // 5], "osD^v"[number % 5]
            axes.loglog(CALLS, errors, color=colour, linestyle=style, marker=marker, markersize=4, label=name)
        axes.set_title(density)
        axes.set_xlabel("network calls")
        axes.set_xticks(CALLS, [str(calls) for calls in CALLS])
        axes.minorticks_off()
        axes.grid(visible=True, color="#e5e5e5")
    for axes in figure.axes:
        axes.set_ylim(top=2.0)
    figure.axes[0].set_ylabel("error / size of the data")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure, draw and write the tables."""
    jax.config.update("jax_enable_x64", True)
    measured = measure()
    draw(measured.distances, DOCS / "images" / "frontier.png")
    best_header = [
        "data",
        "calls",
        "ddim",
        "best",
        "its error",
        "ratio",
        "best on optimised grids",
        "its error",
        "ratio to ddim",
    ]
    columns = [f"{density}, {calls}" for density in DENSITIES for calls in CALLS]
    report.write_table("best", best_header, best_rows(measured), file=DOCS / "samplers.md")
    report.write_table("frontier", ["sampler", *columns], all_rows(measured.distances), file=DOCS / "samplers.md")
    report.write_table("laws", ["sampler", *columns], all_rows(measured.laws), file=DOCS / "samplers.md")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
