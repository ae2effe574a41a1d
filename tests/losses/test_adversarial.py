"""Games at their optimal critics, where gradients vanish and where not, penalties by hand and their known bias."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import integrate, stats

from genjax import divergences, transport
from genjax.losses import adversarial

REFERENCE = np.load(Path(__file__).parents[1] / "reference" / "gradient_penalty.npz")
ACTIVATIONS = {"tanh": jnp.tanh, "leaky_relu": lambda x: jax.nn.leaky_relu(x, 0.2)}
WEIGHTS = ("W1", "b1", "W2", "b2", "W3", "b3")


# The game's value


def density(x, weights, means, deviations):
    return sum(w * stats.norm(m, s).pdf(x) for w, m, s in zip(weights, means, deviations, strict=True))


REAL = ((0.3, 0.7), (-2.0, 2.0), (0.5, 0.7))
FAKE = ((0.5, 0.5), (-1.0, 1.5), (0.8, 0.6))


def on_grid(mixture):
    x = np.linspace(-8, 8, 4001)
    return x, density(x, *mixture)


def value(logits):
    """`-E[critic loss]` of the minimax game, by quadrature."""
    x, p = on_grid(REAL)
    _, q = on_grid(FAKE)
    zero = jnp.full(x.shape, -jnp.inf)
    real = np.asarray(adversarial.minimax.critic(jnp.asarray(logits), zero))
    fake = np.asarray(adversarial.minimax.critic(-zero, jnp.asarray(logits)))
    return -integrate.simpson(p * real + q * fake, x=x)


def jensen_shannon():
    x, p = on_grid(REAL)
    _, q = on_grid(FAKE)
    m = (p + q) / 2
    return integrate.simpson(0.5 * (p * np.log(p / m) + q * np.log(q / m)), x=x)


def optimal_logits():
    (_, p), (_, q) = on_grid(REAL), on_grid(FAKE)
    return np.asarray(divergences.optimal_discriminator(jnp.log(p), jnp.log(q)))


def test_the_value_of_the_game_is_the_jensen_shannon_divergence(float64):
    assert value(optimal_logits()) == pytest.approx(-np.log(4) + 2 * jensen_shannon(), abs=1e-6)


def test_no_trained_discriminator_exceeds_the_optimal_one(float64):
    x = jnp.asarray(on_grid(REAL)[0])[:, None]
    weights = jnp.asarray(np.stack([on_grid(REAL)[1], on_grid(FAKE)[1]])) * 16 / 4000
    key_in, key_out = jax.random.split(jax.random.key(0))
    params = {
        "in": jax.random.normal(key_in, (1, 64)),
        "bias": jnp.linspace(-4.0, 4.0, 64),
        "out": 0.1 * jax.random.normal(key_out, (64,)),
    }
    optimizer = optax.adam(1e-2)

    def logits(params):
        return jnp.tanh(x @ params["in"] + params["bias"][None]) @ params["out"]

    def loss(params):
        found = logits(params)
        return jnp.sum(weights[0] * jax.nn.softplus(-found) + weights[1] * jax.nn.softplus(found))

    @jax.jit
    def step(params, opt_state):
        updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state)
        return optax.apply_updates(params, updates), opt_state

    opt_state, best = optimizer.init(params), value(optimal_logits())
    reached = []
    for index in range(1500):
        params, opt_state = step(params, opt_state)
        if index % 100 == 99:
            reached.append(value(np.asarray(logits(params))))
    assert max(reached) <= best + 1e-9
    assert best - reached[-1] < 0.01  # and it has learned


def test_where_the_critic_is_sure_only_the_saturating_gradient_vanishes():
    """Disjoint supports, a critic that tells them apart by 50 nats."""
    real, fake = jnp.full(1, 50.0), jnp.full(1, -50.0)

    def slope(game):
        return abs(float(jax.grad(lambda fake: game.generator(real, fake).sum())(fake)[0]))

    assert slope(adversarial.minimax) < 1e-20
    for game in (adversarial.non_saturating, adversarial.wasserstein, adversarial.hinge, adversarial.relativistic):
        assert slope(game) == pytest.approx(1.0)


@pytest.mark.parametrize("game", adversarial.GAMES.values(), ids=adversarial.GAMES)
def test_players_pull_the_fake_logits_apart_and_extreme_logits_stay_finite(game):
    def slopes(real, fake):
        real, fake = jnp.full(2, real), jnp.full(2, fake)
        assert game.critic(real, fake).shape == game.generator(real, fake).shape == (2,)
        return [jax.grad(lambda fake, loss=loss: loss(real, fake).sum())(fake) for loss in game]

    by_critic, by_generator = slopes(0.9, 0.3)
    assert np.all(by_critic * by_generator < 0)
    assert np.all(np.isfinite(slopes(200.0, -200.0)))


def check_parity(found, x64):
    """Of arrays by the peer's name, to 1e-10, or in single precision to 1e-4 of the greatest entry of each."""
    for name, value in found.items():
        scale = 1 if x64 else np.abs(REFERENCE[name]).max() or 1  # the gradients in some biases are 0
        difference = np.abs(np.asarray(value) - REFERENCE[name]).max() / scale
        print(f"{name}, {value.dtype}: {difference:.1e}")
        assert difference < (1e-10 if x64 else 1e-4)


@pytest.mark.parametrize("x64", [True, False])
def test_parity_of_the_games(x64):
    cases = {
        "gan_discriminator": adversarial.minimax.critic,
        "gan_generator_saturating": adversarial.minimax.generator,
        "gan_generator_nonsaturating": adversarial.non_saturating.generator,
        "wgan_critic": adversarial.wasserstein.critic,
        "hinge_discriminator": adversarial.hinge.critic,
        "lsgan_discriminator": adversarial.least_squares.critic,
    }
    with jax.enable_x64(x64):
        real, fake = jnp.asarray(REFERENCE["tanh_D_real"]), jnp.asarray(REFERENCE["tanh_D_fake"])
        check_parity({name: loss(real, fake) for name, loss in cases.items()}, x64)


# Penalties


def reference_critic(activation, params):
    w1, b1, w2, b2, w3, b3 = params

    def critic(x):
        hidden = activation(activation(x @ w1 + b1[None]) @ w2 + b2[None])
        return (hidden @ w3)[:, 0] + b3[0]

    return critic


@pytest.mark.parametrize("x64", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_parity_of_the_penalties_and_their_weight_gradients(activation, x64, monkeypatch):
    """At the peer's interpolates, whose shares u are drawn here; neither has a factor lambda or gamma / 2."""
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape, dtype: jnp.asarray(REFERENCE["u"][:, 0], dtype))
    key = jax.random.key(0)

    @jax.jit
    def ours(params, real, fake, u):
        critic = functools.partial(reference_critic, ACTIVATIONS[activation])
        penalties = {
            "wgan_gp": lambda params: adversarial.gradient_penalty(critic(params), key, real, fake),
            "one_sided": lambda params: adversarial.gradient_penalty(critic(params), key, real, fake, one_sided=True),
            "r1": lambda params: adversarial.r1(critic(params), real),
            "r2": lambda params: adversarial.r2(critic(params), fake),
        }
        between = u * real + (1 - u) * fake
        found = {
            "D_real": critic(params)(real),
            "D_fake": critic(params)(fake),
            "slope": jax.grad(lambda x: critic(params)(x).sum())(between),
            "slope_norm": jnp.sqrt(adversarial.squared_slope(critic(params), between)),
        }
        for name, penalty in penalties.items():
            gradients = jax.grad(lambda params, penalty=penalty: penalty(params).mean())(params)
            found[name] = penalty(params)
            found |= {f"{name}_d{weight}": gradient for weight, gradient in zip(WEIGHTS, gradients, strict=True)}
        return {f"{activation}_{name}": value for name, value in found.items()}

    with jax.enable_x64(x64):
        params = [jnp.asarray(REFERENCE[name]) for name in WEIGHTS]
        found = ours(params, *(jnp.asarray(REFERENCE[name]) for name in ("real", "fake", "u")))
        assert {name for name in REFERENCE if name.startswith(activation)} == set(found)
        check_parity(found, x64)


@pytest.mark.parametrize("event_shape", [(3,), (2, 3, 1)])
def test_a_critic_of_slope_one_costs_nothing_for_any_event_shape(event_shape):
    keys = jax.random.split(jax.random.key(0), 4)
    direction = jax.random.normal(keys[0], event_shape)
    direction = direction / jnp.linalg.norm(direction.ravel())
    real, fake = (jax.random.normal(key, (5, *event_shape)) for key in keys[1:3])

    def critic(x):
        return jnp.sum((x * direction[None]).reshape(5, -1), axis=1)

    np.testing.assert_allclose(adversarial.gradient_penalty(critic, keys[3], real, fake), np.zeros(5), atol=1e-10)
    doubled = adversarial.gradient_penalty(lambda x: 2 * critic(x), keys[3], real, fake)
    np.testing.assert_allclose(doubled, np.ones(5), rtol=1e-5)
    halved = adversarial.gradient_penalty(lambda x: 0.5 * critic(x), keys[3], real, fake, one_sided=True)
    np.testing.assert_array_equal(halved, np.zeros(5))


def test_a_flat_critic_has_a_finite_penalty_gradient():
    points = jnp.ones((3, 2))

    def penalty(scale):
        return adversarial.slope_penalty(lambda x: scale * jnp.sum(x, axis=1), points).sum()

    assert float(penalty(0.0)) == 3.0
    assert np.isfinite(jax.grad(penalty)(0.0))


def test_interpolates_are_uniform_between_the_pairs_one_share_an_example():
    real, fake = jnp.ones((500, 2)), jnp.zeros((500, 2))

    def half_square(x):
        return 0.5 * jnp.sum(jnp.square(x), axis=1)  # its slope is x

    penalty = adversarial.gradient_penalty(half_square, jax.random.key(0), real, fake, target=0.0)
    assert stats.kstest(np.sqrt(np.asarray(penalty) / 2), "uniform").pvalue > 1e-3


@pytest.mark.parametrize(("distance", "factor"), [(0.5, 10.0), (3.0, 10.0), (3.0, 1.0)])
def test_two_points_the_penalty_makes_the_slope_too_steep_by_a_known_amount(distance, factor, float64):
    """`-s W1 + factor (s - 1)^2` is least at `s = 1 + W1 / (2 factor)`."""
    real, fake = jnp.full((1, 1), distance), jnp.zeros((1, 1))

    def loss(slope):
        def critic(x):
            return slope * x[:, 0]

        penalty = adversarial.gradient_penalty(critic, jax.random.key(0), real, fake)
        return jnp.sum(adversarial.wasserstein.critic(critic(real), critic(fake)) + factor * penalty)

    best = 1 + distance / (2 * factor)
    assert abs(float(jax.grad(loss)(best))) < 1e-10
    assert float(jax.grad(jax.grad(loss))(best)) > 0


def test_a_trained_critic_estimates_w1_with_the_penaltys_own_bias():
    """Between real and fake the optimal slope is `1 + (F_fake - F_real) / (2 factor rho)`, rho the interpolates' density,

    so the estimate exceeds W1 by `integral of (F_fake - F_real)^2 / (2 factor rho)`.
    """
    num, factor = 1024, 10.0
    u = (np.arange(num) + 0.5) / num
    real, fake = stats.norm(3.0, 0.5).ppf(u)[:, None], stats.norm(0.0, 0.5).ppf(u)[:, None]
    w1 = transport.wasserstein(real, fake, power=1)
    real, fake = (jnp.asarray(points, jnp.float32) for points in (real, fake))
    key = jax.random.key(1)
    params = {
        "in": jax.random.normal(key, (1, 64)),
        "bias": jnp.linspace(-3.0, 3.0, 64),
        "hidden": jax.random.normal(key, (64, 64)) / 8,
        "out": jnp.zeros(64),
    }
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, 1500))

    def critic_of(params):
        def critic(x):
            hidden = jax.nn.silu(x @ params["in"] + params["bias"][None])
            return jax.nn.silu(hidden @ params["hidden"]) @ params["out"]

        return critic

    def loss(params, key):
        pair_key, penalty_key = jax.random.split(key)
        critic, shuffled = critic_of(params), jax.random.permutation(pair_key, fake)
        penalty = adversarial.gradient_penalty(critic, penalty_key, real, shuffled)
        return jnp.mean(adversarial.wasserstein.critic(critic(real), critic(shuffled)) + factor * penalty)

    def step(carry, key):
        params, opt_state = carry
        updates, opt_state = optimizer.update(jax.grad(loss)(params, key), opt_state)
        return (optax.apply_updates(params, updates), opt_state), None

    keys = jax.random.split(key, 1500)
    (params, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, keys))((params, optimizer.init(params)))
    critic = critic_of(params)
    estimate = float(jnp.mean(critic(real)) - jnp.mean(critic(fake)))

    def interpolates(x):
        """Density of u r + (1 - u) f: normal given u."""
        share = (np.arange(400) + 0.5) / 400
        deviation = 0.5 * np.sqrt(share**2 + (1 - share) ** 2)
        return np.mean(stats.norm(3 * share, deviation).pdf(x[:, None]), axis=1)

    x = np.linspace(-1.5, 4.5, 2001)
    gap = stats.norm(0.0, 0.5).cdf(x) - stats.norm(3.0, 0.5).cdf(x)
    bias = integrate.simpson(gap**2 / (2 * factor * interpolates(x)), x=x)
    print(f"W1 {w1:.4f}, bias {bias:.4f}, estimate {estimate:.4f}")
    assert bias > 0.1 * w1
    assert estimate - bias == pytest.approx(w1, rel=0.03)


def test_clipping_bounds_every_parameter_and_keeps_small_ones():
    clipped = adversarial.clip_weights({"a": jnp.asarray([-3.0, 0.05]), "b": (jnp.asarray(0.2),)}, 0.1)
    np.testing.assert_allclose(clipped["a"], [-0.1, 0.05])
    np.testing.assert_allclose(clipped["b"][0], 0.1)
