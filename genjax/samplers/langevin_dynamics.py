"""Langevin dynamics: samples from a score alone, corrected by a density, annealed over noise levels, or after another step.

With s the score of p, a step of size h is

    y = x + h s(x) + sqrt(2 h) z,   z ~ N(0, I)                                    (`langevin`, unadjusted)

whose stationary density tends to p with h: on N(m, v) it is `N(m, v / (1 - h / (2 v)))`, for h < 2 v. Metropolis's rule makes
p itself stationary (`mala`; Roberts & Tweedie 1996): move to y with probability `min(1, p(y) q(x | y) / (p(x) q(y | x)))`,
`q(y | x) = N(y; x + h s(x), 2 h I)`, else stay.

On a path the score is the denoiser's, `s(x) = -noise / sigma`, and a step is measured by the noise, `h = relative_step sigma^2`:

    y = x - relative_step sigma noise + sqrt(2 relative_step) sigma z
    annealed      relative_step = eps / (2 sigma_min^2): the steps eps sigma^2 / sigma_min^2 of Song & Ermon 2019 (arXiv
                  1907.05600), algorithm 1, are 2 h; with their eps = 2e-5 and sigma_min = 0.01 it is 0.1
    corrector     relative_step = 2 r^2, r the signal-to-noise ratio of Song et al. 2021 (arXiv 2011.13456), algorithms 4-5

Their corrector takes `h = 2 r^2 |z|^2 / |s|^2`, in their code with norms averaged over the batch. Here the norms are those of
pure noise, `|z|^2 = D` and `|s|^2 = D / sigma^2`: the same h for every example, so that none depends on the batch it is drawn
in. The norms of each example would do that too, but an h that depends on x and z does not keep p: on a Gaussian, at r = 0.16,
the variance would come to 1.09 times the true one in 64 dimensions and 1.6 times in 8, and in 2 one small score throws an
example far out; here it is 1.03 times in all. The factor `1 - beta` of their algorithm 5, which is near 1, is left out.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from genjax.arrays import as_example_keys, expand, fold_each, normal, sum_events
from genjax.samplers.loop import Memory, Sampler, one_step
from genjax.samplers.ode import away_from_data
from genjax.typing import Array, Denoiser, Key, Knot
from genjax.vector_fields import Field


def _step(score: Array, x: Array, z: Array, step_size: Array) -> Array:
    return x + step_size * score + jnp.sqrt(2 * step_size) * z


def _sizes(step_size: Array | float, x: Array) -> Array:
    return expand(jnp.asarray(step_size, x.dtype), x)


def _split_each(keys: Key, num: int) -> Key:
    """`num` keys of each example's: `[num, B]`."""
    return jax.vmap(lambda one: jax.random.split(one, num), out_axes=1)(keys)


def langevin(score: Field, key: Key, x: Array, *, step_size: Array | float, num_steps: int) -> Array:
    """`num_steps` unadjusted Langevin steps from `x`: `[B, ...]`. One call of the score a step, one scan.

    Args:
        score: `s(x [B, ...]) -> [B, ...]`.
        key: one key, or one key an example `[B]`: example i depends on its own alone.
        x: where to start, `[B, ...]`.
        step_size: h, a number or `[B]`, in squared units of x.
        num_steps: how many.

    Source: Song & Ermon 2019 (arXiv 1907.05600), eq. 4, whose epsilon is 2 h.
    """
    keys, step_size = as_example_keys(key, x.shape[0]), _sizes(step_size, x)

    def advance(x: Array, index: Array) -> tuple[Array, None]:
        return _step(score(x), x, normal(fold_each(keys, index), x.shape, x.dtype), step_size), None

    return jax.lax.scan(advance, x, jnp.arange(num_steps))[0]


class _Place(NamedTuple):
    x: Array  # [B, ...]
    log_density: Array  # [B]
    score: Array  # [B, ...]


def mala(
    log_density: Callable[[Array], Array], key: Key, x: Array, *, step_size: Array | float, num_steps: int
) -> tuple[Array, Array]:
    """`num_steps` Metropolis-adjusted Langevin steps from `x`. One gradient of the log-density a step, one scan.

    Args:
        log_density: `[B, ...] -> [B]`, nats, up to a constant; example i depends on x[i] alone. A proposal where it is
            -inf or NaN is rejected.
        key: one key, or one key an example `[B]`: example i depends on its own alone.
        x: where to start, `[B, ...]`, of positive density.
        step_size: h, a number or `[B]`, in squared units of x.
        num_steps: how many, at least 1.

    Returns:
        The last states `[B, ...]`, and the fraction of proposals that each example accepted `[B]`: about 0.574 at the most
        efficient h in many dimensions (Roberts & Rosenthal 1998).

    Raises:
        ValueError: num_steps is below 1.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}; expected at least 1")
    keys, step_size = as_example_keys(key, x.shape[0]), _sizes(step_size, x)

    def place(x: Array) -> _Place:
        value, pullback = jax.vjp(log_density, x)
        return _Place(x, value, pullback(jnp.ones_like(value))[0])

    def log_proposal(source: _Place, target: _Place) -> Array:
        """`log q(target | source)` up to a constant."""
        return -sum_events(jnp.square(target.x - source.x - step_size * source.score) / (4 * step_size))

    def advance(carry: tuple[_Place, Array], index: Array) -> tuple[tuple[_Place, Array], None]:
        now, accepted = carry
        noise_keys, uniform_keys = _split_each(fold_each(keys, index), 2)
        then = place(_step(now.score, now.x, normal(noise_keys, x.shape, x.dtype), step_size))
        log_ratio = then.log_density + log_proposal(then, now) - now.log_density - log_proposal(now, then)
        moves = jnp.log(jax.vmap(jax.random.uniform)(uniform_keys)) < log_ratio  # False on NaN
        here = jax.tree.map(lambda new, old: jnp.where(expand(moves, new), new, old), then, now)
        return (here, accepted + moves), None

    start = place(x), jnp.zeros(x.shape[0], jnp.int32)
    (last, accepted), _ = jax.lax.scan(advance, start, jnp.arange(num_steps))
    return last.x, accepted / num_steps


def score_of(denoise: Denoiser, x: Array, knot: Knot) -> Array:
    """The score of the noisy marginal, `-noise / sigma`, at `x [B, ...]` by one call. Singular where sigma = 0."""
    return -denoise(x, knot).noise / knot.sigma


def _step_at(noise: Array, key: Key, x: Array, sigma: Array, relative_step: float) -> Array:
    fresh = math.sqrt(2 * relative_step) * normal(key, x.shape, x.dtype)
    return x + sigma * (fresh - relative_step * noise)


def dwell(knots: Knot, steps: int) -> Knot:
    """The grid that stays for `steps` intervals at every knot but the last: `[levels + 1]` to `[levels * steps + 1]`.

    >>> dwell(Knot(*[jnp.asarray([2.0, 1.0, 0.0])] * 3), 2).sigma.tolist()
    [2.0, 2.0, 1.0, 1.0, 0.0]
    """
    return Knot(*(jnp.append(jnp.repeat(values[:-1], steps), values[-1]) for values in knots))


def annealed_langevin(relative_step: float = 0.1) -> Sampler:
    """Langevin steps of size `relative_step sigma^2` at the level that a step leaves from. One call.

    How long it stays at a level is the grid's: `dwell(knots, 100)` takes 100 steps at each, as the paper does. A step that
    lands on sigma = 0 is the estimate of the data, without the noise of the last level (Jolicoeur-Martineau et al. 2021,
    arXiv 2009.05475). Where alpha changes (the paper's is 1) x is not rescaled: the steps at the next level make up for it.

    Args:
        relative_step: above 0 and below 2; the variance that it settles at is too large by a fraction of at most
            `relative_step / (2 - relative_step)`.

    Raises:
        ValueError: relative_step is outside of it.
    """
    if not 0 < relative_step < 2:
        raise ValueError(f"relative_step is {relative_step}; Langevin steps are stable above 0 and below 2")

    def step(denoise: Denoiser, key: Key, x: Array, now: Knot, then: Knot) -> Array:
        data, noise = denoise(x, now)
        return jnp.where(then.sigma == 0, then.alpha * data, _step_at(noise, key, x, now.sigma, relative_step))

    return one_step(step)


def predictor_corrector(predictor: Sampler, *, corrector_steps: int = 1, signal_to_noise: float = 0.16) -> Sampler:
    """A step of any sampler, then Langevin steps at the level it has landed on: `corrector_steps` more calls.

    The predictor runs first, as in the paper's algorithms 1-3; the authors' code runs the corrector first, at the level that
    the predictor leaves from. Where sigma = 0 nothing is corrected. Steps of the corrector have the size
    `2 signal_to_noise^2 sigma^2`, the same for every example (see the module).

    Args:
        predictor: from `genjax.samplers`, with or without memory.
        corrector_steps: after each of the predictor's.
        signal_to_noise: r, at least 0 and below 1: how long the step along the score is to that along the noise, at most.

    Raises:
        ValueError: an option outside of its range; or, when sampling, noise handed in instead of keys, of which a step
            needs more than one.
    """
    if corrector_steps < 0 or not 0 <= signal_to_noise < 1:
        raise ValueError(
            f"corrector_steps is {corrector_steps}, signal_to_noise {signal_to_noise}; expected at least 0 and in [0, 1)"
        )

    def step(denoise: Denoiser, key: Key, x: Array, memory: Memory, now: Knot, then: Knot) -> tuple[Array, Memory]:
        if jnp.issubdtype(key.dtype, jnp.floating):
            raise ValueError("predictor_corrector draws more than once a step; give it a key instead of noise")
        predictor_key, *corrector_keys = _split_each(key, 1 + corrector_steps)
        x, memory = predictor.step(denoise, predictor_key, x, memory, now, then)
        level = away_from_data(then, now)
        for corrector_key in corrector_keys:
            noise = denoise(x, level).noise
            corrected = _step_at(noise, corrector_key, x, level.sigma, 2 * signal_to_noise**2)
            x = jnp.where(then.sigma == 0, x, corrected)
        return x, memory

    return Sampler(predictor.init, step)
