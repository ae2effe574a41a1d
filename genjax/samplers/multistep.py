"""Linear multistep methods: one call of the denoiser a step, and the estimates of the steps before.

With r = sigma / alpha and lambda = log(alpha / sigma) the probability-flow ODE has no linear part left:

    d(x / alpha) / dr = noise(x)            d(x / sigma) / d(1 / r) = data(x)

A step takes the estimate m (data or noise) as the polynomial through its last p values in some variable v of the knots, and
integrates that exactly; so it is a weighted sum, whose weights the grid decides before the loop begins:

    x_then = a x + sum_j w_j m_j,     a = sigma_then / sigma_now (data),   alpha_then / alpha_now (noise)
    sum_j w_j (v_j - v_now)^n = c integral (v - v_now)^n dmu,   n < p

    method                 m        v         c dmu                       source
    dpm_solver_pp          data     lambda    sigma_then d(1/r)           Lu et al. 2022 (2211.01095)
    unipc                  data     lambda    the same, with a corrector  Zhao et al. 2023 (2302.04867)
    dpm_solver             noise    lambda    alpha_then dr               Lu et al. 2022 (2206.00927)
    deis                   noise    t         alpha_then dr               Zhang & Chen 2023 (2204.13902), tAB
    lms                    noise    r         alpha_then dr               Karras et al. 2022 (2206.00364), k-diffusion
    plms                   noise    index     alpha_then (r_then - r_now) Liu et al. 2022 (2202.09778)

With p = 1 all are DDIM. **Start**: the order rises by one a step from 1; a knot where alpha = 0 is not among the values (but in
deis and plms). **End**: a step that lands on sigma = 0, where lambda is infinite, has order 1 in the methods of lambda.
`lower_order_end` lets the order fall by one a step to 1 at the end, as diffusers does on grids of fewer than 15 steps.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from genjax.arrays import normal
from genjax.samplers.exponential import exponential_moments, gauss_legendre, log_ratio
from genjax.samplers.loop import Sampler
from genjax.typing import Array, Denoiser, Key, Knot, Path

Slope = Literal["exact", "midpoint", "linear"]
"""What a step of two values takes for the integral of u: the exact one, half that of 1, or half the step of lambda."""


def _check_order(order: int, most: int) -> None:
    if not 1 <= order <= most:
        raise ValueError(f"order is {order}; expected 1 to {most}")


Columns = list[Array]
"""One value a step, `[steps]`, for each of several estimates or powers: lists, since a table is copied for each change of it."""


def _before(values: Array, back: int, fill: Array | float) -> Array:
    """`values [steps]` of `back` steps before, and `fill` where there are none."""
    back = min(back, len(values))
    return jnp.concatenate([jnp.full_like(values[:back], fill), values[: len(values) - back]])


def _orders(order: int, nodes: Array, t: Array, *, lower_order_end: bool) -> Array:
    """The order of every step `[steps]`: one more than the steps before it that moved, for `nodes` and `t [steps + 1]`."""
    moves = jnp.isfinite(jnp.diff(nodes)) & (jnp.diff(t) != 0)
    orders, in_a_row = jnp.ones(moves.shape, jnp.int32), moves
    for back in range(1, order):
        in_a_row = in_a_row & _before(moves, back, False)
        orders = orders + in_a_row
    if lower_order_end:
        orders = jnp.minimum(orders, jnp.arange(len(moves), 0, -1))
    return orders


def _finite_steps(nodes: Array) -> Array:
    """The steps of `nodes [steps + 1]`, and 1 where one is infinite or 0."""
    h = jnp.diff(nodes)
    return jnp.where(jnp.isfinite(h) & (h != 0), h, 1.0)


def _places(nodes: Array, orders: Array, most: int) -> tuple[Columns, Columns]:
    """Where a step's `most` values lie, `(v - v_now) / h`, newest first, and which of them it uses."""
    now, h = nodes[:-1], _finite_steps(nodes)
    used = [back < orders for back in range(most)]
    places = [jnp.where(use, _before(now, back, nodes[0]) - now, 0.0) / h for back, use in enumerate(used)]
    return places, used


def interpolation_weights(places: Columns, used: Columns, moments: Columns) -> Columns:
    """Weights with `sum_j w_j places_j^i = moments_i` for i below how many are used; 0 where not used.

    With `moments_i = integral u^i dmu` they integrate the polynomial through the values at those places: each is the integral of
    Lagrange's polynomial of its place.

    Args:
        places: `[steps]` each, distinct where used.
        used: as many, some first ones.
        moments: as many.
    """
    moments = [jnp.where(use, moment, 0.0) for use, moment in zip(used, moments, strict=True)]

    def weight(chosen: int) -> Array:
        # the coefficients of the product over the others of u - place, lowest first, and its value at the chosen place
        one, zero = jnp.ones_like(places[0]), jnp.zeros_like(places[0])
        polynomial, value = [one] + [zero] * (len(places) - 1), one
        for other in (index for index in range(len(places)) if index != chosen):
            times_u = zip([zero, *polynomial[:-1]], polynomial, strict=True)
            polynomial = [jnp.where(used[other], higher - places[other] * same, same) for higher, same in times_u]
            value = jnp.where(used[other], value * (places[chosen] - places[other]), value)
        total = sum(power * moment for power, moment in zip(polynomial, moments, strict=True))
        return jnp.where(used[chosen], total / jnp.where(used[chosen], value, 1.0), 0.0)

    return [weight(chosen) for chosen in range(len(places))]


def _with_slope(moments: Columns, k: Array, rule: Slope, replaced: Array) -> Columns:
    """`moments` with the first one by `rule` in the steps `replaced`."""
    if rule == "exact" or len(moments) < 2:
        return moments
    slope = moments[0] / 2 if rule == "midpoint" else k / 2
    return [moments[0], jnp.where(replaced, slope, moments[1]), *moments[2:]]


class _Weights(NamedTuple):
    """`x_then = x x + data data + noise noise + fresh z + past_j m_j`: `[steps]` each, or the numbers of a step."""

    x: Array
    data: Array
    noise: Array
    fresh: Array
    past: Any


class _Memory(NamedTuple):
    number: Array
    weights: Array
    past: Array


def _table(columns: Any, dtype: jnp.dtype) -> Array:
    """Columns `[steps]`, the last ones in a list, as one array of all of them, `[steps, columns]`."""
    *named, past = columns
    return jnp.stack([*named, *past], axis=1).astype(dtype)


def _by_slot(weights: Columns, slots: int) -> Columns:
    """`weights` of past estimates, newest first, as those of the slots of the ring that `_remember` fills; of none, none."""
    if not weights:
        return []
    newest = (np.arange(len(weights[0])) - 1) % slots
    in_order = [*weights, *[jnp.zeros_like(weights[0])] * (slots - len(weights))]

    def of_slot(slot: int) -> Array:
        chosen = in_order[-slot % slots]
        for turn in range(1, slots):
            chosen = jnp.where(newest == turn, in_order[(turn - slot) % slots], chosen)
        return chosen

    return [of_slot(slot) for slot in range(slots)]


def _remember(past: Array, number: Array, newest: Array) -> Array:
    """The ring `[slots, B, ...]` with the estimate of step `number` in the place of the oldest one, the rest where it was."""
    return jax.lax.dynamic_update_index_in_dim(past, newest, number % len(past), 0) if len(past) else past


def _weighted_past(x: Array, weights: Array, past: Array) -> Array:
    for slot in range(len(weights)):
        x = x + weights[slot] * past[slot]
    return x


def _linear_multistep(
    order: int, estimate: Literal["data", "noise"], weights_of: Callable[[Knot], _Weights], *, draws: bool = False
) -> Sampler:
    """The sampler that takes the sums of estimates that `weights_of(knots)` says."""

    def init(x: Array, knots: Knot) -> _Memory:
        weights = weights_of(knots)
        weights = weights._replace(past=_by_slot(weights.past, order - 1))
        return _Memory(jnp.asarray(0), _table(weights, x.dtype), jnp.zeros((order - 1, *x.shape), x.dtype))

    def step(denoise: Denoiser, key: Key, x: Array, memory: _Memory, now: Knot, then: Knot) -> tuple[Array, _Memory]:
        row = memory.weights[memory.number]
        weights = _Weights(row[0], row[1], row[2], row[3], row[4:])
        data, noise = denoise(x, now)
        x = weights.x * x + weights.data * data
        if estimate == "noise":
            x = x + weights.noise * noise
        x = _weighted_past(x, weights.past, memory.past)
        if draws:
            x = x + weights.fresh * normal(key, x.shape, x.dtype)
        newest = data if estimate == "data" else noise
        return x, _Memory(memory.number + 1, memory.weights, _remember(memory.past, memory.number, newest))

    return Sampler(init, step)


def _quadratic(half: bool) -> float:
    """What the integral of u^2 is multiplied by."""
    return 0.5 if half else 1.0


class _Rules(NamedTuple):
    order: int
    eta: float
    slope: Slope
    quadratic: float
    lower_order_end: bool


def _data_moments(knots: Knot, count: int, eta: float) -> tuple[Array, Array, Columns]:
    """lambda `[steps + 1]`, k `[steps]` and `count` moments of `(1 + eta) d(1/r) r_then` over each step."""
    nodes = log_ratio(knots)
    k = (1 + eta) * _finite_steps(nodes)
    return nodes, k, [-jnp.expm1(-(1 + eta) * jnp.diff(nodes)), *exponential_moments(k, count)[1:]]


def _quadratic_scaled(moments: Columns, factor: float) -> Columns:
    return [*moments[:2], *[factor * moment for moment in moments[2:]]]


def _data_weights(knots: Knot, rules: _Rules) -> _Weights:
    nodes, k, moments = _data_moments(knots, rules.order, rules.eta)
    orders = _orders(rules.order, nodes, knots.t, lower_order_end=rules.lower_order_end)
    moments = _with_slope(moments, k, rules.slope, orders == 2)
    moments = _quadratic_scaled(moments, rules.quadratic)
    newest, *past = interpolation_weights(*_places(nodes, orders, rules.order), moments)
    alpha, sigma, h = knots.alpha[1:], knots.sigma[1:], jnp.diff(nodes)
    kept = sigma / knots.sigma[:-1]
    return _Weights(
        x=kept * jnp.exp(-rules.eta * h) if rules.eta else kept,
        data=alpha * newest,
        noise=jnp.zeros_like(h),
        fresh=sigma * jnp.sqrt(-jnp.expm1(-2 * rules.eta * h)) if rules.eta else jnp.zeros_like(h),
        past=[alpha * weight for weight in past],
    )


def dpm_solver_pp(
    order: int = 2,
    *,
    eta: float = 0.0,
    slope: Slope = "midpoint",
    half_quadratic: bool = False,
    lower_order_end: bool = False,
) -> Sampler:
    """DPM-Solver++ multistep (2M, 3M) and, with eta, the SDE of the same marginals (SDE-DPM-Solver++).

    One call, order 1 to 3. `eta` is the switch between the ODE (0) and the SDE (1, as in the paper; any other):

        x_then = (sigma_then / sigma_now) e^(-eta h) x + alpha_then integral (1 + eta) e^((1 + eta) (l - l_then)) data dl
                 + sigma_then sqrt(1 - e^(-2 eta h)) z,            l = lambda,  h = l_then - l_now

    Args:
        order: how many estimates a step uses.
        eta: at least 0; with order 1, 1 is `ddpm` and 0 is `ddim()`.
        slope: what a step of order 2 takes for the integral of its slope: the paper's midpoint, or the exact one.
        half_quadratic: give the quadratic term of order 3 half of its weight. The implementations of diffusers and k-diffusion
            do so, by which they have order 2; for parity with them.
        lower_order_end: let the last steps have orders order - 1, ..., 1.

    Raises:
        ValueError: order is not 1 to 3, or eta is negative.
    """
    _check_order(order, 3)
    if eta < 0:
        raise ValueError(f"eta is {eta}; expected at least 0")
    rules = _Rules(order, eta, slope, _quadratic(half_quadratic), lower_order_end)
    return _linear_multistep(order, "data", lambda knots: _data_weights(knots, rules), draws=eta > 0)


def _noise_weights(knots: Knot, nodes: Array, moments: Columns, orders: Array) -> _Weights:
    """By the moments of `alpha_then dr`, of which the zeroth is put right here; DDIM's step from alpha = 0."""
    starts = knots.alpha[:-1] == 0
    alpha, sigma = knots.alpha[1:], knots.sigma[1:]
    kept = alpha / jnp.where(starts, 1.0, knots.alpha[:-1])
    moments = [sigma - kept * knots.sigma[:-1], *moments[1:]]
    newest, *past = interpolation_weights(*_places(nodes, orders, len(moments)), moments)
    return _Weights(
        x=jnp.where(starts, 0.0, kept),
        data=jnp.where(starts, alpha, 0.0),
        noise=jnp.where(starts, sigma, newest),
        fresh=jnp.zeros_like(sigma),
        past=[jnp.where(starts, 0.0, weight) for weight in past],
    )


def dpm_solver(
    order: int = 2, *, slope: Slope = "exact", half_quadratic: bool = False, lower_order_end: bool = False
) -> Sampler:
    """DPM-Solver multistep, on noise estimates. One call, order 1 to 3.

    With exact integrals it is what diffusers calls DEIS.

    Args:
        order: how many estimates a step uses.
        slope: what a step of order 2 takes for the integral of its slope.
        half_quadratic: as in `dpm_solver_pp`.
        lower_order_end: let the last steps have orders order - 1, ..., 1.

    Raises:
        ValueError: order is not 1 to 3.
    """
    _check_order(order, 3)

    def weights_of(knots: Knot) -> _Weights:
        nodes = log_ratio(knots)
        orders = _orders(order, nodes, knots.t, lower_order_end=lower_order_end)
        k = -_finite_steps(nodes)
        moments = _with_slope(exponential_moments(k, order), k, slope, orders == 2)
        moments = _quadratic_scaled(moments, _quadratic(half_quadratic))
        return _noise_weights(knots, nodes, [knots.sigma[1:] * moment for moment in moments], orders)

    return _linear_multistep(order, "noise", weights_of)


def lms(order: int = 4, *, lower_order_end: bool = False) -> Sampler:
    """Linear multistep in the noise ratio r, as in k-diffusion: Adams-Bashforth on any grid. One call, order 1 to 4.

    Raises:
        ValueError: order is not 1 to 4.
    """
    _check_order(order, 4)

    def weights_of(knots: Knot) -> _Weights:
        nodes = jnp.where(knots.alpha == 0, jnp.inf, knots.sigma / jnp.where(knots.alpha == 0, 1.0, knots.alpha))
        orders = _orders(order, nodes, knots.t, lower_order_end=lower_order_end)
        moments = _uniform_moments(knots.alpha[1:] * _finite_steps(nodes), order)
        return _noise_weights(knots, nodes, moments, orders)

    return _linear_multistep(order, "noise", weights_of)


def _uniform_moments(total: Array, count: int) -> Columns:
    """`total [steps] / (n + 1)` for each n < count."""
    return [total / (1 + n) for n in range(count)]


def plms(order: int = 4, *, lower_order_end: bool = False) -> Sampler:
    """PNDM's pseudo linear multistep: DDIM's step with the Adams-Bashforth mean of the noise estimates.

    Its coefficients are those of an even grid, whatever the grid: one call, of order 2 however many estimates are used.

    Raises:
        ValueError: order is not 1 to 4.
    """
    _check_order(order, 4)

    def weights_of(knots: Knot) -> _Weights:
        nodes = jnp.arange(len(knots.t), dtype=knots.t.dtype)
        orders = _orders(order, nodes, knots.t, lower_order_end=lower_order_end)
        ratio = knots.sigma / jnp.where(knots.alpha == 0, 1.0, knots.alpha)
        moments = _uniform_moments(knots.alpha[1:] * jnp.diff(ratio), order)
        return _noise_weights(knots, nodes, moments, orders)

    return _linear_multistep(order, "noise", weights_of)


def deis(path: Path, *, order: int = 3, lower_order_end: bool = False) -> Sampler:
    """DEIS with polynomials in t (tAB-DEIS). One call, order 1 to 4.

    The integrals are of the path's alpha and sigma between the knots, by Gauss-Legendre quadrature after integration by parts, so
    that an infinite sigma' at the data does no harm: `integral u^n dr = r_then - integral n u^(n - 1) r du`.

    Args:
        path: the path of the grid.
        order: how many estimates a step uses.
        lower_order_end: let the last steps have orders order - 1, ..., 1.

    Raises:
        ValueError: order is not 1 to 4.
    """
    _check_order(order, 4)

    def ratio(t: Array) -> Array:
        alpha, sigma = path.alpha(t), path.sigma(t)
        return sigma / jnp.where(alpha == 0, 1.0, alpha)

    def weights_of(knots: Knot) -> _Weights:
        t = knots.t
        orders = _orders(order, t, t, lower_order_end=lower_order_end)
        u, weights = (jnp.asarray(values, t.dtype)[None] for values in gauss_legendre(16))
        between = ratio(t[:-1, None] + jnp.diff(t)[:, None] * u)
        moments = [jnp.zeros_like(t[1:])]
        for n in range(1, order):
            moments.append(ratio(t[1:]) - jnp.sum(weights * n * u ** (n - 1) * between, axis=1))
        return _noise_weights(knots, t, [knots.alpha[1:] * moment for moment in moments], orders)

    return _linear_multistep(order, "noise", weights_of)


class _Correction(NamedTuple):
    """`x_now = own x + before x_before + now m_now + past_j m_j`: `[steps]` each, or the numbers of a step."""

    own: Array
    before: Array
    now: Array
    past: Any


class _CorrectedMemory(NamedTuple):
    number: Array
    predictor: Array
    corrector: Array
    before: Array
    past: Array


def unipc(
    order: int = 3, *, variant: Literal["bh1", "bh2"] = "bh2", corrector: bool = True, lower_order_end: bool = False
) -> Sampler:
    """UniPC on data estimates: each call of the denoiser first corrects the state that it was made at. One call, order 1 to 3.

    The corrector uses one value more than the predictor and makes its order p + 1; no call is spent on it. Its weights are exact
    integrals but for one slope and two values, which B(h) decides: h / 2 (bh1), or half the weight of the data (bh2).

    Args:
        order: of the predictor.
        variant: B(h) of the paper.
        corrector: without it, UniP, which is `dpm_solver_pp` for bh2.
        lower_order_end: let the last steps have orders order - 1, ..., 1, as diffusers does on every grid.

    Raises:
        ValueError: order is not 1 to 3, or the variant is neither.
    """
    _check_order(order, 3)
    if variant not in ("bh1", "bh2"):
        raise ValueError(f"variant is {variant!r}; expected 'bh1' or 'bh2'")
    slope: Slope = "linear" if variant == "bh1" else "midpoint"
    rules = _Rules(order, 0.0, slope, 1.0, lower_order_end)
    if not corrector:
        return _linear_multistep(order, "data", lambda knots: _data_weights(knots, rules))

    def init(x: Array, knots: Knot) -> _CorrectedMemory:
        predictor, correction = _data_weights(knots, rules), _correction(knots, rules)
        predictor = predictor._replace(past=_by_slot(predictor.past, order))
        correction = correction._replace(past=_by_slot(correction.past, order))
        tables = (_table(predictor, x.dtype), _table(correction, x.dtype))
        past = jnp.zeros((order, *x.shape), x.dtype)
        return _CorrectedMemory(jnp.asarray(0), *tables, jnp.zeros_like(x), past)

    def step(
        denoise: Denoiser, key: Key, x: Array, memory: _CorrectedMemory, now: Knot, then: Knot
    ) -> tuple[Array, _CorrectedMemory]:
        data = denoise(x, now).data
        row = memory.corrector[memory.number]
        correct = _Correction(row[0], row[1], row[2], row[3:])
        corrected = correct.own * x + correct.before * memory.before + correct.now * data
        corrected = _weighted_past(corrected, correct.past, memory.past)
        row = memory.predictor[memory.number]
        predict = _Weights(row[0], row[1], row[2], row[3], row[4:])
        x = _weighted_past(predict.x * corrected + predict.data * data, predict.past, memory.past)
        past = _remember(memory.past, memory.number, data)
        return x, _CorrectedMemory(memory.number + 1, memory.predictor, memory.corrector, corrected, past)

    return Sampler(init, step)


def _correction(knots: Knot, rules: _Rules) -> _Correction:
    """What corrects the state at the start of each step: the step before it again, with the estimate at its end."""
    count = rules.order + 1
    nodes, k, moments = _data_moments(knots, count, 0.0)
    orders = _orders(rules.order, nodes, knots.t, lower_order_end=rules.lower_order_end)
    moments = _with_slope(moments, k, rules.slope, orders == 1)
    places, used = _places(nodes, orders, rules.order)
    exists = jnp.isfinite(jnp.diff(nodes)) & (jnp.diff(nodes) != 0)
    # the value at the end, at place 1, comes second: the first ones must be those in use
    places = [places[0], jnp.ones_like(k), *places[1:]]
    used = [used[0], exists, *[use & exists for use in used[1:]]]
    newest, end, *older = interpolation_weights(places, used, moments)
    alpha, kept = knots.alpha[1:], knots.sigma[1:] / knots.sigma[:-1]
    moves = jnp.diff(nodes) != 0
    applies = _before(exists, 1, False) & moves

    def of_the_step_before(values: Array) -> Array:
        return jnp.where(applies, _before(values, 1, 0.0), 0.0)

    return _Correction(
        own=jnp.where(applies, 0.0, 1.0),
        before=of_the_step_before(kept),
        now=of_the_step_before(alpha * end),
        past=[of_the_step_before(alpha * weight) for weight in (newest, *older)],
    )
