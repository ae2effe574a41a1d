"""The variance of a reverse step as something to learn, beside the mean that denoising learns.

The reverse step to a cleaner knot is `N(posterior mean of the estimate, large^f small^(1 - f))`, with small its posterior's and
large its transition's variance: the best ones if the data are one point, and if they are N(0, I). f in [0, 1], of each number,
is what the second half of a network's channels says. Its loss is the term of the variational bound of that step,

    KL(q(x_then | x_now, data) || p(x_then | x_now)),      the mean held fixed (no gradient)

of which f minimises the mean where the variance is small + E|posterior mean - its estimate|^2: what the data leave open.
The hybrid objective is `denoising_error + 0.001 learned_variance_error`.

Source: Nichol & Dhariwal 2021 (arXiv 2102.09672), eqs. 15 and 16 and section 3.1.
"""

import jax
import jax.numpy as jnp

from genjax import paths, predictions
from genjax.arrays import expand
from genjax.divergences import kl_diagonal
from genjax.predictions import Kind
from genjax.typing import Array, Knot, Model, Path


def learned_variance_error(
    model: Model, data: Array, noise: Array, now: Array, then: Array, *, path: Path, predict: Kind
) -> Array:
    """The divergence of a reverse step from its posterior, for the gradient of its variance alone: `[B]`, nats.

    Args:
        model: `f(x [B, ..., C], t [B]) -> [B, ..., 2 C]`: a prediction of `predict`, and `2 f - 1`.
        data: `[B, ..., C]`.
        noise: `[B, ..., C]`, standard normal.
        now: `[B]`, times on the clock of `path`.
        then: `[B]`, cleaner ones with sigma > 0: a step to sigma = 0 adds no noise, and has no variance to learn.
        path: the probability path.
        predict: what the first half of the output predicts.

    Raises:
        ValueError: the model does not return twice the channels.
    """
    x = paths.interpolate(path, data, noise, now)
    output = model(x, now)
    if output.shape != (*data.shape[:-1], 2 * data.shape[-1]):
        raise ValueError(
            f"the model returned shape {output.shape} for x of shape {data.shape}; expected twice the channels"
        )
    prediction, fraction = predictions.split_variance(output)
    estimate = predictions.to_pair(predict, path, jax.lax.stop_gradient(prediction), x, now).data
    at_now, at_then = (Knot(*(expand(value, data) for value in paths.knots(path, t))) for t in (now, then))
    of_data, of_estimate = (paths.posterior(x, value, at_now, at_then) for value in (data, estimate))
    small = jnp.broadcast_to(jnp.log(of_data.variance), data.shape)
    log_variance = small + fraction * 2 * (jnp.log(at_now.sigma) - jnp.log(at_then.sigma))
    return kl_diagonal(of_data.mean, small, of_estimate.mean, log_variance)
