"""Optimal transport between two sets of points: exact on the host, entropic on the device.

    W_p(x, y) = (min over permutations s of  1/n sum_i |x_i - y_s(i)|^p)^(1/p)

Between uniform sets of one size an optimal plan is a permutation, so this is an assignment problem. In one dimension
sorting solves it. Else SciPy's shortest augmenting paths (Crouse 2016, doi 10.1109/TAES.2016.140952) do, on
costs lowered by prices `c_ij - v_j`, which have the same optimal permutations. Prices near the dual optimum keep the
paths short; they come from some steps of Sinkhorn at falling temperatures, for many points from an auction with eps scaling
(Bertsekas 1988, doi 10.1007/BF02186476), whose quality bears on the time alone, never on the result. Between sets with
weights, or of two sizes, plans are the solutions of a linear program, which takes far longer.

With r > 0, the regularisation, the entropic plan between n rows of weight 1/n and m columns of weight 1/m is

    P = argmin over plans P of  <P, C> + r KL(P | 1/(n m)),     log P_ij = (f_i + g_j - C_ij) / r - log(n m)

with potentials f and g that Sinkhorn's iteration finds (Cuturi 2013, arXiv 1306.0895), here in the log domain:

    f_i <- -r log mean_j exp((g_j - C_ij) / r)          then the rows of P sum to 1/n
    g_j <- -r log mean_i exp((f_i - C_ij) / r)          then its columns sum to 1/m

At the fixed point the value of the problem, the entropic cost, is `mean f + mean g`, and `<P, C>` is at most `r log n`
above the exact optimum between sets of one size n.

Neither is 0 between a set and itself. The Sinkhorn divergence takes off what is too much,

    S(x, y) = cost(x, y) - cost(x, x) / 2 - cost(y, y) / 2

and goes from the exact optimum at r = 0 to `|mean x - mean y|^2` at r = infinity, for squared distances.
"""

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from genjax.typing import Array

_PRICES_FROM = 64  # points, below which prices cost more time than they save
_TEMPERATURES = np.array(
    [1.0, 0.25, 0.06, 0.015, 0.004, 0.002], np.float32
)  # of the mean excess over the cheapest of a row
_SINKHORN_STEPS = 10  # at each
_AUCTION_FROM = 2048  # points, from which an auction finds better prices
_EPS_FACTOR = 4.0
_LAST_EPS = 0.03  # of the largest cost / n
_BIDS_PER_ROW = 16  # at most, for each eps


def assignment(x: Any, y: Any, *, power: float = 2) -> np.ndarray:
    """The permutation s that minimises `sum_i |x_i - y_s(i)|^power`, exactly, in float64.

    10,000 points in two dimensions take 10 to 16 s of one core and 1.4 GB; memory grows as n^2.

    Args:
        x: `[n, D]`.
        y: `[n, D]`.
        power: at least 1.

    Returns:
        s, int64 `[n]`: `x[i]` goes to `y[s[i]]`.

    Raises:
        ValueError: shapes that are not both one `[n, D]` with n at least 1, values that are not finite, power < 1.

    Example:
        >>> assignment([[0.0, 0.0], [1.0, 0.0]], [[1.1, 0.0], [0.2, 0.0]]).tolist()
        [1, 0]
    """
    x, y = _point_sets(x, y, power)
    if x.shape[1] == 1:
        permutation = np.empty(len(x), np.int64)
        permutation[np.argsort(x[:, 0], kind="stable")] = np.argsort(y[:, 0], kind="stable")
        return permutation
    # Sorted rows would cost three times as much time: early rows take columns that later ones need.
    order = np.random.default_rng(0).permutation(len(x))
    permutation = np.empty(len(x), np.int64)
    permutation[order] = _cheapest(_costs(x[order], y, power))
    return permutation


def cheapest_permutation(costs: Any) -> np.ndarray:
    """The permutation s that minimises `sum_i costs[i, s_i]`, exactly, in float64.

    Args:
        costs: `[n, n]`; infinity forbids a pair.

    Returns:
        s, int64 `[n]`.

    Raises:
        ValueError: costs that are not square or hold NaN, or that forbid every permutation.

    Example:
        >>> cheapest_permutation([[0.0, 1.0], [0.0, 5.0]]).tolist()
        [1, 0]
    """
    costs = np.array(costs, np.float64)
    if costs.ndim != 2 or costs.shape[0] != costs.shape[1]:
        raise ValueError(f"costs {costs.shape} must be [n, n]")
    return _cheapest(costs)


def cheapest_plan(costs: Any, rows: Any, columns: Any) -> np.ndarray:
    """The plan P that minimises `<P, costs>` among those with given sums of rows and columns, in float64.

    A linear program, solved by SciPy's dual simplex: 256 times 256 costs take half a second, 1,000 times 1,000 some 15.

    Args:
        costs: `[n, m]`, finite.
        rows: `[n]`, at least 0, of sum above 0; divided by it.
        columns: `[m]`, the same.

    Returns:
        P, `[n, m]`, of sum 1 and with at most n + m - 1 entries other than 0.

    Raises:
        ValueError: other shapes or values.

    Example:
        >>> cheapest_plan([[0.0, 1.0], [1.0, 0.0]], [1, 1], [1, 3]).tolist()
        [[0.25, 0.25], [0.0, 0.5]]
    """
    from scipy.optimize import linprog
    from scipy.sparse import eye_array, kron, vstack

    costs, rows, columns = (np.asarray(values, np.float64) for values in (costs, rows, columns))
    n, m = len(rows), len(columns)
    if costs.shape != (n, m) or not np.isfinite(costs).all():
        raise ValueError(f"costs {costs.shape} must be finite and [n, m] = {n, m}, one weight a row and a column")
    if not all(np.isfinite(w).all() and (w >= 0).all() and w.sum() > 0 for w in (rows, columns)):
        raise ValueError("weights must be finite, at least 0, and not all 0")
    sums = vstack([kron(eye_array(n), np.ones((1, m))), kron(np.ones((1, n)), eye_array(m))], format="csr")
    weights = np.concatenate([rows / rows.sum(), columns / columns.sum()])
    # The last sum follows from the others; kept, rounding could make it contradict them.
    solution = linprog(costs.ravel(), A_eq=sums[:-1], b_eq=weights[:-1], method="highs-ds")
    if solution.status != 0:
        raise ValueError(f"no plan was found: {solution.message}")
    return solution.x.reshape(n, m)


def wasserstein(x: Any, y: Any, *, power: float = 2, weights: tuple[Any, Any] | None = None) -> float:
    """The Wasserstein distance `W_power` (root taken) between two sets of points, exactly.

    Args:
        x: `[n, D]`.
        y: `[m, D]`; without weights m is n, and every point has the weight 1/n.
        power: at least 1; 1 is the earth mover's distance.
        weights: those of x `[n]` and those of y `[m]`, as `cheapest_plan` takes them; with its time.

    Returns:
        A float, in the units of x.

    Raises:
        ValueError: as `assignment`, or as `cheapest_plan`.

    Example:
        >>> wasserstein([[0.0, 0.0], [1.0, 0.0]], [[1.0, 3.0], [0.0, 3.0]])
        3.0
        >>> wasserstein([[0.0]], [[-1.0], [3.0]], power=1, weights=([1.0], [0.5, 0.5]))
        2.0
    """
    if weights is None:
        x, y = _point_sets(x, y, power)
        distances = np.linalg.norm(x - y[assignment(x, y, power=power)], axis=1)
        return float(np.mean(distances**power) ** (1 / power))
    x, y = _point_sets(x, y, power, of_one_size=False)
    costs = _costs(x, y, power)
    return float(np.sum(cheapest_plan(costs, *weights) * costs) ** (1 / power))


class EntropicPlan(NamedTuple):
    """What `sinkhorn` returns; the columns of the plan sum to 1/m up to rounding, its rows to 1/n within `error`."""

    first: Array  # f [n], in units of the costs
    second: Array  # g [m]
    log_plan: Array  # log P [n, m]
    error: Array  # []: at least sum_i |sum_j P_ij - 1/n|
    iterations: Array  # [], int32


def sinkhorn(
    costs: Array, *, regularisation: Array | float, tolerance: float = 1e-3, max_iterations: int = 1000
) -> EntropicPlan:
    """The entropic plan between n rows of weight 1/n and m columns of weight 1/m, on the device, under `jit` too.

    The regularisation starts at the largest cost and is halved in each iteration until it is the one asked for, which
    takes fewer iterations than to start with it. Then it stops as soon as `sum_i |sum_j P_ij - 1/n| <= tolerance`.
    In float32 that sum comes no lower than about 1e-7 times the largest cost over the regularisation. The loop has
    no reverse-mode derivative.

    Args:
        costs: `[n, m]`, floating; infinity forbids a pair, which leaves the plan without mass there.
        regularisation: r > 0, absolute, in units of the costs (the `reg` of POT, the `epsilon` of OTT).
        tolerance: of the row sums' total deviation, which is between 0 and 2.
        max_iterations: at which it stops at the latest; `error` tells how far it came.

    Raises:
        ValueError: costs that are not a matrix.

    Example:
        >>> plan = sinkhorn(jnp.asarray([[0.0, 1.0], [1.0, 0.0]]), regularisation=0.1)
        >>> jnp.round(jnp.exp(plan.log_plan), 3).tolist()
        [[0.5, 0.0], [0.0, 0.5]]
    """
    if costs.ndim != 2:
        raise ValueError(f"costs {costs.shape} must be [n, m]")

    def alternate(f: Array, g: Array, r: Array) -> tuple[Array, Array, Array]:
        rows = _balancing(g, costs, r, axis=1)
        return rows, _balancing(rows, costs, r, axis=0), rows

    return _annealed(alternate, costs, regularisation, tolerance, max_iterations)


class SinkhornDivergence(NamedTuple):
    """What `sinkhorn_divergence` returns; all `[]`."""

    entropic: Array  # of the costs <P, C> + r KL(P | 1/(n m)), in units of the costs
    linear: Array  # of the costs <P, C>
    error: Array  # the largest of the three plans' errors (see `EntropicPlan`)
    iterations: Array  # the largest of their numbers, int32


def sinkhorn_divergence(
    x: Array,
    y: Array,
    *,
    regularisation: Array | float,
    power: float = 2,
    tolerance: float = 1e-3,
    max_iterations: int = 1000,
) -> SinkhornDivergence:
    """`cost(x, y) - cost(x, x) / 2 - cost(y, y) / 2` of entropic plans with costs `|x_i - y_j|^power`, of two kinds.

    The entropic kind, which the literature means, is not negative, and 0 between equal sets alone. The error of its
    costs is of second order in that of the plans; of the linear kind's it is of first order. Both tend to
    `W_power^power` as r falls to 0. The loops have no reverse-mode derivative.

    Args:
        x: `[n, D]`.
        y: `[m, D]`.
        regularisation: r > 0, absolute, in units of the costs, which are not halved: libraries with the costs
            `|x - y|^2 / 2` find, at r / 2, half of this.
        power: at least 1.
        tolerance: of each plan's row sums, as `sinkhorn` has it.
        max_iterations: for each plan.

    Raises:
        ValueError: other shapes, or power < 1.

    Source: Feydy et al. 2019 (arXiv 1810.08278), eq. 3; the linear kind: Genevay et al. 2018 (arXiv 1706.00292).

    Example:
        >>> x = jnp.asarray([[0.0], [1.0], [5.0]])
        >>> divergence = sinkhorn_divergence(x, x + 3.0, regularisation=0.5, tolerance=1e-5)
        >>> round(float(divergence.entropic), 3), round(float(divergence.linear), 3)
        (9.0, 9.0)
    """
    if x.ndim != 2 or x.shape[1:] != y.shape[1:]:
        raise ValueError(f"x {x.shape} and y {y.shape} must be [n, D] and [m, D]")
    if power < 1:
        raise ValueError(f"power is {power}; expected at least 1")
    crossing, *within = (_powers_of_distances(*pair, power) for pair in ((x, y), (x, x), (y, y)))
    stops = (regularisation, tolerance, max_iterations)
    plans = [
        sinkhorn(crossing, regularisation=regularisation, tolerance=tolerance, max_iterations=max_iterations),
        *(_plan_with_itself(costs, *stops) for costs in within),
    ]
    entropic = [plan.first.mean() + plan.second.mean() for plan in plans]
    linear = [jnp.sum(jnp.exp(p.log_plan) * costs) for p, costs in zip(plans, (crossing, *within), strict=True)]
    return SinkhornDivergence(
        entropic=entropic[0] - (entropic[1] + entropic[2]) / 2,
        linear=linear[0] - (linear[1] + linear[2]) / 2,
        error=jnp.max(jnp.stack([plan.error for plan in plans])),
        iterations=jnp.max(jnp.stack([plan.iterations for plan in plans])),
    )


def _plan_with_itself(
    costs: Array, regularisation: Array | float, tolerance: float, max_iterations: int
) -> EntropicPlan:
    """`sinkhorn` for symmetric costs, f and g alike.

    Alternation would be slow: its rate is the square of the plan's second singular value, nearly 1 where the plan is
    nearly diagonal. The mean of f and of what balances it has rates between 0 and 1/2 wherever `exp(-C / r)` is a
    positive kernel, as it is for squared distances (Feydy et al. 2019, section 3).
    """

    def average(f: Array, g: Array, r: Array) -> tuple[Array, Array, Array]:
        balanced = _balancing(f, costs, r, axis=1)
        return (f + balanced) / 2, (f + balanced) / 2, balanced

    return _annealed(average, costs, regularisation, tolerance, max_iterations)


def _balancing(other: Array, costs: Array, r: Array, *, axis: int) -> Array:
    """The potential f with which, `other` being g, rows sum to 1/n (axis 1); or the g for the columns (axis 0)."""
    exponents = (jnp.expand_dims(other, 1 - axis) - costs) / r
    return -r * (jax.nn.logsumexp(exponents, axis=axis) - np.log(costs.shape[axis]))


def _annealed(
    update: Callable[[Array, Array, Array], tuple[Array, Array, Array]],
    costs: Array,
    regularisation: Array | float,
    tolerance: float,
    max_iterations: int,
) -> EntropicPlan:
    """The fixed point of `update(f, g, r) -> (f, g, what balances the rows of the old g)`, r halved on the way down."""
    n, m = costs.shape
    last = jnp.asarray(regularisation, costs.dtype)

    def iterate(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        f, g, before, _, iteration = carry
        r = jnp.maximum(before / 2, last)
        new_f, new_g, balanced = update(f, g, r)
        # Where f and g belong to r: row i of their plan sums to exp((f_i - balanced_i) / r) / n.
        error = jnp.where(r == before, jnp.mean(jnp.abs(jnp.expm1((f - balanced) / r))), jnp.inf)
        return new_f, new_g, r, error, iteration + 1

    def unfinished(carry: tuple[Array, ...]) -> Array:
        return (carry[3] > tolerance) & (carry[4] < max_iterations)

    largest = jnp.max(jnp.where(jnp.isfinite(costs), costs, 0))
    start: tuple[Array, ...] = (
        jnp.zeros(n, costs.dtype),
        jnp.zeros(m, costs.dtype),
        jnp.maximum(largest, last),
        jnp.asarray(jnp.inf, costs.dtype),
        jnp.asarray(0, jnp.int32),
    )
    f, g, r, error, iterations = jax.lax.while_loop(unfinished, iterate, start)
    return EntropicPlan(f, g, (f[:, None] + g[None, :] - costs) / r - np.log(n * m), error, iterations)


def _powers_of_distances(x: Array, y: Array, power: float) -> Array:
    """`|x_i - y_j|^power`, `[n, m]`, on the device."""
    return jnp.sum((x[:, None] - y[None]) ** 2, axis=-1) ** (power / 2)


def _cheapest(costs: np.ndarray) -> np.ndarray:
    """`cheapest_permutation` of float64 costs, which it overwrites."""
    from scipy.optimize import linear_sum_assignment

    if len(costs) >= _PRICES_FROM and np.isfinite(costs).all():
        prices = _sinkhorn_prices if len(costs) < _AUCTION_FROM else _auction_prices
        costs -= prices(costs.astype(np.float32))
    return linear_sum_assignment(costs)[1]


def _point_sets(x: Any, y: Any, power: float, *, of_one_size: bool = True) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    fit = x.ndim == y.ndim == 2 and x.shape[1] == y.shape[1] and min(x.size, y.size) > 0
    if not fit or (of_one_size and len(x) != len(y)):
        shapes = "both be [n, D], n" if of_one_size else "be [n, D] and [m, D], n, m"
        raise ValueError(f"x {x.shape} and y {y.shape} must {shapes} and D at least 1")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("x and y must be finite")
    if power < 1:
        raise ValueError(f"power is {power}; expected at least 1")
    return x, y


def _costs(x: np.ndarray, y: np.ndarray, power: float) -> np.ndarray:
    """`|x_i - y_j|^power`, `[n, n]`."""
    from scipy.spatial.distance import cdist

    if power == 2:
        return cdist(x, y, "sqeuclidean")
    distances = cdist(x, y, "euclidean")
    return distances if power == 1 else distances**power


def _sinkhorn_prices(costs: np.ndarray) -> np.ndarray:
    """Prices v `[n]` near those for which the cheapest columns of `costs - v` are an optimal assignment: of the entropic plan."""
    excess = costs - costs.min(axis=1, keepdims=True)
    unit, prices = excess.mean(), np.zeros(len(costs), costs.dtype)
    if unit == 0:
        return prices
    for temperature in _TEMPERATURES * unit:
        lowered = excess - prices
        lowered -= lowered.min(axis=1, keepdims=True)
        kernel, columns = np.exp(lowered / -temperature), np.ones(len(costs), costs.dtype)
        for _ in range(_SINKHORN_STEPS):
            rows = 1 / np.maximum(kernel @ columns, 1e-30)
            columns = 1 / np.maximum(rows @ kernel, 1e-30)
        prices += temperature * np.log(columns)
    return prices


def _auction_prices(costs: np.ndarray) -> np.ndarray:
    """The same, by an auction."""
    n = len(costs)
    prices, eps = np.zeros(n, costs.dtype), costs.max() / _EPS_FACTOR
    last_eps = _LAST_EPS * costs.max() / n
    while eps > last_eps:
        _bid(costs, prices, eps)
        eps /= _EPS_FACTOR
    return prices


def _bid(costs: np.ndarray, prices: np.ndarray, eps: float) -> None:
    """Lower `prices` in place by one auction: each row in turn outbids for its cheapest column by more than eps."""
    n = len(costs)
    owner = np.full(n, -1)
    waiting = deque(range(n))
    lowered = np.empty_like(prices)
    for _ in range(_BIDS_PER_ROW * n):
        if not waiting:
            return
        row = waiting.popleft()
        np.subtract(costs[row], prices, out=lowered)
        column = int(lowered.argmin())
        best, lowered[column] = lowered[column], np.inf
        prices[column] -= lowered.min() - best + eps
        if owner[column] >= 0:
            waiting.append(int(owner[column]))
        owner[column] = row
