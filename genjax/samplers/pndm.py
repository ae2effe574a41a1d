"""PNDM whole: its linear multistep part, started by the pseudo Runge-Kutta steps of the paper or by two calls.

With the transfer of a state by one noise estimate e (DDIM's step),

    phi(x, e, now, then) = (alpha_then / alpha_now) x + (sigma_then - (alpha_then / alpha_now) sigma_now) e,

every call of the network is followed by one transfer from the state where its step began, by a mean of the estimates so far:

    start          calls of a step                                    e of the transfers, each from the state at t_now
    runge-kutta    t_now, t_half, t_half, t_then: first three steps   e1; e2; e3; (e1 + 2 e2 + 2 e3 + e4) / 6
    two-call       t_now, t_then: first step                          e1; (e1 + e2) / 2
    multistep      t_now                                              Adams-Bashforth of the first estimates of four steps

One call a step of the loop needs a grid on which a knot stands once for each of its calls: `pndm_times`.
"""

from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from genjax.samplers.loop import Sampler
from genjax.typing import Array, Denoiser, Key, Knot

Start = Literal["runge-kutta", "two-call"]

ADAMS_BASHFORTH = (
    (1.0, 0.0, 0.0, 0.0),
    (3 / 2, -1 / 2, 0.0, 0.0),
    (23 / 12, -16 / 12, 5 / 12, 0.0),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
STEPS_OF_START = {"runge-kutta": 3, "two-call": 1}


def pndm_times(t: Array, start: Start = "runge-kutta") -> Array:
    """The times of all calls of `pndm(start)` on the grid `t [steps + 1]`, and the last of t: `[calls + 1]`.

    Three steps of four calls make `[steps + 10]`, one of two `[steps + 2]`; `t_half = (t_now + t_then) / 2`.

    Example:
        >>> pndm_times(jnp.array([1.0, 0.5, 0.0]), "two-call").tolist()
        [1.0, 0.5, 0.5, 0.0]

    Raises:
        ValueError: `start` is neither, or the grid has fewer steps than the start.
    """
    _check_start(start)
    steps = STEPS_OF_START[start]
    if len(t) <= steps:
        raise ValueError(f"the grid has {len(t) - 1} steps; expected at least {steps}, which the start {start!r} takes")
    now, then = t[:steps], t[1 : steps + 1]
    half = (now + then) / 2
    calls = jnp.stack([now, half, half, then] if start == "runge-kutta" else [now, then], axis=1)
    return jnp.concatenate([calls.reshape(-1), t[steps:]])


class _Call(NamedTuple):
    """`mean = newest e + total sum + past_j e_j`, `sum = kept sum + added e`; whether e is remembered, whether the step ends.

    Numbers, or a column of them `[calls]`.
    """

    newest: Any
    total: Any = 0.0
    past: Any = (0.0, 0.0, 0.0)
    kept: Any = 0.0
    added: Any = 0.0
    remembered: Any = 0.0
    ends: Any = 0.0


RUNGE_KUTTA = (
    _Call(1.0, added=1.0, remembered=1.0),
    _Call(1.0, kept=1.0, added=2.0),
    _Call(1.0, kept=1.0, added=2.0),
    _Call(1 / 6, total=1 / 6, ends=1.0),
)
TWO_CALL = (_Call(1.0, added=1.0, remembered=1.0), _Call(1 / 2, total=1 / 2, ends=1.0))


def _multistep(order: int) -> _Call:
    newest, *past = ADAMS_BASHFORTH[order - 1]
    return _Call(newest, past=past, remembered=1.0, ends=1.0)


def _of_start(start: Start) -> tuple[_Call, ...]:
    return RUNGE_KUTTA * 3 if start == "runge-kutta" else TWO_CALL


def _calls(start: Start, count: int) -> list[_Call]:
    first, steps = _of_start(start), STEPS_OF_START[start]
    return [*first, *(_multistep(min(steps + number, 4)) for number in range(1, count - len(first) + 1))]


class _Transfer(NamedTuple):
    """`x_then = x x_begun + data data + noise noise + mean mean`: `[calls]`."""

    x: Array
    data: Array
    noise: Array
    mean: Array


def _transfers(knots: Knot, calls: list[_Call]) -> _Transfer:
    begun, where = [], 0
    for number, call in enumerate(calls):
        begun.append(where)
        where = number + 1 if call.ends else where
    alpha, sigma = knots.alpha[np.array(begun)], knots.sigma[np.array(begun)]
    pure_noise = alpha == 0
    kept = knots.alpha[1:] / jnp.where(pure_noise, 1.0, alpha)
    return _Transfer(
        x=jnp.where(pure_noise, 0.0, kept),
        data=jnp.where(pure_noise, knots.alpha[1:], 0.0),
        noise=jnp.where(pure_noise, knots.sigma[1:], 0.0),
        mean=jnp.where(pure_noise, 0.0, knots.sigma[1:] - kept * sigma),
    )


class _Memory(NamedTuple):
    number: Array
    calls: _Call
    transfers: _Transfer
    begun: Array
    total: Array
    past: tuple[Array, ...]


def pndm(start: Start = "runge-kutta") -> Sampler:
    """PNDM (Liu et al. 2022, arXiv 2202.09778, equations 9, 12 and 13, algorithm 2), on a grid of `pndm_times(t, start)`.

    Of order 2 on a grid even in t, as `plms`, which starts by DDIM instead; a step that begins where alpha = 0 is made of DDIM's.

    Args:
        start: "runge-kutta", the paper's (F-PNDM): three steps of four calls; "two-call", one step of two, as
            latent-diffusion's PLMS and diffusers with `skip_prk_steps` do.

    Example:
        >>> from genjax import paths
        >>> knots = paths.knots(paths.cosine(), pndm_times(jnp.linspace(0.98, 0.0, 11)))
        >>> knots.t.shape
        (20,)

    Raises:
        ValueError: `start` is neither; on use, the grid has too few knots for the start.
    """
    _check_start(start)

    def init(x: Array, knots: Knot) -> _Memory:
        count, needed = len(knots.t) - 1, len(_of_start(start))
        if count < needed:
            raise ValueError(
                f"the grid has {count} calls; expected at least {needed}: make it with pndm_times(t, {start!r})"
            )
        calls = _calls(start, count)
        table = _Call(*(jnp.asarray(column, x.dtype) for column in zip(*calls, strict=True)))
        transfers = _Transfer(*(values.astype(x.dtype) for values in _transfers(knots, calls)))
        none = jnp.zeros_like(x)
        return _Memory(jnp.asarray(0), table, transfers, x, none, (none, none, none))

    def step(denoise: Denoiser, key: Key, x: Array, memory: _Memory, now: Knot, then: Knot) -> tuple[Array, _Memory]:
        number, calls, transfers, begun, total, past = memory
        call = _Call(*(column[number] for column in calls))
        transfer = _Transfer(*(column[number] for column in transfers))
        data, noise = denoise(x, now)
        mean = call.newest * noise + call.total * total
        for number_back, estimate in enumerate(past):
            mean = mean + call.past[number_back] * estimate
        x = transfer.x * begun + transfer.data * data + transfer.noise * noise + transfer.mean * mean
        begun = jnp.where(call.ends > 0, x, begun)
        newer = (noise, *past[:2])
        past = tuple(jnp.where(call.remembered > 0, new, old) for new, old in zip(newer, past, strict=True))
        return x, _Memory(number + 1, calls, transfers, begun, call.kept * total + call.added * noise, past)

    return Sampler(init, step)


def _check_start(start: str) -> None:
    if start not in STEPS_OF_START:
        raise ValueError(f"start is {start!r}; expected 'runge-kutta' or 'two-call'")
