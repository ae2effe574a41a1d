"""Variational autoencoder: a latent code with a Gaussian posterior, trained on a lower bound of log p(data).

    loss    beta KL(q(z | x) || N(0, I)) - E_q[log p(x | z)],   or minus the importance-weighted bound
    sample  z ~ N(0, I), then p(x | z): a draw for points, its mean for images

The scale of p(x | z) is learned, so that reconstruction and KL are weighed by the data and not by hand
(Rybkin et al. 2021, arXiv 2006.13202); for points it depends on z. Kingma & Welling 2014 (arXiv 1312.6114).
"""

import dataclasses
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import optax
import tyro

from genjax.arrays import as_example_keys, fold_each, normal
from genjax.errors import UsageError
from genjax.losses import likelihood, variational
from genjax.methods.network_options import ByData, check_halvings
from genjax.methods.recommended import Recommended
from genjax.training.compilation import convolution_options, convolution_steps_per_dispatch
from genjax.training.steps import from_loss, new_state, with_ema
from genjax.typing import Array, Batch, Examples, Key, Method, Metrics, Net, Params, State

_HALVINGS = 2
"""How often an encoder halves the sides of an image."""

_LEAST_LOG_VARIANCE = -12.0
"""Of a point's coordinate given z, so that a density cannot grow without bound on one example."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Variational autoencoder."""

    latent: Annotated[int | None, ByData] = None
    """dimensions of the code; its channels with --spatial"""
    spatial: bool = False
    """the code of an image is a map of a quarter of its sides, rather than a vector"""
    beta: float = 1.0
    """weight of the KL term; 1 is the bound"""
    importance_samples: Annotated[int | None, ByData] = None
    """draws of the code an example; above 1 the importance-weighted bound, doubly reparameterised"""
    free_bits: float = 0.0
    """nats that each dimension of the code may use at no cost"""
    kl_warmup: int = 0
    """steps over which the weight of the KL term rises from 0"""
    likelihood: Annotated[
        Literal["gaussian", "discretized-logistic", "bernoulli"] | None,
        tyro.conf.arg(metavar="{gaussian,discretized-logistic,bernoulli}", help_behavior_hint="(default: by data)"),
    ] = None
    """of the data given the code; bernoulli takes grey values for probabilities, and is a likelihood of two levels only"""
    width: Annotated[int | None, ByData] = None
    """hidden units (points), channels at full size (images)"""
    ema_decay: float = 0.999
    """decay of the moving average of the parameters that sampling uses"""


def recommended(examples: Examples) -> Recommended:
    """Training that gives a good result on such examples."""
    if examples.are_images:
        steps = 1_500 if examples.are_small_images else 2_500
        return Recommended(steps, 128, 1e-3, steps_per_dispatch=convolution_steps_per_dispatch())
    return Recommended(steps=10_000, batch_size=128, learning_rate=2e-3, steps_per_dispatch=100)


def resolve(config: Config, examples: Examples) -> Config:
    """`config` with every default chosen.

    Raises:
        UsageError: options that do not fit the data or each other.
    """
    for name, least in {
        "latent": 1,
        "width": 1,
        "importance_samples": 1,
        "kl_warmup": 0,
        "beta": 0,
        "free_bits": 0,
    }.items():
        value = getattr(config, name)
        if value is not None and not value >= least:
            raise UsageError(f"--{name.replace('_', '-')} is {value}; expected at least {least}")
    weighted = config.beta != 1 or config.free_bits > 0 or config.kl_warmup > 0
    if weighted and (config.importance_samples or 1) > 1:
        raise UsageError("--importance-samples bounds log p itself: --beta, --free-bits and --kl-warmup do not apply")
    if config.likelihood == "discretized-logistic" and not examples.levels:
        raise UsageError("--likelihood discretized-logistic is for integer images; these data take gaussian")
    if config.likelihood == "bernoulli" and not examples.are_images:
        raise UsageError("--likelihood bernoulli is for images; points take gaussian")
    if config.spatial and not examples.are_images:
        raise UsageError("--spatial is for images; the code of a point is a vector")
    check_halvings(examples, _HALVINGS)
    return dataclasses.replace(
        config,
        latent=config.latent or (4 if config.spatial else 16 if examples.are_images else 2),
        importance_samples=config.importance_samples or (1 if examples.are_images or weighted else 16),
        likelihood=config.likelihood or ("discretized-logistic" if examples.levels else "gaussian"),
        width=config.width or (128 if not examples.are_images else 32 if examples.are_small_images else 16),
    )


def build(config: Config, optimizer: optax.GradientTransformation, examples: Examples) -> Method:
    """The method for such examples; labels are not used."""
    config = resolve(config, examples)
    latent, importance_samples = _latent_shape(config, examples), config.importance_samples or 1
    encoder, decoder = _networks(config, examples)
    greatest = (examples.levels - 1) / examples.levels if examples.levels else 1.0

    def encode_with(params: Params) -> variational.Encoder:
        return lambda data: variational.Posterior(*jnp.split(encoder.apply(params["encoder"], data), 2, axis=-1))

    def decode_with(params: Params) -> variational.Decoder:
        def decode(z: Array) -> tuple[Array, Array]:
            output = decoder.apply(params["decoder"], z)
            if examples.are_images:
                scale = params["log_scale"].reshape((1,) * (output.ndim - 1) + (-1,))
                return output, jnp.broadcast_to(scale, output.shape)
            mean, log_variance = jnp.split(output, 2, axis=-1)
            return mean, jnp.maximum(log_variance, _LEAST_LOG_VARIANCE)

        return decode

    def log_likelihood_with(key: Key) -> variational.LogLikelihood:
        def log_likelihood(parameters: tuple[Array, Array], data: Array) -> Array:
            location, spread = parameters
            if config.likelihood == "bernoulli":
                return likelihood.bernoulli(location, (data / greatest + 1) / 2)
            if config.likelihood == "discretized-logistic":
                return likelihood.discretized_logistic(location, data, log_scale=spread, levels=examples.levels)

            def log_density(x: Array) -> Array:
                return likelihood.gaussian(location, x, log_variance=spread)

            return likelihood.dequantised(log_density, key, data, levels=examples.levels)

        return log_likelihood

    def mean_of(parameters: tuple[Array, Array]) -> Array:
        location, _ = parameters
        return greatest * (2 * jax.nn.sigmoid(location) - 1) if config.likelihood == "bernoulli" else location

    def loss_at(step: Array | float) -> Any:
        weight = config.beta * (variational.kl_warmup(jnp.asarray(step), config.kl_warmup) if config.kl_warmup else 1.0)

        def loss(params: Params, key: Key, batch: Batch) -> tuple[Array, Metrics]:
            pair = encode_with(params), decode_with(params)
            key, likelihood_key = jax.random.split(key)
            log_likelihood = log_likelihood_with(likelihood_key)
            if importance_samples > 1:
                bound = variational.doubly_reparameterized_iwae(
                    *pair, key, batch.data, log_likelihood=log_likelihood, samples=importance_samples
                )
                return -jnp.mean(bound), {}
            terms = variational.elbo(*pair, key, batch.data, log_likelihood=log_likelihood, free_bits=config.free_bits)
            metrics = {"reconstruction": jnp.mean(terms.reconstruction), "kl": jnp.mean(terms.kl)}
            return jnp.mean(variational.negative_elbo(terms, beta=weight)), metrics

        return loss

    def init(key: Key, batch: Batch) -> State:
        run_key, encoder_key, decoder_key = jax.random.split(key, 3)
        params = {
            "encoder": encoder.init(encoder_key, batch.data),
            "decoder": decoder.init(decoder_key, jnp.zeros((len(batch.data), *latent))),
            "log_scale": jnp.full(examples.event_shape[-1:], -1.0),
        }
        return new_state(run_key, params, optimizer.init(params))

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        return from_loss(loss_at(state.step), optimizer)(state, batch)

    def evaluate(params: Params, key: Key, batch: Batch) -> Metrics:
        value, metrics = loss_at(float(config.kl_warmup))(params, key, batch)
        return {"loss": value, **metrics}

    def sample(params: Params, key: Key, num: int) -> Array:
        """`num` draws `[num, ...]` in model units."""
        keys = as_example_keys(key, num)
        parameters = decode_with(params)(normal(fold_each(keys, jnp.uint32(0)), (num, *latent)))
        mean = mean_of(parameters)
        if examples.are_images:
            return mean
        return mean + jnp.exp(0.5 * parameters[1]) * normal(fold_each(keys, jnp.uint32(1)), mean.shape)

    def log_prob(params: Params, key: Key, data: Array, *, samples: int = 64 if examples.are_images else 256) -> Array:
        """A lower bound of log p(data) by `samples` importance samples that tightens as they grow: `[B]`, nats."""
        posterior = encode_with(params)(data)

        def log_weight(key: Key) -> Array:
            key, likelihood_key = jax.random.split(key)
            log_likelihood = log_likelihood_with(likelihood_key)
            return variational.iwae(
                lambda _: posterior, decode_with(params), key, data, log_likelihood=log_likelihood, samples=1
            )

        return variational.importance_bound(jax.lax.map(log_weight, jax.random.split(key, samples)))

    def encode(params: Params, key: Key, data: Array) -> Array:
        """A draw of q(z | x)."""
        posterior = encode_with(params)(data)
        return variational.reparameterize(posterior, normal(key, posterior.mean.shape, posterior.mean.dtype))

    def decode(params: Params, z: Array) -> Array:
        """The mean of p(x | z)."""
        return mean_of(decode_with(params)(z))

    def reconstruct(params: Params, key: Key, data: Array) -> Array:
        """The mean of p(x | z) at the posterior's mean; the key is not used."""
        return decode(params, encode_with(params)(data).mean)

    return Method(
        init,
        with_ema(step, config.ema_decay),
        sample,
        evaluate=evaluate,
        log_prob=None if config.likelihood == "bernoulli" and examples.levels != 2 else log_prob,
        reconstruct=reconstruct,
        encode=encode,
        decode=decode,
        latent=latent,
        bounds_log_prob=True,
        compiler_options=convolution_options() if examples.are_images else None,
    )


def _latent_shape(config: Config, examples: Examples) -> tuple[int, ...]:
    sides = tuple(side // 2**_HALVINGS for side in examples.event_shape[:2]) if config.spatial else ()
    return (*sides, config.latent or 0)


def _networks(config: Config, examples: Examples) -> tuple[Net, Net]:
    from genjax.networks import autoencoder
    from genjax.networks.autoencoder import point_decoder, point_encoder

    latent, width = config.latent or 0, config.width or 0
    if examples.are_images:
        encoder = autoencoder.map_encoder if config.spatial else autoencoder.image_encoder
        decoder = autoencoder.map_decoder if config.spatial else autoencoder.image_decoder
        return (
            encoder(examples.event_shape, 2 * latent, base=width, halvings=_HALVINGS),
            decoder(examples.event_shape, base=width, halvings=_HALVINGS),
        )
    features = (width, width)
    return point_encoder(2 * latent, features=features), point_decoder(2 * examples.event_shape[0], features=features)
