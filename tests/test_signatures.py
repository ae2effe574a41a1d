"""One order of arguments everywhere below training: the subject, then the key, then data, then keyword-only options."""

import importlib
import inspect
import pkgutil

import pytest

import genjax

ROOMS = (
    "paths",
    "predictions",
    "times",
    "oracles",
    "divergences",
    "transport",
    "couplings",
    "bijectors",
    "vector_fields",
    "losses",
    "samplers",
    "likelihood",
    "continuous_flows",
    "networks",
    "metrics",
)
SUBJECTS = {
    "model",
    "sampler",
    "denoise",
    "log_density",
    "score",
    "error_of",
    "field",
    "mix",
    "kind",
    "path",
    "net",
    "module",
    "make_module",
    "state",
    "params",
    "critic",
    "generator",
    "encode",
    "decode",
}
KEYS = {"key", "keys"}
FORBIDDEN = {"x0", "x1", "x_0", "x_1", "eps", "z0", "z1"}


def public_functions():
    for found in pkgutil.walk_packages(genjax.__path__, "genjax."):
        if found.name.split(".")[1] in ROOMS:
            module = importlib.import_module(found.name)
            for name, value in vars(module).items():
                defined_here = inspect.isfunction(value) and value.__module__ == module.__name__
                if defined_here and value.__name__ == name and not name.startswith("_"):
                    yield f"{found.name.removeprefix('genjax.')}.{name}", value


FUNCTIONS = dict(public_functions())
every_function = pytest.mark.parametrize("name", FUNCTIONS)


def rank(parameter):
    """0 for a subject, 1 for a key, 2 for data."""
    return 0 if parameter.name in SUBJECTS else 1 if parameter.name in KEYS else 2


def misplaced(function):
    """The positional parameters that stand after one of a later rank."""
    ranks = [(rank(p), p.name) for p in positional(function)]
    return [name for i, (own, name) in enumerate(ranks) if any(earlier > own for earlier, _ in ranks[:i])]


def positional(function):
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p for p in inspect.signature(function).parameters.values() if p.kind in kinds]


def positional_options(function):
    """Parameters with a default that are not keyword-only, of a function that has a subject or a key."""
    if not any(rank(p) < 2 for p in inspect.signature(function).parameters.values()):
        return []  # a constructor of numbers: vp(0.1, 20), ddim(0.5), linear_betas(1000, 1e-4, 0.02)
    return [p.name for p in positional(function) if p.default is not inspect.Parameter.empty]


def test_there_are_functions_in_every_room_that_exists():
    rooms = {name.split(".")[0] for name in FUNCTIONS}
    assert {"paths", "predictions", "times", "oracles", "transport", "losses", "samplers", "networks"} <= rooms


@every_function
def test_subject_then_key_then_data(name):
    assert not misplaced(FUNCTIONS[name]), f"{name}{inspect.signature(FUNCTIONS[name])}"


@every_function
def test_options_are_keyword_only(name):
    assert not positional_options(FUNCTIONS[name]), positional_options(FUNCTIONS[name])


@every_function
def test_no_parameter_has_a_name_of_two_meanings(name):
    """The literature uses x0 and x1 for either end, and eps for noise, a tolerance and a step."""
    assert not FORBIDDEN & set(inspect.signature(FUNCTIONS[name]).parameters)


@every_function
def test_every_public_function_is_documented_and_typed(name):
    signature = inspect.signature(FUNCTIONS[name])
    assert (FUNCTIONS[name].__doc__ or "").strip()
    assert signature.return_annotation is not inspect.Signature.empty
    assert all(p.annotation is not inspect.Parameter.empty for p in signature.parameters.values())


def test_the_rules_would_notice():
    assert misplaced(lambda data, key: None) == ["key"]
    assert misplaced(lambda key, model, data: None) == ["model"]
    assert not misplaced(lambda model, path, key, data, t, *, kind: None)
    assert positional_options(lambda key, data, scale=1.0: None) == ["scale"]
    assert not positional_options(lambda key, data, *, scale=1.0: None)
    assert not positional_options(lambda scale=1.0: None)
