"""Flow matching from any source, with chosen pairs: what a batch is mixed with, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.errors import UsageError
from genjax.methods import flow_matching
from genjax.methods.network_options import NetworkOptions
from genjax.training import compilation, data, loop
from genjax.training.data import toys
from genjax.training.steps import adamw
from genjax.typing import Examples

TINY = NetworkOptions(width=16, depth=1)


def built(data_name="moons", **options):
    dataset = data.load(data_name)
    config = flow_matching.Config(network=TINY, **options)
    return flow_matching.build(config, adamw(1e-3, 10), dataset.examples), dataset


def mean_cost(**options):
    """The loss of a network that says 0: the mean squared distance of a batch's pairs, over the dimension."""
    method, dataset = built(**options)
    batch = loop.example_batch(dataset, 256)
    params = jax.tree.map(jnp.zeros_like, method.init(jax.random.key(0), batch).params)
    return np.mean([method.evaluate(params, jax.random.key(seed), batch)["loss"] for seed in range(4)])


@pytest.mark.parametrize("labels", [False, True])
def test_couplings_shorten_the_way(labels):
    costs = {
        name: mean_cost(coupling=name, class_conditional=labels) for name in ("independent", "entropic", "optimal")
    }
    assert costs["independent"] == pytest.approx(2, abs=0.25)  # both of unit variance on each axis
    assert costs["optimal"] < costs["entropic"] < 0.6 * costs["independent"]


def test_points_and_images_have_options_of_their_own_for_sampling():
    optimizer, points, images = adamw(1e-3, 10), data.load("moons").examples, data.load("digits").examples
    networks = {None: points, "unet": images, "dit": images}
    assert [
        flow_matching.build(
            flow_matching.Config(network=NetworkOptions(network=network)), optimizer, examples
        ).sampling_options
        for network, examples in networks.items()
    ] == [
        compilation.perceptron_sampling_options,
        compilation.convolution_sampling_options,
        compilation.transformer_sampling_options,
    ]


def test_sampling_starts_at_draws_of_the_source():
    method, _ = built(source="eight_gaussians", coupling="optimal")
    params = method.init(jax.random.key(0), loop.example_batch(data.load("moons"))).ema
    _, trajectory = method.sample(params, jax.random.key(0), 50, steps=2, sampler="euler", trace=True)
    source = toys.toy("eight_gaussians")
    points = np.asarray(source.scaling.to_model(jnp.asarray(source.train.data)))
    start = np.asarray(trajectory.x[0])
    nearest = [np.abs(points - one).sum(axis=1).min() for one in start]
    assert max(nearest) < 1e-6
    assert len(np.unique(start, axis=0)) == 50


def test_a_source_equal_to_the_data_with_optimal_pairs_costs_nearly_nothing():
    assert mean_cost(source="moons", coupling="optimal") < 0.05
    assert mean_cost(source="moons") == pytest.approx(2, abs=0.25)


@pytest.mark.parametrize(
    ("options", "examples", "told"),
    [
        ({"source": "moon"}, Examples((2,)), "did you mean 'moons'"),
        ({"source": "mixture1d"}, Examples((2,)), "has not the shape"),
        ({"source": "moons"}, Examples((8, 8, 1)), "has not the shape"),
        ({"source": "moons", "path": "cosine"}, Examples((2,)), "--source needs --path linear"),
        ({"source": "moons", "predict": "noise"}, Examples((2,)), "--predict noise is for Gaussian noise"),
        ({"regularisation": 0.0}, Examples((2,)), "--regularisation is 0.0; expected more than 0"),
    ],
)
def test_what_cannot_work_is_refused(options, examples, told):
    with pytest.raises(UsageError, match=told):
        flow_matching.resolve(flow_matching.Config(**options), examples)


def test_samplers_that_add_gaussian_noise_are_refused_from_another_source():
    method, _ = built(source="ring8")
    with pytest.raises(UsageError, match="--sampler ddpm needs Gaussian noise, which --source replaces: use euler"):
        method.network_calls(sampler="ddpm")
    assert method.network_calls(sampler="ddim", steps=3) == 3
