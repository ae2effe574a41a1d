"""The order of every deterministic sampler, on four paths: the slope of log error against log steps.

    python -m benchmarks.orders

The denoiser is that of a mixture of three Gaussians, exact; grids have the spacing of Karras et al., rho = 7, from where sigma is
150 to 500 times alpha to short of the data. (Its first steps are short. Multistep methods begin with one of order 1, and on grids
even in the log SNR the error of that, though small, hides the order 4 of the others on vp.) The error is the root mean square
distance of 64 ends from a fine solve; the slope is fitted to 256, 512 and 1,024 steps. In double precision. Writes the table of
`docs/samplers.md`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks import report
from benchmarks.frontier import DOCS
from genjax import oracles, paths, samplers, times
from genjax.samplers import Sampler
from genjax.typing import Array, Knot, Path

STEPS = (256, 512, 1024)
PATHS = {  # path, first and last time
    "linear": (paths.linear(), 0.002, 0.9),
    "vp": (paths.vp(), 1.0, 0.1),
    "cosine": (paths.cosine(), 0.998, 0.1),
    "edm": (paths.edm(400.0), 400.0, 0.1),
}
SAMPLERS: dict[str, tuple[int, Callable[[Path], Sampler]]] = {
    "euler": (1, samplers.euler),
    "heun": (2, lambda path: samplers.heun(path, first_order_end=False)),
    "midpoint": (2, samplers.midpoint),
    "rk4": (4, lambda path: samplers.rk4(path, first_order_end=False)),
    "ddim()": (1, lambda path: samplers.ddim()),
    "dpm_solver_singlestep(order=2)": (2, lambda path: samplers.dpm_solver_singlestep(path, order=2)),
    "dpm_solver_singlestep(order=3)": (3, lambda path: samplers.dpm_solver_singlestep(path, order=3)),
    "dpm_solver_pp_singlestep(order=2)": (2, lambda path: samplers.dpm_solver_pp_singlestep(path, order=2)),
    "dpm_solver_pp_singlestep(order=3)": (3, lambda path: samplers.dpm_solver_pp_singlestep(path, order=3)),
    "dpm_solver(2)": (2, lambda path: samplers.dpm_solver(2)),
    "dpm_solver(3)": (3, lambda path: samplers.dpm_solver(3)),
    "dpm_solver_pp(2)": (2, lambda path: samplers.dpm_solver_pp(2)),
    "dpm_solver_pp(3)": (3, lambda path: samplers.dpm_solver_pp(3)),
    "unipc(1)": (2, lambda path: samplers.unipc(1)),
    "unipc(2)": (3, lambda path: samplers.unipc(2)),
    'unipc(2, variant="bh1")': (3, lambda path: samplers.unipc(2, variant="bh1")),
    "unipc(3)": (4, lambda path: samplers.unipc(3)),
    "deis(order=2)": (2, lambda path: samplers.deis(path, order=2)),
    "deis(order=3)": (3, lambda path: samplers.deis(path, order=3)),
    "deis(order=4)": (4, lambda path: samplers.deis(path, order=4)),
    "lms(2)": (2, lambda path: samplers.lms(2)),
    "lms(3)": (3, lambda path: samplers.lms(3)),
    "lms(4)": (4, lambda path: samplers.lms(4)),
    "plms()": (2, lambda path: samplers.plms()),
}
MIXTURE = (
    [0.3, 0.5, 0.2],
    np.array([[1.0, 0.5], [-1.0, 0.2], [0.3, -1.2]]),
    np.array([[[0.3, 0.1], [0.1, 0.2]], [[0.2, 0.0], [0.0, 0.4]], [[0.25, -0.1], [-0.1, 0.2]]]),
)


def ends(make: Callable[[Path], Sampler], name: str, steps: int, noise: Array) -> Array:
    """Where the starts `sigma noise` end, `[64, 2]`."""
    path, first, last = PATHS[name]
    sampler, denoise = make(path), oracles.denoiser(oracles.mixture(*MIXTURE))
    ends_of_path = paths.knots(path, jnp.asarray([first, last]))
    most, least = (float(ratio) for ratio in ends_of_path.sigma / ends_of_path.alpha)
    t = times.karras(path, steps, sigma_min=least, sigma_max=most, append_data=False)

    @jax.jit
    def run(knots: Knot, noise: Array) -> Array:
        return samplers.sample(sampler, denoise, jax.random.key(0), knots.sigma[0] * noise, knots)

    return run(paths.knots(path, t), noise)


def main() -> None:
    """Measure and write the table."""
    jax.config.update("jax_enable_x64", True)
    noise = jax.random.normal(jax.random.key(0), (64, 2))
    exact = {name: ends(SAMPLERS["rk4"][1], name, 8000, noise) for name in PATHS}
    rows = []
    for sampler, (order, make) in SAMPLERS.items():
        slopes = []
        for name in PATHS:
            errors = [float(jnp.sqrt(jnp.mean((ends(make, name, n, noise) - exact[name]) ** 2))) for n in STEPS]
            slopes.append(-float(np.polyfit(np.log(STEPS), np.log(errors), 1)[0]))
        rows.append([f"`{sampler}`", str(order), *(f"{slope:.2f}" for slope in slopes)])
        print(" | ".join(rows[-1]), flush=True)
    report.write_table("orders", ["sampler", "order", *PATHS], rows, file=DOCS / "samplers.md")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
