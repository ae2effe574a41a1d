"""What `sample.py` tells of a run besides its samples.

    --log-prob      the log-likelihood of held-out data
    --reconstruct   held-out data beside what the model makes of their codes
    --latent-grid   what the codes of a plane stand for: quantiles of N(0, I), decoded

Each needs a field of `Method` that not every family has.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from genjax.errors import UsageError, UserError

FIELDS = {"log_prob": "log_prob", "reconstruct": "reconstruct", "latent_grid": "decode"}
"""The options that ask something, and what of a `Method` answers."""

_NEEDED = {"log_prob": "log-likelihood", "reconstruct": "reconstruction", "latent_grid": "decoder of codes"}
_FOR_SAMPLES_ALONE = ("sampler", "steps", "classes", "guidance", "candidates", "temperature", "trajectory")
_MOST_EXAMPLES = {"points": 10_000, "images": 1_000}
_PICTURED = {"points": 1_000, "images": 64}
_IMAGE_COLUMNS = 16
_GRID_SIDE = 16
_LINES, _LINE_POINTS = 21, 400


def asked(options: Any) -> list[str]:
    """Which of `FIELDS` the options of `sample.py` ask for."""
    return [name for name in FIELDS if getattr(options, name)]


def check(options: Any, run: Any) -> None:
    """Refuse (UsageError) what the run cannot answer, and options that the question does not have."""
    names = asked(options)
    needs_data = options.log_prob or options.reconstruct
    if options.data_dir is not None and not needs_data:
        raise UsageError("--data-dir is for --log-prob and --reconstruct, which read held-out data")
    if not names:
        return
    for name in _FOR_SAMPLES_ALONE:
        if getattr(options, name) not in (None, False):
            raise UsageError(f"--{name} is for drawing samples, and {_flag(names[0])} draws none: use two commands")
    if options.num is not None and not needs_data:
        raise UsageError("--num does not apply: --latent-grid has its own size")
    for name in names:
        if getattr(run.method, FIELDS[name]) is None:
            has = ", ".join(_methods_with(FIELDS[name], run)) or "none for such data"
            raise UsageError(
                f"{_flag(name)} does not apply: {run.method_name} as trained here has no {_NEEDED[name]}; "
                f"methods that have one by default: {has}"
            )
    if options.latent_grid and run.method.latent != (2,):
        has = "x".join(map(str, run.method.latent))
        raise UsageError(f"--latent-grid needs a 2-D latent; this run has {has}: train with --latent 2")
    if options.latent_grid and run.event_shape == (1,):
        raise UsageError("--latent-grid draws images and points of at least 2 dimensions; these have 1")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _methods_with(field: str, run: Any) -> list[str]:
    """The methods that have this field when built with their defaults for the run's data."""
    from genjax.methods import METHODS
    from genjax.training.steps import adamw
    from genjax.typing import Examples

    examples = Examples(run.event_shape, run.num_classes, run.scaling.levels)
    names = []
    for name, module in METHODS.items():
        try:
            method = module.build(module.resolve(module.Config(), examples), adamw(1e-3, 1), examples)
        except UserError:
            continue
        names += [name] if getattr(method, field) is not None else []
    return names


def load(options: Any, run: Any) -> Any:
    """The run's data set where a question needs it, else None.

    Raises:
        UserError: data that are not there, or are not those of the run.
    """
    from genjax.training import data

    if not (options.log_prob or options.reconstruct):
        return None
    dataset = data.load(run.data_name, data_dir=options.data_dir)
    dataset = data.binarised(dataset) if run.binarised else dataset
    found = dataset.examples
    if found.event_shape != run.event_shape or found.levels != run.scaling.levels:
        raise UserError(f"{run.data_name} holds examples of {found.event_shape}; the run's are {run.event_shape}")
    return dataset


def answer(options: Any, run: Any, params: Any, dataset: Any, out: Path) -> None:
    """Compute, write into `out` and print what the options ask for."""
    import jax

    key = jax.random.key(options.seed)
    if options.log_prob:
        _log_prob(options, run, params, key, dataset, out)
    if options.reconstruct:
        _reconstruct(options, run, params, key, dataset, out)
    if options.latent_grid:
        _latent_grid(run, params, out)


def _log_prob(options: Any, run: Any, params: Any, key: Any, dataset: Any, out: Path) -> None:
    import jax.numpy as jnp
    import numpy as np

    from genjax.losses.likelihood import bits_per_dim
    from genjax.training.run_dir import write_arrays

    kind = _kind(run)
    examples = dataset.test.data[: options.num or _MOST_EXAMPLES[kind]]
    log_prob = _over(run, run.method.log_prob, params, key, examples, options.batch_size, "log-likelihood")
    failed = int(np.isnan(log_prob).sum())
    if failed:
        raise UserError(
            f"{failed} of {len(examples)} log-likelihoods are NaN: the model diverged, or its solver failed"
        )
    if not run.scaling.levels:
        log_prob = log_prob - np.sum(np.log(np.broadcast_to(run.scaling.scale, run.event_shape)))
    write_arrays(out / "log_prob.npz", log_prob=np.asarray(log_prob, np.float32))

    parts = [f"{mean_and_error(log_prob)} nats"]
    if run.scaling.levels:
        parts.append(f"{mean_and_error(bits_per_dim(jnp.asarray(log_prob), run.event_shape))} bits/dim")
    bound = " (a lower bound)" if run.method.bounds_log_prob else ""
    truth = ""
    if dataset.log_density is not None:
        truth = f"; by the true density {mean_and_error(dataset.log_density(jnp.asarray(examples)))} nats"
    print(f"log-likelihood of {len(examples):,} held-out {kind}, each: {', '.join(parts)}{bound}{truth}")
    print(f"log-likelihood: {out / 'log_prob.npz'}")


def _reconstruct(options: Any, run: Any, params: Any, key: Any, dataset: Any, out: Path) -> None:
    import numpy as np

    from genjax import plots
    from genjax.drawing import value_range
    from genjax.training.run_dir import write_arrays

    kind = _kind(run)
    original = dataset.test.data[: options.num or _PICTURED[kind]]
    codes_decoded = _over(run, run.method.reconstruct, params, key, original, options.batch_size, "reconstruction")
    again = np.asarray(run.scaling.to_data(codes_decoded), np.float32)
    write_arrays(out / "reconstructions.npz", reconstruction=again, data=original)
    path = out / "reconstructions.png"
    if kind == "points":
        plots.samples_figure(path, again, data=original, names=("held out", "reconstructed"))
    else:
        shown = (original[: _PICTURED[kind]], again[: _PICTURED[kind]])
        plots.image_pairs(path, *shown, value_range=value_range(run.scaling), columns=_IMAGE_COLUMNS)
    print(f"reconstructions: {path}")


def _latent_grid(run: Any, params: Any, out: Path) -> None:
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.scipy.special import ndtri

    from genjax import plots
    from genjax.drawing import reference_data, value_range

    def decoded(z: Any) -> Any:
        flat = run.method.decode(params, z.reshape(-1, 2))
        return run.scaling.to_data(flat).reshape(*z.shape[:-1], *run.event_shape)

    def quantiles(num: int) -> Any:
        return ndtri((jnp.arange(num) + 0.5) / num)

    path = out / "latent_grid.png"
    if _kind(run) == "images":
        across, down = jnp.meshgrid(quantiles(_GRID_SIDE), -quantiles(_GRID_SIDE))
        images = jax.jit(decoded)(jnp.stack([across, down], axis=-1).reshape(-1, 2))
        plots.image_grid(path, images, value_range=value_range(run.scaling), columns=_GRID_SIDE)
    else:
        held, along = jnp.meshgrid(quantiles(_LINES), quantiles(_LINE_POINTS), indexing="ij")
        families = jax.jit(decoded)(jnp.stack([jnp.stack([held, along], -1), jnp.stack([along, held], -1)]))
        dataset = reference_data(run.data_name)
        data = None if dataset is None else np.asarray(dataset.test.data)
        plots.curves(path, np.asarray(families), data=data, names=("first code fixed", "second code fixed"))
    print(f"latent grid: {path}")


def _kind(run: Any) -> str:
    return "images" if len(run.event_shape) == 3 else "points"


def _over(
    run: Any, function: Callable[..., Any], params: Any, key: Any, examples: Any, batch_size: int | None, doing: str
) -> Any:
    """`function(params, key, data)` of `examples` in data units, a key a batch: NumPy."""
    import jax
    import numpy as np

    from genjax.drawing import batch_size_for, in_batches

    num = len(examples)
    size = min(batch_size or batch_size_for(run.event_shape, num), num)
    compiled = jax.jit(function, compiler_options=run.method.compiler_options)

    def part(start: int) -> Any:
        rows = examples[np.arange(start, start + size) % num]
        return compiled(params, jax.random.fold_in(key, start), run.scaling.to_model(rows))

    return in_batches(part, num, batch_size=size, progress=True, doing=doing)


def mean_and_error(values: Any) -> str:
    """Mean and standard error, both to the error's second digit.

    >>> mean_and_error([1.0, 1.2, 1.4])
    '1.20 ± 0.12'
    """
    import numpy as np

    values = np.asarray(values, np.float64)
    if len(values) == 1 or np.ptp(values) == 0:
        return f"{values.mean():.4g}"
    error = values.std(ddof=1) / math.sqrt(len(values))
    digits = max(1 - math.floor(math.log10(error)), 0) if np.isfinite(error) else 3
    return f"{values.mean():.{digits}f} ± {error:.{digits}f}"
