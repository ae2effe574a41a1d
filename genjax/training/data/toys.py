"""Toy densities in one and two dimensions: small problems whose right answer can be seen, often computed.

The literature uses one name for different data. These are the recipes here; `U(a, b)` is uniform, `N(0, s^2)`
is normal with standard deviation s on each axis, entropies are in nats (by quadrature of the density; the
pinwheel's is a nearest-neighbour estimate). All examples are independent draws: sources that space points
evenly along a curve or fill classes in equal numbers have the same density.

| name | recipe | label | entropy |
|---|---|---|---|
| `mixture1d` | 0.3 N(-2, 0.5^2) + 0.7 N(2, 0.7^2) | component | 1.571 |
| `moons` | t = U(0, pi): (cos t, sin t) or (1 - cos t, 1/2 - sin t), + N(0, 0.1^2) | moon | 1.008 |
| `eight_gaussians` | (4 (cos k pi/4, sin k pi/4) + N(0, 0.5^2)) / 1.414, k = 0..7 | k | 2.832 |
| `checkerboard` | uniform on the 8 dark squares (of side 2) of [-4, 4]^2 | square | log 32 = 3.466 |
| `two_spirals` | +-(a - t cos t, b + t sin t) / 3 + N(0, 0.1^2), with t, a, b as below | arm | 2.645 |
| `swiss_roll` | t = U(3 pi/2, 9 pi/2): ((t cos t, t sin t) + N(0, 1)) / 5 | none | 2.670 |
| `rings` | circles of radius 0.75, 1.5, 2.25, 3, equally likely, + N(0, 0.08^2) | ring | 2.623 |
| `pinwheel` | 2 (r, N(0, 0.1^2)) turned by -(2 pi k/5 + exp(r)/4), r = 1 + N(0, 0.3^2), k = 0..4 | k | 2.31 |
| `grid25` | (2 i, 2 j) + N(0, 0.05^2), i, j = -2..2 | mode | 0.065 |
| `ring8` | (cos k pi/4, sin k pi/4) + N(0, 0.01^2), k = 0..7 | k | -4.293 |

Along the spirals t = 3 pi sqrt(U(0, 1)), which spreads points evenly; a and b are U(0, 1/2).

Sources. `eight_gaussians`, `checkerboard`, `two_spirals`, `swiss_roll`, `rings`, `pinwheel`: the toy data of
FFJORD (Grathwohl et al. 2018, arXiv 1810.01367); the pinwheel goes back to Johnson et al. 2016 (arXiv
1603.06277). `moons`: scikit-learn's `make_moons(noise=0.1)`. `grid25`, `ring8`: the 2D-grid and the 2D-ring of
PacGAN (Lin et al. 2017, arXiv 1712.04086).

The same names elsewhere:

- eight Gaussians: torchcfm (Tong et al. 2023, arXiv 2302.00482) has radius 5 and deviation sqrt(0.1), and
  divides by nothing; the code of WGAN-GP (Gulrajani et al. 2017, arXiv 1704.00028) radius 2 and deviation
  0.02, over 1.414; PacGAN's are `ring8`.
- moons: FFJORD's are these times 2, shifted by (-1, -0.2); torchcfm's have noise 0.2, times 3, less 1.
- swiss roll: WGAN-GP's code has noise 0.25 and divides by 7.5.
- 25 Gaussians: WGAN-GP's code divides this grid by 2.828.

Each generator is a pure function `f(rng, num) -> (points [num, D] float32, label [num] int32 or None)`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from genjax import oracles
from genjax.training.data.dataset import Dataset, host_batch, standardisation
from genjax.typing import Array

Points = tuple[np.ndarray, np.ndarray | None]
Generator = Callable[[np.random.Generator, int], Points]

SEED = 1729
"""`toy` draws its training points from `default_rng([SEED, 0])`, the held-out ones from `[SEED, 1]`."""
NUM_TRAIN = 2**18
NUM_TEST = 2**14


class IsotropicMixture(NamedTuple):
    """K Gaussians: weights `[K]`, means `[K, D]`, and one standard deviation each `[K]`."""

    weights: np.ndarray
    means: np.ndarray
    deviations: np.ndarray


def _ring(num: int, radius: float) -> np.ndarray:
    angles = 2 * np.pi * np.arange(num) / num
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _equal(means: np.ndarray, deviation: float) -> IsotropicMixture:
    num = len(means)
    return IsotropicMixture(np.full(num, 1 / num), means, np.full(num, deviation))


_GRID = 2.0 * np.stack(np.divmod(np.arange(25), 5), axis=1) - 4.0

MIXTURES = {
    "mixture1d": IsotropicMixture(np.array([0.3, 0.7]), np.array([[-2.0], [2.0]]), np.array([0.5, 0.7])),
    "eight_gaussians": _equal(_ring(8, radius=4 / 1.414), deviation=0.5 / 1.414),
    "grid25": _equal(_GRID, deviation=0.05),
    "ring8": _equal(_ring(8, radius=1.0), deviation=0.01),
}
"""The toys that are mixtures of Gaussians, and so have every quantity in closed form (`exact_mixture`)."""


def exact_mixture(name: str) -> oracles.Mixture:
    """The toy of `MIXTURES` as an oracle, in data units: exact density, score and denoiser on any path."""
    weights, means, deviations = MIXTURES[name]
    parameters: tuple[Any, ...] = (weights, means, deviations**2)
    return oracles.mixture(*parameters)


def log_density(name: str, points: Array) -> Array:
    """True log-density `[B]`, nats, of points `[B, D]` in data units under the toy of `MIXTURES`."""
    return oracles.log_density(exact_mixture(name), jnp.asarray(points))


def _draw(mixture: IsotropicMixture, rng: np.random.Generator, num: int) -> Points:
    label = rng.choice(len(mixture.weights), size=num, p=mixture.weights)
    noise = rng.standard_normal((num, mixture.means.shape[1]))
    return _finish(mixture.means[label] + mixture.deviations[label, None] * noise, label)


def _finish(points: np.ndarray, label: np.ndarray | None) -> Points:
    return points.astype(np.float32), None if label is None else label.astype(np.int32)


def mixture1d(rng: np.random.Generator, num: int) -> Points:
    """Two Gaussians on the line, weights 0.3 and 0.7; points `[num, 1]`, label = component."""
    return _draw(MIXTURES["mixture1d"], rng, num)


def moons(rng: np.random.Generator, num: int) -> Points:
    """Two interleaved half circles; label 0 is the upper one."""
    label = rng.integers(2, size=num)
    t = rng.uniform(0, np.pi, num)
    upper = np.stack([np.cos(t), np.sin(t)], axis=1)
    lower = np.stack([1 - np.cos(t), 0.5 - np.sin(t)], axis=1)
    points = np.where(label[:, None] == 0, upper, lower)
    return _finish(points + rng.normal(0, 0.1, (num, 2)), label)


def eight_gaussians(rng: np.random.Generator, num: int) -> Points:
    """Eight Gaussians on a circle of radius 4 / 1.414; label k has its centre at angle k pi / 4."""
    return _draw(MIXTURES["eight_gaussians"], rng, num)


def checkerboard(rng: np.random.Generator, num: int) -> Points:
    """Uniform on the dark squares; label = 2 column + row, column 0..3 from the left, row 0..1 from below."""
    column, row = rng.integers(4, size=num), rng.integers(2, size=num)
    corner = np.stack([column - 2, 2 * row - 2 + column % 2], axis=1)
    return _finish(2 * (corner + rng.uniform(size=(num, 2))), 2 * column + row)


def two_spirals(rng: np.random.Generator, num: int) -> Points:
    """Two spiral arms of one and a half turns, each the other turned by pi; label = arm."""
    label = rng.integers(2, size=num)
    t = 3 * np.pi * np.sqrt(rng.uniform(size=num))
    arm = np.stack([-t * np.cos(t), t * np.sin(t)], axis=1) + rng.uniform(0, 0.5, (num, 2))
    sign = 1 - 2 * label[:, None]
    return _finish(sign * arm / 3 + rng.normal(0, 0.1, (num, 2)), label)


def swiss_roll(rng: np.random.Generator, num: int) -> Points:
    """One spiral of one and a half turns that starts away from the origin; no labels."""
    t = rng.uniform(1.5 * np.pi, 4.5 * np.pi, num)
    points = np.stack([t * np.cos(t), t * np.sin(t)], axis=1)
    return _finish((points + rng.standard_normal((num, 2))) / 5, None)


def rings(rng: np.random.Generator, num: int) -> Points:
    """Four circles about the origin, equally likely; label 0 is the innermost."""
    label = rng.integers(4, size=num)
    angle = rng.uniform(0, 2 * np.pi, num)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return _finish(0.75 * (label[:, None] + 1) * circle + rng.normal(0, 0.08, (num, 2)), label)


def pinwheel(rng: np.random.Generator, num: int) -> Points:
    """Five Gaussian blades bent by a rotation that grows with the radius; label = blade."""
    label = rng.integers(5, size=num)
    along = 1 + 0.3 * rng.standard_normal(num)
    across = 0.1 * rng.standard_normal(num)
    angle = -(2 * np.pi * label / 5 + 0.25 * np.exp(along))
    cosine, sine = np.cos(angle), np.sin(angle)
    points = np.stack([cosine * along - sine * across, sine * along + cosine * across], axis=1)
    return _finish(2 * points, label)


def grid25(rng: np.random.Generator, num: int) -> Points:
    """Twenty-five narrow Gaussians on a 5 x 5 grid; label = 5 i + j, i from the left, j from below."""
    return _draw(MIXTURES["grid25"], rng, num)


def ring8(rng: np.random.Generator, num: int) -> Points:
    """Eight very narrow Gaussians on the unit circle; label k has its centre at angle k pi / 4."""
    return _draw(MIXTURES["ring8"], rng, num)


GENERATORS: dict[str, Generator] = {
    "mixture1d": mixture1d,
    "moons": moons,
    "eight_gaussians": eight_gaussians,
    "checkerboard": checkerboard,
    "two_spirals": two_spirals,
    "swiss_roll": swiss_roll,
    "rings": rings,
    "pinwheel": pinwheel,
    "grid25": grid25,
    "ring8": ring8,
}


def toy(name: str) -> Dataset:
    """The data set of the generator `name`: 2**18 training and 2**14 held-out points, always the same."""
    generate = GENERATORS[name]
    points, label = generate(np.random.default_rng([SEED, 0]), NUM_TRAIN)
    return Dataset(
        name,
        train=host_batch(points, label),
        test=host_batch(*generate(np.random.default_rng([SEED, 1]), NUM_TEST)),
        scaling=standardisation(points),
        num_classes=0 if label is None else int(label.max()) + 1,
        log_density=partial(log_density, name) if name in MIXTURES else None,
    )
