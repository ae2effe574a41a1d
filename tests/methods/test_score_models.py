"""NCSN, score SDEs and EDM: what their networks see, what their losses are, where their grids end, what is refused."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import paths, predictions
from genjax.errors import UsageError
from genjax.methods import edm, ncsn, network_options, path_models, score_sde
from genjax.methods.network_options import NetworkOptions
from genjax.training.steps import adamw
from genjax.typing import Batch, Examples, Net

POINTS = Examples((2,))
TINY = NetworkOptions(width=16, depth=1)


def spied(monkeypatch, module, **config):
    """`path_models.build`'s arguments when `module` builds a method on points, by default its default one."""
    seen = {}

    def build(net, optimizer, **options):
        seen.update(options, net=net)
        return path_models_build(net, optimizer, **options)

    path_models_build = path_models.build
    monkeypatch.setattr(path_models, "build", build)
    method = module.build(module.Config(network=TINY, **config), adamw(1e-3, 10), POINTS)
    return method, seen


@pytest.mark.parametrize("module", [edm, ncsn, score_sde])
def test_grids_run_from_all_noise_to_none(monkeypatch, module):
    _, seen = spied(monkeypatch, module)
    grid = seen["knots"](40)
    assert grid.t.shape == (41,)
    assert grid.sigma[-1] == 0
    ratio = np.asarray(grid.sigma / grid.alpha)
    assert np.all(np.diff(ratio) <= 1e-6)
    assert ratio[0] > 5


@pytest.mark.parametrize(("steps", "stays"), [(90, {30}), (30, {30}), (10, {10}), (40, {30})])
def test_an_annealed_grid_stays_at_each_of_its_levels(monkeypatch, steps, stays):
    _, seen = spied(monkeypatch, ncsn)
    sigma = np.asarray(seen["knots"](steps).sigma[:-1])
    values, counts = np.unique(np.round(sigma, 6), return_counts=True)
    assert {len(values)} == stays
    assert counts.max() - counts.min() <= 1
    assert sigma[0] == pytest.approx(10.0, rel=1e-5)


def test_ncsn_trains_on_its_levels_alone(monkeypatch):
    _, seen = spied(monkeypatch, ncsn)
    times = np.asarray(seen["density"](jax.random.key(0), 5000)) * 29
    np.testing.assert_allclose(times, np.round(times), atol=1e-4)
    values, counts = np.unique(np.round(times), return_counts=True)
    np.testing.assert_array_equal(values, np.arange(30))
    assert counts.min() > 100


@pytest.mark.parametrize("path", [paths.edm(), paths.ve(), paths.vp()])
def test_the_network_sees_numbers_of_size_one_at_every_level(path):
    seen = []
    net = Net(lambda key, *inputs: {}, lambda params, x, t: seen.append((x, t)) or x)
    scaled = path_models.with_unit_input(net, path, data_std=0.5, clock=lambda t: t + 1)
    key = jax.random.key(0)
    data, noise = 0.5 * jax.random.normal(key, (4000, 2)), jax.random.normal(jax.random.fold_in(key, 1), (4000, 2))
    for t in (0.01, 0.5, 1.0):
        t = jnp.full(4000, t)
        scaled.apply({}, paths.interpolate(path, data, noise, t), t)
        assert np.std(seen[-1][0]) == pytest.approx(1, abs=0.03)
        np.testing.assert_allclose(seen[-1][1], t + 1)


@pytest.mark.parametrize(("x64", "tolerance"), [(True, 1e-10), (False, 1e-6)])
@pytest.mark.parametrize(("label", "data_std"), [("sigma_data0p5", 0.5), ("sigma_data1", 1.0)])
def test_what_the_network_of_edm_is_shown_agrees_with_the_authors_code(monkeypatch, label, data_std, x64, tolerance):
    """`c_in x` and c_noise, as numbers of NVlabs/edm."""
    numbers = np.load(Path(__file__).parents[1] / "reference" / "edm_preconditioning.npz")
    shown = []
    spy = Net(lambda key, *inputs: {}, lambda params, x, t: shown.append((x[:, 0], t)) or x)
    monkeypatch.setattr(network_options, "make_net", lambda *_: spy)
    with jax.enable_x64(x64):
        _, seen = spied(monkeypatch, edm, data_std=data_std)
        seen["net"].apply({}, jnp.ones((len(numbers["sigma"]), 1)), jnp.asarray(numbers["sigma"]))
    for name, value in zip(("c_in", "c_noise"), shown[-1], strict=True):
        np.testing.assert_allclose(np.asarray(value), numbers[f"{label}_{name}"], rtol=tolerance, err_msg=name)


def test_the_loss_of_edm_is_that_of_its_table_1(monkeypatch):
    """`lambda(sigma) |D - data|^2`, lambda = (sigma^2 + s^2) / (sigma s)^2, with D put together from F by c_skip and c_out."""
    method, seen = spied(monkeypatch, edm)
    net, std = seen["net"], 1.0
    data = jax.random.normal(jax.random.key(1), (16, 2))
    params = method.init(jax.random.key(0), Batch(data)).params
    sigma, noise = jnp.linspace(0.1, 5.0, 16), jax.random.normal(jax.random.key(2), (16, 2))
    x, s = data + sigma[:, None] * noise, sigma[:, None]
    output = net.apply(params, x, sigma)
    total = s**2 + std**2
    denoised = std**2 / total * x + s * std / jnp.sqrt(total) * output
    expected = jnp.mean(total / (s * std) ** 2 * jnp.square(denoised - data), axis=1)
    target = predictions.from_pair(seen["error"], seen["path"], predictions.Prediction(data, noise), sigma)
    np.testing.assert_allclose(jnp.mean(jnp.square(output - target), axis=1), expected, rtol=1e-3)
    assert float(seen["weighting"](seen["path"], sigma, seen["error"])[0]) == 1


@pytest.mark.parametrize(
    ("module", "options", "told"),
    [
        (edm, {"sigma_min": 100.0}, "expected 0 < min < max"),
        (edm, {"rho": 0.0}, "--rho is 0.0"),
        (edm, {"data_std": -1.0}, "--data-std is -1.0"),
        (ncsn, {"levels": 1}, "--levels is 1; expected at least 2"),
        (ncsn, {"sigma_max": float("nan")}, "--sigma-max nan"),
        (ncsn, {"class_conditional": True}, "--class-conditional needs labels"),
        (score_sde, {"beta_min": 30.0}, "expected 0 <= min < max"),
        (score_sde, {"sigma_min": 0.0}, "--sigma-min is 0.0"),
        (score_sde, {"label_dropout": 1.0}, "--label-dropout is 1.0"),
    ],
)
def test_what_cannot_work_is_refused(module, options, told):
    with pytest.raises(UsageError, match=told):
        module.resolve(module.Config(**options), POINTS)


@pytest.mark.parametrize("module", [edm, ncsn, score_sde])
@pytest.mark.parametrize("examples", [POINTS, Examples((8, 8, 1), 10, 17)])
def test_what_is_resolved_has_every_default_and_stays(module, examples):
    config = module.resolve(module.Config(), examples)
    given = {name: value for name, value in dataclasses.asdict(config).items() if name != "network"}
    assert None not in given.values()
    assert module.resolve(config, examples) == config
