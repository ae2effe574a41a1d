"""The floors: imports run down only, mathematics touches nothing of the world, heavy libraries wait for their use."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "genjax"
FLOORS = {
    "typing": 0,
    "arrays": 0,
    "errors": 0,
    "paths": 1,
    "predictions": 1,
    "times": 1,
    "oracles": 1,
    "divergences": 1,
    "transport": 1,
    "couplings": 1,
    "bijectors": 1,
    "vector_fields": 1,
    "losses": 2,
    "samplers": 2,
    "likelihood": 2,
    "continuous_flows": 2,
    "networks": 2,
    "metrics": 2,
    "environment": 3,
    "training": 3,
    "methods": 4,
    "plots": 4,
    "runs": 4,
    "drawing": 4,
    "cli": 4,
    "cli_train": 4,
    "cli_held_out": 4,
    "cli_sample": 4,
    "__main__": 4,
}
SIBLINGS = {  # arrows between rooms of one floor; a package's own modules may import each other
    ("predictions", "paths"),
    ("times", "paths"),
    ("oracles", "paths"),
    ("oracles", "predictions"),
    ("arrays", "typing"),
    ("bijectors", "divergences"),
    ("couplings", "transport"),
    ("drawing", "plots"),
    ("likelihood", "continuous_flows"),
    ("samplers", "continuous_flows"),
    ("training", "environment"),
    ("runs", "cli"),
    ("runs", "methods"),
    ("cli_held_out", "drawing"),
    ("cli_held_out", "methods"),
    ("cli_held_out", "plots"),
    ("cli_sample", "cli"),
    ("cli_sample", "cli_held_out"),
    ("cli_sample", "drawing"),
    ("cli_sample", "plots"),
    ("cli_sample", "runs"),
    ("cli_train", "cli"),
    ("cli_train", "drawing"),
    ("cli_train", "methods"),
    ("cli_train", "plots"),
    ("cli_train", "runs"),
    ("__main__", "cli"),
    ("__main__", "cli_sample"),
    ("__main__", "cli_train"),
}
WORLD = {"os", "pathlib", "time", "datetime", "sys", "io", "shutil", "tempfile", "subprocess", "socket", "random"}
WORLD_CALLS = {"print", "open", "input"}
HEAVY = {"matplotlib", "orbax", "scipy", "sklearn", "PIL", "tqdm", "tyro", "diffrax", "equinox", "optimistix"}


def module_names(file):
    """`genjax.losses.denoising` and its room, `losses`."""
    parts = list(file.relative_to(PACKAGE.parent).with_suffix("").parts)
    if parts[-1] == "__init__":
        parts.pop()
    return ".".join(parts), parts[1] if len(parts) > 1 else ""


def imported(tree, module="genjax", is_package=True):
    """Every module that the code imports, anywhere in it, `from a import b` as `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                kept = module.split(".")[: len(module.split(".")) - node.level + (1 if is_package else 0)]
                base = ".".join([*kept, base] if base else kept)
            yield from (f"{base}.{alias.name}" for alias in node.names)


def rooms_imported(tree, module="genjax", is_package=True):
    names = (name.split(".") for name in imported(tree, module, is_package))
    return {parts[1] for parts in names if parts[0] == "genjax" and len(parts) > 1}


def forbidden_arrows(room, rooms):
    """Rooms among `rooms` that `room` may not import."""
    return sorted(
        other
        for other in rooms
        if other != room
        and (FLOORS[other] > FLOORS[room] or (FLOORS[other] == FLOORS[room] and (room, other) not in SIBLINGS))
    )


def imported_on_import(node):
    """The import statements that run when the module is imported: outside functions and `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from imported_on_import(ast.Module(child.orelse, []))
        elif not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from imported_on_import(child)


FILES = [file for file in sorted(PACKAGE.rglob("*.py")) if module_names(file)[1]]
every_file = pytest.mark.parametrize("file", FILES, ids=[module_names(file)[0] for file in FILES])


@every_file
def test_no_import_runs_up(file):
    module, room = module_names(file)
    assert room in FLOORS, f"{module} has no floor: give {room} one in this test and in the map"
    rooms = rooms_imported(ast.parse(file.read_text()), module, file.name == "__init__.py")
    assert rooms <= set(FLOORS), f"{module} imports rooms without a floor: {sorted(rooms - set(FLOORS))}"
    assert not forbidden_arrows(room, rooms), f"{module} may not import {forbidden_arrows(room, rooms)}"


@every_file
def test_mathematics_touches_nothing_of_the_world(file):
    module, room = module_names(file)
    if FLOORS[room] > 2:
        return
    tree = ast.parse(file.read_text())
    touched = WORLD & {name.split(".")[0] for name in imported(tree, module, file.name == "__init__.py")}
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert not touched, f"{module} imports {sorted(touched)}"
    assert not called & WORLD_CALLS, f"{module} calls {sorted(called & WORLD_CALLS)}"


@every_file
def test_no_room_reads_the_private_names_of_another(file):
    module, room = module_names(file)
    names = (name.split(".") for name in imported(ast.parse(file.read_text()), module, file.name == "__init__.py"))
    private = [".".join(n) for n in names if n[0] == "genjax" and n[1:2] != [room] and n[-1].startswith("_")]
    assert not [name for name in private if not name.endswith("__")], f"{module} imports {private}"


def test_the_rules_would_notice():
    """The checks above, on code that breaks each rule."""
    up = rooms_imported(ast.parse("def f():\n    from genjax.training import loop\nfrom genjax import losses"))
    assert forbidden_arrows("paths", up) == ["losses", "training"]
    relative = rooms_imported(ast.parse("from ..samplers import ode"), "genjax.losses.denoising", is_package=False)
    assert forbidden_arrows("losses", relative) == ["samplers"]
    assert forbidden_arrows("paths", {"predictions", "typing"}) == ["predictions"]
    assert forbidden_arrows("networks", {"losses", "metrics", "networks"}) == ["losses", "metrics"]
    assert not forbidden_arrows("oracles", {"paths", "predictions", "arrays"})
    body = "if TYPE_CHECKING:\n    import PIL\nclass A:\n    import orbax\ndef f():\n    import scipy"
    on_import = ast.Module(list(imported_on_import(ast.parse(body))), [])
    assert list(imported(on_import)) == ["orbax"]


@every_file
def test_the_lowest_floors_need_only_jax_and_numpy(file):
    """Besides the standard library; SciPy within a function."""
    module, room = module_names(file)
    roots = {name.split(".")[0] for name in imported(ast.parse(file.read_text()), module, file.name == "__init__.py")}
    allowed = {"jax", "numpy", "scipy", "genjax"} | set(sys.stdlib_module_names)
    assert FLOORS[room] > 1 or roots <= allowed, f"{module} imports {sorted(roots - allowed)}"


def test_importing_the_mathematics_loads_no_heavy_library():
    code = (
        "import sys, genjax.typing, genjax.paths, genjax.predictions, genjax.times, genjax.oracles, genjax.transport\n"
        "import genjax.couplings, genjax.losses.denoising, genjax.losses.flow_matching, genjax.samplers\n"
        f"print(sorted({HEAVY!r} & {{name.split('.')[0] for name in sys.modules}}))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert found.stdout.strip() == "[]"


@every_file
def test_heavy_libraries_are_imported_where_they_are_used(file):
    module, room = module_names(file)
    heavy = HEAVY - {"tyro"} if FLOORS[room] >= 3 else HEAVY  # what a dataclass says of its options is tyro's
    on_import = ast.Module(list(imported_on_import(ast.parse(file.read_text()))), [])
    roots = {name.split(".")[0] for name in imported(on_import, module, file.name == "__init__.py")}
    assert not roots & heavy, f"{module} imports {sorted(roots & heavy)} on import"
