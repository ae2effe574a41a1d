"""What `train.py`, `sample.py` and `python -m genjax` share: arguments, one-line errors, the compilation cache."""

import contextlib
import dataclasses
import io
import os
import platform
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tyro

from genjax.environment import use_one_kernel_for_small_loops
from genjax.errors import UsageError, UserError

_STYLE = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)


def run(main: Callable[[list[str]], int], arguments: list[str] | None = None) -> int:
    """Run a script's `main` and return its exit code; a user's error becomes one line on standard error."""
    use_one_kernel_for_small_loops()
    try:
        return main(sys.argv[1:] if arguments is None else arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1


def parse(options_type: Any, arguments: list[str], program: str) -> Any:
    """The options of a dataclass from the command line; `--help` prints and exits.

    Raises:
        UsageError: an unknown option (with the nearest name), a value of the wrong type.
    """
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(options_type, args=arguments, prog=program, config=_STYLE)
    except SystemExit as leaving:
        if leaving.code in (0, None):
            raise
        raise UsageError(f"{_one_line(complaint.getvalue())} (see {program} --help)") from None


def _one_line(boxed: str) -> str:
    """The message of a parser's complaint, in one line: without its box (or, on an ASCII terminal, its title)."""
    if "╭" not in boxed:
        boxed = boxed.partition("\n")[2]
    lines = [line.strip("│| ") for line in boxed.splitlines() if not re.search("─{5}|-{5}", line)]
    text = " ".join(line for line in lines if line)
    wrong_type = re.match(r"Error parsing (--\S+):.*? type matching (.+?) could be instantiated from \['(.*?)'\]", text)
    if wrong_type:
        name, expected, given = wrong_type.groups()
        return f"{name} is '{given}'; expected {expected.removeprefix('{None}|')}"
    text = re.split(r"For full helptext|Argument helptext|Got errors", text)[0]
    perhaps = re.search(r"Perhaps you meant:\s+(--[\w-]+)", text)
    message = text.split("Perhaps you meant")[0].strip()
    unrecognized = re.match(r"Unrecognized options: ([^\s,]+)", message)
    if unrecognized:
        message = f"unknown option '{unrecognized.group(1)}'"
    return f"{message}: did you mean '{perhaps.group(1)}'?" if perhaps else message


def from_json(options_type: Any, content: Any, where: str) -> Any:
    """A frozen dataclass from what `dataclasses.asdict` made of it; unknown and missing fields are errors.

    Raises:
        UserError: a field too many or too few: the run was written by another version.
    """
    fields = {field.name: field for field in dataclasses.fields(options_type)}
    if not isinstance(content, dict) or set(content) != set(fields):
        given = set(content) if isinstance(content, dict) else set()
        odd = ", ".join(sorted(given ^ set(fields)))
        raise UserError(f"{where} does not fit this version of genjax: field {odd} unknown or missing")
    values = {}
    for name, value in content.items():
        factory: Any = fields[name].default_factory
        values[name] = from_json(factory, value, f"{where}.{name}") if dataclasses.is_dataclass(factory) else value
    return options_type(**values)


def use_two_devices_of_a_cpu() -> None:
    """Let JAX see two devices in a CPU of several cores, which share a batch; settings of the environment win.

    On two cores a U-Net samples in 0.7 to 0.8 of the time so, and trains in 0.8 to 0.9: each core runs through the network
    with half of the batch, and waits for the other at the end, not at every layer.
    """
    import jax

    by_flag = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if (os.cpu_count() or 1) > 1 and not by_flag and "JAX_NUM_CPU_DEVICES" not in os.environ:
        with contextlib.suppress(RuntimeError):  # in a process that computes already
            jax.config.update("jax_num_cpu_devices", 2)


def use_compilation_cache() -> None:
    """Keep compiled programs on disk between runs, one directory a host; JAX's own settings win."""
    import jax

    if os.environ.get("JAX_COMPILATION_CACHE_DIR") or jax.config.values.get("jax_compilation_cache_dir"):
        return
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = cache / "genjax" / "compiled" / (platform.node() or "host")
    with contextlib.suppress(OSError):
        directory.mkdir(parents=True, exist_ok=True)
        jax.config.update("jax_compilation_cache_dir", str(directory))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
