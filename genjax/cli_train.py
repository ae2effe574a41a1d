"""`train.py METHOD [options]`: load data, choose defaults, open the run directory, train, draw pictures."""

import dataclasses
import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from genjax import cli
from genjax.environment import SMALL_TRAINING_LOOPS, use_one_kernel_for_small_loops
from genjax.errors import UsageError, UserError, unknown

_HELP = """usage: train.py METHOD [options]

Train a generative model and draw pictures while it learns. The same command again resumes.

methods:
{methods}

examples:
  python train.py flow-matching --data moons
  python train.py ddpm --data digits --class-conditional
  python train.py flow-matching --data mnist --data-dir DIR
  python train.py METHOD --help        all options of a method
"""

_EVALUATION_EXAMPLES = {"points": 4096, "images": 512}
_PICTURE_SAMPLES = {"points": 1000, "images": 64}


def main(arguments: list[str]) -> int:
    """Train as the arguments say; returns the exit code."""
    use_one_kernel_for_small_loops(SMALL_TRAINING_LOOPS)
    cli.use_two_devices_of_a_cpu()
    from genjax.methods import METHODS

    if not arguments or arguments[0] in ("-h", "--help"):
        listing = "\n".join(f"  {name:18}{_summary(module)}" for name, module in METHODS.items())
        print(_HELP.format(methods=listing))
        if not arguments:
            raise UsageError(f"expected a method: {', '.join(METHODS)}")
        return 0
    name = arguments[0]
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    command = cli.parse(_command(name, METHODS[name]), arguments[1:], f"train.py {name}")
    return _train(name, METHODS[name], command.method, command.training)


def _summary(module: Any) -> str:
    return str(module.__doc__).splitlines()[0]


def _command(name: str, module: Any) -> Any:
    from genjax.training.options import TrainingOptions

    command = dataclasses.make_dataclass(
        "Command",
        [("method", module.Config, module.Config()), ("training", TrainingOptions, TrainingOptions())],
        frozen=True,
    )
    command.__doc__ = f"{_summary(module)}\n\nWhat is not given is chosen by the data; the same command again resumes."
    return command


def _train(name: str, module: Any, config: Any, options: Any) -> int:
    from genjax.training import data
    from genjax.training import options as training_options
    from genjax.training.run_dir import open_run

    training_options.check(options)
    dataset = data.load(options.data, data_dir=options.data_dir, download=options.download)
    dataset = data.binarised(dataset) if options.binarise else dataset
    from genjax import runs

    opened = runs.open_other(module, config, dataset, _note)
    other_description, other = opened or (None, None)
    options = _resolve(options, module.recommended(dataset.examples), dataset.name)
    config = module.for_steps(config, options.steps) if hasattr(module, "for_steps") else config
    config = module.resolve(config, dataset.examples, *runs.accepts(module, other))
    cli.use_compilation_cache()
    description = runs.describe(name, config, options, dataset, other_description)
    method = module.build(config, runs.optimizer_of(options), dataset.examples, *runs.accepts(module, other))
    suffix = "-binarised" if options.binarise else ""
    directory = Path(options.out or f"runs/{name}-{Path(dataset.name).stem}{suffix}")
    with open_run(directory, description, fresh=options.fresh, replace=options.replace, warn=_note) as status:
        _announce(name, dataset, config, options, directory)
        shown = dataset.num_classes if getattr(config, "class_conditional", False) else 0
        return _Training(method, dataset, options, directory, shown).run(resume=status == "resume")


def _resolve(options: Any, recommended: Any, data_name: str) -> Any:
    steps = options.steps or recommended.steps
    return dataclasses.replace(
        options,
        data=data_name,
        steps=steps,
        batch_size=options.batch_size or recommended.batch_size,
        learning_rate=options.learning_rate or recommended.learning_rate,
        warmup=min(steps // 20, 1000) if options.warmup is None else options.warmup,
        b1=recommended.b1 if options.b1 is None else options.b1,
        b2=recommended.b2 if options.b2 is None else options.b2,
        clip_update=recommended.clip_update if options.clip_update is None else options.clip_update,
        steps_per_dispatch=min(options.steps_per_dispatch or recommended.steps_per_dispatch, steps),
    )


def _announce(name: str, dataset: Any, config: Any, options: Any, directory: Path) -> None:
    shape = "x".join(map(str, dataset.train.data.shape[1:]))
    kind = "images" if dataset.train.data.ndim == 4 else "points"
    classes = f", {dataset.num_classes} classes" if dataset.num_classes else ""
    print(f"{name} on {dataset.name}: {len(dataset.train.data)} {kind} of {shape}{classes}")
    network = getattr(config, "network", None)
    if network is not None:
        print(f"  network   {network}")
    print(
        f"  training  {options.steps} steps of {options.batch_size} examples, learning rate "
        f"{options.learning_rate:g} ({options.schedule}, {options.warmup} steps of warm-up), seed {options.seed}"
    )
    print(f"  run       {directory}", flush=True)


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


class _Training:
    """The loop's companions in a run directory: checkpoints, metrics, pictures, interrupts."""

    def __init__(self, method: Any, dataset: Any, options: Any, directory: Path, num_classes: int):
        import jax

        from genjax.training.checkpoint import Checkpoints
        from genjax.training.log import MetricsLog
        from genjax.training.loop import make_evaluate

        self.method, self.dataset, self.options, self.directory = method, dataset, options, directory
        self.num_classes = num_classes
        self.kind = "images" if dataset.train.data.ndim == 4 else "points"
        self.checkpoints = Checkpoints(directory / "checkpoints", warn=_note)
        self.log = MetricsLog(directory / "metrics.jsonl")
        self.key = jax.random.fold_in(jax.random.key(options.seed), 2**31 - 2)
        self.evaluate = make_evaluate(
            method,
            dataset,
            max_examples=_EVALUATION_EXAMPLES[self.kind],
            batch_size=min(_EVALUATION_EXAMPLES[self.kind], 256),
        )
        per_dispatch = options.steps_per_dispatch
        self.every = max(math.ceil(options.steps / options.evaluations / per_dispatch), 1) * per_dispatch
        self.signal: int | None = None
        self.saved_at = time.monotonic()
        self.rate_from = (time.monotonic(), 0)
        self._sample: Any = None

    def run(self, *, resume: bool) -> int:
        """Train to the end or to an interrupt; returns the exit code."""
        import jax

        from genjax.training import loop

        state = self._initial_state(resume)
        start = int(state.step)
        self.rate_from = (time.monotonic(), start)
        if start >= self.options.steps:
            self._finish(state)
            return 0
        with self._catch_signals(), self.checkpoints:
            try:
                state = loop.fit(
                    self.method,
                    self.dataset,
                    self.options.seed,
                    steps=self.options.steps,
                    batch_size=self.options.batch_size,
                    steps_per_dispatch=self.options.steps_per_dispatch,
                    state=state,
                    on_dispatch=self._after_dispatch,
                )
            except loop.Diverged as error:
                self.checkpoints.wait()
                last = self.checkpoints.latest_step()
                kept = f"the last good checkpoint is of step {last}" if last is not None else "no checkpoint yet"
                raise UserError(f"{error}; {kept} in {self.directory}; try a lower --learning-rate") from None
            jax.block_until_ready(state)
            if int(state.step) < self.options.steps:
                self.checkpoints.save(state, score=None)
                self.checkpoints.wait()
                print(f"stopped at step {int(state.step)} and saved; the same command again resumes")
                return 128 + (self.signal or signal.SIGINT)
            self.checkpoints.wait()
        self._finish(state)
        return 0

    def _initial_state(self, resume: bool) -> Any:
        import jax

        from genjax.training.loop import example_batch

        key = jax.random.key(self.options.seed)
        batch = example_batch(self.dataset)
        if resume and not self.checkpoints.is_empty():
            state = self.checkpoints.restore(jax.eval_shape(self.method.init, key, batch))
            self.log.truncate_after(int(state.step))
            print(f"  resumed   at step {int(state.step)}", flush=True)
            return state
        self.log.truncate_after(-1)
        return self.method.init(key, batch)

    def _after_dispatch(self, state: Any, step: int, metrics: dict[str, float]) -> bool:
        self.log.append(step, {**metrics, "steps_per_second": self._steps_per_second(step)})
        if step % self.every == 0 or step == self.options.steps:
            score = self._evaluate(state, step)
            self._picture(state, self.directory / "samples" / f"step-{step:07d}.png")
            self._plot_losses()
            self._save(state, score)
        elif time.monotonic() - self.saved_at > 60 * self.options.save_minutes:
            self._save(state, None)
        return self.signal is not None

    def _steps_per_second(self, step: int) -> float:
        (then, since), now = self.rate_from, time.monotonic()
        self.rate_from = (now, step)
        return (step - since) / max(now - then, 1e-9)

    def _save(self, state: Any, score: float | None) -> None:
        self.checkpoints.save(state, score=score)
        self.saved_at = time.monotonic()

    def _evaluate(self, state: Any, step: int) -> float | None:
        from genjax.training.loop import HELD_OUT

        if self.evaluate is None:
            return None
        metrics = self.evaluate(state.ema, self.key)
        self.log.append(step, {f"{HELD_OUT}{name}": value for name, value in metrics.items()})
        return metrics.get("loss")

    def _picture(self, state: Any, path: Path) -> None:
        import numpy as np

        from genjax.drawing import MOST_CLASS_COLUMNS, batch_size_for, draw, jitted_sample, picture
        from genjax.training.run_dir import make_directory

        columns = self.num_classes if self.kind == "images" and 1 < self.num_classes <= MOST_CLASS_COLUMNS else None
        num = _PICTURE_SAMPLES[self.kind]
        num -= num % (columns or 1)
        label = np.resize(np.arange(self.num_classes, dtype=np.int32), num) if self.num_classes else None
        batch_size = batch_size_for(self.dataset.train.data.shape[1:], num)
        if self._sample is None:
            self._sample = jitted_sample(self.method, batch_size)
        samples = draw(
            self._sample,
            state.ema,
            self.key,
            num,
            batch_size=batch_size,
            label=label,
        )
        make_directory(path.parent)
        picture(path, samples, self.dataset.scaling, self.dataset, columns=columns)

    def _plot_losses(self) -> None:
        from genjax import plots
        from genjax.training.log import read_metrics
        from genjax.training.loop import loss_names

        records = read_metrics(self.directory / "metrics.jsonl")
        names = loss_names(dict.fromkeys(name for record in records for name in record))
        if names:
            plots.loss_curve(self.directory / "loss.png", records, keys=names)

    def _finish(self, state: Any) -> None:
        from genjax.training.run_dir import make_directory

        self._plot_losses()
        last = self.directory / "samples" / f"step-{int(state.step):07d}.png"
        if not last.exists():
            make_directory(last.parent)
            self._picture(state, last)
        print(f"trained {int(state.step)} steps; loss curve: {self.directory / 'loss.png'}")
        print(f"draw more: python sample.py {self.directory}")
        print(f"samples: {last}")

    @contextmanager
    def _catch_signals(self) -> Iterator[None]:
        """The first SIGINT or SIGTERM asks the loop to stop and save; the second one ends the process."""

        def ask(number: int, frame: object) -> None:
            self.signal = number
            signal.signal(number, previous[signal.Signals(number)])
            print("\nstopping after these steps ...", file=sys.stderr, flush=True)

        previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
