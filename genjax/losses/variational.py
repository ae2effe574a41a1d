"""Variational bounds: the ELBO, the importance-weighted bound, and the doubly reparameterised gradient.

With an encoder q(z | x) = N(m(x), diag s(x)^2), a prior N(0, I) and a decoder p(x | z),

    log p(x) = ELBO + KL(q(z | x) || p(z | x)),   ELBO = E_q[log p(x | z)] - KL(q(z | x) || p(z))
    log p(x) >= IWAE_k = E log 1/k sum_i w_i,     w_i = p(x | z_i) p(z_i) / q(z_i | x);   IWAE_1 = ELBO

Kingma & Welling 2014 (arXiv 1312.6114), eq. 10; Higgins et al. 2017 (beta); Burda et al. 2016 (1509.00519), eq. 8;
Kingma et al. 2016 (1606.04934), appendix C (free bits); Tucker et al. 2019 (1810.04152), eq. 8 (DReG).

Encoder and decoder are any functions: `encode(x [B, ...]) -> Posterior`, `decode(z [N, ...]) -> parameters`, and
`log_likelihood(parameters, x) -> [N]` is one of `genjax.losses.likelihood`, or any other.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from genjax.arrays import expand, sum_events
from genjax.divergences import gaussian_log_density, kl_standard_normal_terms
from genjax.typing import Array, Key


class Posterior(NamedTuple):
    """What an encoder says of z: a diagonal Gaussian, both `[B, ...]`."""

    mean: Array
    log_variance: Array


class Elbo(NamedTuple):
    """The two terms of the bound, `[B]`, nats: `ELBO = reconstruction - kl`."""

    reconstruction: Array
    kl: Array


Encoder = Callable[[Array], Posterior]
Decoder = Callable[[Array], Any]
LogLikelihood = Callable[[Any, Array], Array]


def reparameterize(posterior: Posterior, noise: Array) -> Array:
    """`z = mean + exp(log_variance / 2) noise`, of the shape of `noise`: `[B, ...]`, or `[k, B, ...]` for k draws."""
    deviation = jnp.exp(0.5 * posterior.log_variance)
    extra = noise.ndim - posterior.mean.ndim
    mean, deviation = (value.reshape((1,) * extra + value.shape) for value in (posterior.mean, deviation))
    return mean + deviation * noise


def elbo_terms(
    encode: Encoder,
    decode: Decoder,
    data: Array,
    noise: Array,
    *,
    log_likelihood: LogLikelihood,
    free_bits: float = 0.0,
) -> Elbo:
    """One-sample estimate of the reconstruction at given noise, and the exact KL: `Elbo` of `[B]`.

    Args:
        encode: the encoder.
        decode: the decoder.
        data: `[B, ...]`.
        noise: `[B, ...]` of the latent shape, standard normal.
        log_likelihood: `log p(data | parameters)`, `[B]`.
        free_bits: nats that each latent dimension of each example may use at no cost: `max(kl_j, free_bits)` is summed.
    """
    posterior = encode(data)
    reconstruction = log_likelihood(decode(reparameterize(posterior, noise)), data)
    kl = jnp.maximum(kl_standard_normal_terms(*posterior), free_bits)
    return Elbo(reconstruction, sum_events(kl))


def elbo(
    encode: Encoder,
    decode: Decoder,
    key: Key,
    data: Array,
    *,
    log_likelihood: LogLikelihood,
    free_bits: float = 0.0,
) -> Elbo:
    """`elbo_terms` at drawn noise: `reconstruction` and `kl`, `[B]`, nats."""
    shape = jax.eval_shape(encode, data).mean.shape
    noise = jax.random.normal(key, shape, data.dtype)
    return elbo_terms(encode, decode, data, noise, log_likelihood=log_likelihood, free_bits=free_bits)


def negative_elbo(terms: Elbo, *, beta: Array | float = 1.0) -> Array:
    """The loss `beta kl - reconstruction`, `[B]`, nats; beta 1 is the bound, a schedule of beta is KL warm-up."""
    return beta * terms.kl - terms.reconstruction


def kl_warmup(step: Array, steps: int) -> Array:
    """A weight of the KL term that rises linearly from 0 at step 0 to 1 at step `steps` (Bowman et al. 2016, 1511.06349)."""
    return jnp.minimum(step / max(steps, 1), 1.0)


def log_importance_weights(
    encode: Encoder, decode: Decoder, data: Array, noise: Array, *, log_likelihood: LogLikelihood
) -> Array:
    """`log w_i = log p(x | z_i) + log p(z_i) - log q(z_i | x)`, `[k, B]`, nats.

    Args:
        encode: the encoder.
        decode: the decoder; sees `[k B, ...]`.
        data: `[B, ...]`.
        noise: `[k, B, ...]`, standard normal.
        log_likelihood: `[k B]` for k copies of the data.
    """
    posterior = encode(data)
    return _log_weights(decode, posterior, data, reparameterize(posterior, noise), log_likelihood)


def _log_weights(decode: Decoder, q: Posterior, data: Array, z: Array, log_likelihood: LogLikelihood) -> Array:
    draws, batch = z.shape[:2]
    flat = z.reshape(draws * batch, *z.shape[2:])
    mean, log_variance = (jnp.broadcast_to(value[None], z.shape).reshape(flat.shape) for value in q)
    repeated = jnp.broadcast_to(data[None], (draws, *data.shape)).reshape(draws * batch, *data.shape[1:])
    prior = gaussian_log_density(flat, jnp.zeros_like(flat), jnp.zeros_like(flat))
    log_weights = log_likelihood(decode(flat), repeated) + prior - gaussian_log_density(flat, mean, log_variance)
    return log_weights.reshape(draws, batch)


def importance_bound(log_weights: Array) -> Array:
    """`log (1/k sum_i w_i)` of `log_weights [k, B]`: `[B]`, nats."""
    return jax.nn.logsumexp(log_weights, axis=0) - jnp.log(jnp.asarray(log_weights.shape[0], log_weights.dtype))


def iwae(
    encode: Encoder, decode: Decoder, key: Key, data: Array, *, log_likelihood: LogLikelihood, samples: int
) -> Array:
    """The importance-weighted bound with `samples` draws an example: `[B]`, nats, at most log p(x) in expectation."""
    noise = _noise(encode, key, data, samples)
    return importance_bound(log_importance_weights(encode, decode, data, noise, log_likelihood=log_likelihood))


def _noise(encode: Encoder, key: Key, data: Array, samples: int) -> Array:
    return jax.random.normal(key, (samples, *jax.eval_shape(encode, data).mean.shape), data.dtype)


def doubly_reparameterized_iwae(
    encode: Encoder, decode: Decoder, key: Key, data: Array, *, log_likelihood: LogLikelihood, samples: int
) -> Array:
    """`iwae`, whose gradient in the encoder is the doubly reparameterised one: `[B]`, nats.

    With `v_i = w_i / sum w`, the gradient in the decoder is `sum v_i d log w_i`, that of the bound; in the encoder it is
    `sum v_i^2 (d log w_i / d z_i) d z_i`, without the score of q, whose signal falls behind its noise as `samples`
    grows. Same value, same mean gradient, less variance (Tucker et al. 2019, arXiv 1810.04152, eq. 8).
    """
    noise = _noise(encode, key, data, samples)
    posterior = encode(data)
    held, z = jax.lax.stop_gradient(posterior), reparameterize(posterior, noise)
    detached = _log_weights(decode, held, data, jax.lax.stop_gradient(z), log_likelihood)
    bound = jax.lax.stop_gradient(importance_bound(detached))
    shares = jax.lax.stop_gradient(jax.nn.softmax(detached, axis=0))
    through = jax.lax.stop_gradient(z) + expand(shares, z) * (z - jax.lax.stop_gradient(z))
    surrogate = jnp.sum(shares * _log_weights(decode, held, data, through, log_likelihood), axis=0)
    return bound + surrogate - jax.lax.stop_gradient(surrogate)
