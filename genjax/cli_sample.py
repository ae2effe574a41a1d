"""`sample.py RUN_DIR [options]`: draw samples from a trained run, as arrays and as pictures."""

import dataclasses
import inspect
import math
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import tyro

from genjax import cli
from genjax.errors import UsageError, UserError


@dataclasses.dataclass(frozen=True)
class Options:
    """Draw samples from a trained run, or ask it about held-out data and its codes.

    Writes samples.npz (first array: samples, float32, data units) and a picture, and prints what they cost. With
    --log-prob, --reconstruct or --latent-grid it draws no samples and answers these, as far as the method can.
    """

    run_dir: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN_DIR")]
    """a directory that train.py wrote"""
    num: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: 1000 points, 64 images)")] = (
        None
    )
    """how many samples, or held-out examples (--log-prob: by default 10000 points, 1000 images)"""
    sampler: Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="(default: by method)")] = None
    """euler, heun, midpoint, rk4, ddim, dpmpp-2m, dpmpp-3m, unipc, deis, ddpm, euler-maruyama, ...: docs/samplers.md; or
    adaptive, an ODE solved to a tolerance"""
    steps: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: by method)")] = None
    """steps of the sampler"""
    tolerance: Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="(default: 1e-3)")] = None
    """relative and absolute error of a step (--sampler adaptive)"""
    seed: int = 0
    """the same seed gives the same samples, however many are drawn"""
    classes: Annotated[str | None, tyro.conf.arg(metavar="3,5,8")] = None
    """labels to draw, in turn (class-conditional runs; default: all)"""
    guidance: Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="(default: 1)")] = None
    """classifier-free guidance: uncond + guidance * (cond - uncond)"""
    candidates: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: by method)")] = None
    """fakes from which the critic's odds draw each sample; 1 is the generator alone (gan)"""
    temperature: Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="(default: 1)")] = None
    """deviation of the noise; below 1 samples are likelier, and less varied (realnvp, spline-flow)"""
    trajectory: bool = False
    """also write the way from noise to data, as a GIF and as a strip of times"""
    log_prob: bool = False
    """the log-likelihood of held-out data, in nats and for integer images in bits/dim"""
    reconstruct: bool = False
    """held-out data beside their reconstructions"""
    latent_grid: bool = False
    """what a 2-D latent stands for: a grid of quantiles of its normal, decoded"""
    data_dir: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """where the files of mnist are (--log-prob, --reconstruct)"""
    checkpoint: Annotated[str, tyro.conf.arg(metavar="latest|best|STEP")] = "latest"
    """which checkpoint"""
    batch_size: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: by data)")] = None
    """samples drawn at once, which does not change them, or held-out examples"""
    out: Annotated[str | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: RUN_DIR/samples)")] = None
    """where to write"""


def main(arguments: list[str]) -> int:
    """Sample as the arguments say; returns the exit code."""
    options = cli.parse(Options, arguments, "sample.py")
    if options.num is not None and options.num < 1:
        raise UsageError(f"--num is {options.num}; expected at least 1")
    if options.batch_size is not None and options.batch_size < 1:
        raise UsageError(f"--batch-size is {options.batch_size}; expected at least 1")
    if options.temperature is not None and not 0 <= options.temperature < math.inf:
        raise UsageError(f"--temperature is {options.temperature}; expected a number of at least 0")

    import jax
    import numpy as np

    from genjax import cli_held_out, runs
    from genjax.training.checkpoint import Checkpoints
    from genjax.training.run_dir import make_directory, read_config

    cli.use_compilation_cache()
    cli.use_two_devices_of_a_cpu()
    directory = Path(options.run_dir)
    run = runs.restore(read_config(directory), str(directory / "config.json"))
    cli_held_out.check(options, run)
    dataset = cli_held_out.load(options, run)
    classes = _classes(options, run)
    num = options.num or _default_num(run, classes)
    label = None if classes is None else np.resize(np.asarray(classes, np.int32), num)
    given = _method_options(options, run)
    checkpoints = Checkpoints(directory / "checkpoints", warn=lambda text: print(f"note: {text}", file=sys.stderr))
    step = _checkpoint_step(options.checkpoint, checkpoints, directory)
    params = checkpoints.restore_ema(runs.ema_template(run), step=step)
    out = Path(options.out) if options.out else directory / "samples"
    make_directory(out)
    if cli_held_out.asked(options):
        cli_held_out.answer(options, run, params, dataset, out)
        return 0
    samples = _draw(run, params, jax.random.key(options.seed), num, options, given, label)
    _write(run, samples, label, options, out)
    if options.trajectory:
        _write_trajectory(run, params, jax.random.key(options.seed), num, given, label, out)
    print(f"samples: {out / 'samples.png'}")
    return 0


def _method_options(options: Options, run: Any) -> dict[str, Any]:
    """The sampling options that were given, checked against those that the method has."""
    offered = inspect.signature(run.method.sample).parameters
    given = {
        name: getattr(options, name)
        for name in ("sampler", "steps", "tolerance", "guidance", "candidates", "temperature")
    }
    given = {name: value for name, value in given.items() if value is not None}
    given |= {"trace": True} if options.trajectory else {}
    flags = {"trace": "trajectory"}
    for name in given:
        if name not in offered:
            raise UsageError(f"--{flags.get(name, name)} does not apply: {run.method_name} draws without it")
    given.pop("trace", None)
    run.method.network_calls(**given)  # refuses an unknown sampler and a bad number of steps
    return given


def _defaults(run: Any) -> dict[str, Any]:
    """The sampling options of the run's method as they are where none is given."""
    parameters = inspect.signature(run.method.sample).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def _default_num(run: Any, classes: list[int] | None) -> int:
    """Enough points for a scatter plot; a grid of images, in whole rows where its columns are classes."""
    from genjax.drawing import MOST_CLASS_COLUMNS

    if len(run.event_shape) != 3:
        return 1000
    return 8 * len(classes) if classes and len(classes) <= MOST_CLASS_COLUMNS else 64


def _classes(options: Options, run: Any) -> list[int] | None:
    """The labels to draw in turn; None for a run without classes."""
    if not run.class_conditional:
        if options.classes is not None or options.guidance is not None:
            what = "--classes" if options.classes is not None else "--guidance"
            raise UsageError(f"{what} needs a run trained with --class-conditional, which {options.run_dir} is not")
        return None
    if options.classes is None:
        classes = list(range(run.num_classes))
    else:
        try:
            classes = [int(part) for part in options.classes.split(",")]
        except ValueError:
            raise UsageError(f"--classes is '{options.classes}'; expected whole numbers such as 3,5,8") from None
        beyond = [label for label in classes if not 0 <= label < run.num_classes]
        if beyond:
            raise UsageError(f"--classes has {beyond[0]}; this run has classes 0 to {run.num_classes - 1}")
    return classes


def _checkpoint_step(which: str, checkpoints: Any, directory: Path) -> int | None:
    if which == "latest":
        if checkpoints.latest_step() is None and checkpoints.is_empty():
            raise UserError(f"{directory} has no checkpoint yet: let train.py run until it saves one")
        return None
    if which == "best":
        best = checkpoints.best_step()
        if best is None:
            raise UserError(f"{directory} has no evaluated checkpoint: use --checkpoint latest")
        return best
    steps = checkpoints.steps()
    if not which.isdecimal() or int(which) not in steps:
        known = ", ".join(map(str, steps)) or "none"
        raise UsageError(f"--checkpoint is '{which}'; expected latest, best or a step of {directory} ({known})")
    return int(which)


def _draw(run: Any, params: Any, key: Any, num: int, options: Options, given: dict[str, Any], label: Any) -> Any:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from genjax.arrays import example_keys
    from genjax.drawing import batch_size_for, draw, jitted_sample
    from genjax.training.sharding import over_devices

    calls: Any = run.method.network_calls(**given, **({} if label is None else {"label": label}))
    counted = calls is None and "counted" in _defaults(run)
    static = {name: value for name, value in given.items() if name != "guidance"} | (
        {"counted": True} if counted else {}
    )
    guidance = given.get("guidance")
    guidance = None if guidance == 1 else guidance
    batch_size = min(options.batch_size or batch_size_for(run.event_shape, num), num)
    part_label = None if label is None else jnp.asarray(np.resize(label, batch_size))
    given_parts = over_devices(params, example_keys(key, batch_size), part_label)
    scale = None if guidance is None else jnp.float32(guidance)
    print(f"{run.method_name} on {run.data_name}: compiling ...", file=sys.stderr, flush=True)
    start = time.perf_counter()
    compiled = jitted_sample(run.method, batch_size, **static).lower(*given_parts, scale).compile()
    compile_seconds = time.perf_counter() - start
    start = time.perf_counter()
    samples = draw(
        compiled,
        params,
        key,
        num,
        batch_size=batch_size,
        label=label,
        guidance=guidance,
        progress=True,
    )
    seconds = time.perf_counter() - start
    if counted:
        samples, calls = samples
    failed = int(np.sum(np.isnan(samples).reshape(num, -1).any(axis=1)))
    if failed:
        raise UserError(
            f"{failed} of {num} samples are NaN: the model has diverged, or its solver failed; none is kept"
        )
    jax.block_until_ready(params)
    chosen = _defaults(run) | given
    batches = -(-num // batch_size)
    by, each = "", f"{1e3 * seconds / batches:.3g} ms for {batch_size} samples"
    if "sampler" in chosen and counted:
        by = f"by {chosen['sampler']}, "
    elif "sampler" in chosen:
        by = f"by {chosen['sampler']}, {chosen['steps']} steps, "
        each = f"{1e3 * seconds / (batches * chosen['steps']):.3g} ms a step of {batch_size} samples"
    called = "as many network calls as each needs" if calls is None else f"{_count(calls)} each"
    print(f"{num} samples {by}{called}; compiled in {compile_seconds:.2f} s, drawn in {seconds:.2f} s: {each}")
    return samples


def _count(calls: Any) -> str:
    """One number of network calls for all samples, or the range of theirs.

    >>> _count(1), _count([20, 32, 26])
    ('1 network call', '20 to 32 network calls')
    """
    import numpy as np

    least, most = int(np.min(calls)), int(np.max(calls))
    return f"{least if least == most else f'{least} to {most}'} network call{'s' * (most > 1)}"


def _write(run: Any, samples: Any, label: Any, options: Options, out: Path) -> None:
    import numpy as np

    from genjax.drawing import picture, reference_data
    from genjax.training.run_dir import write_arrays

    arrays: dict[str, Any] = {"samples": np.asarray(run.scaling.to_data(samples), np.float32)}
    if label is not None:
        arrays["label"] = label
    write_arrays(out / "samples.npz", **arrays)
    reference = None if len(run.event_shape) == 3 else reference_data(run.data_name)
    picture(out / "samples.png", samples, run.scaling, reference, **_layout(run, label))


def _layout(run: Any, label: Any) -> dict[str, Any]:
    """Class-conditional images have a column a class."""
    from genjax.drawing import MOST_CLASS_COLUMNS

    if label is None or len(run.event_shape) != 3:
        return {}
    period = next((p for p in range(1, len(label) + 1) if (label[p:] == label[:-p]).all()), len(label))
    return {"columns": period} if 1 < period <= MOST_CLASS_COLUMNS else {}


def _write_trajectory(run: Any, params: Any, key: Any, num: int, given: dict[str, Any], label: Any, out: Path) -> None:
    import jax.numpy as jnp
    import numpy as np

    from genjax import plots
    from genjax.arrays import example_keys
    from genjax.drawing import jitted_sample, value_range
    from genjax.training.sharding import over_devices

    num = min(num, 16 if len(run.event_shape) == 3 else 2000)
    static = {name: value for name, value in given.items() if name != "guidance"}
    scale = given.get("guidance")
    given_parts = over_devices(params, example_keys(key, num), None if label is None else jnp.asarray(label[:num]))
    _, trajectory = jitted_sample(run.method, num, trace=True, **static)(
        *given_parts, None if scale in (None, 1) else jnp.float32(scale)
    )
    states, times = np.asarray(run.scaling.to_data(trajectory.x)), np.asarray(trajectory.t)
    limits = value_range(run.scaling) if len(run.event_shape) == 3 else None
    plots.trajectory_gif(out / "trajectory.gif", states, times, value_range=limits)
    plots.trajectory_strip(out / "trajectory.png", states, times, value_range=limits)
    print(f"trajectory: {out / 'trajectory.gif'}, {out / 'trajectory.png'}")
