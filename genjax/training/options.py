"""The options of a training run that every method shares, and what of them makes a run what it is."""

import dataclasses
from typing import Annotated, Any, Literal

import tyro

from genjax.errors import UsageError

_INTEGER = tyro.conf.arg(metavar="INT", help_behavior_hint="(default: by data)")
_NUMBER = tyro.conf.arg(metavar="FLOAT", help_behavior_hint="(default: by data)")
_BY_METHOD = tyro.conf.arg(metavar="FLOAT", help_behavior_hint="(default: by method)")


@dataclasses.dataclass(frozen=True)
class TrainingOptions:
    """Data and training. No option is needed: what is not given is chosen by the method and the data."""

    data: str = "digits"
    """a built-in data set (mixture1d, moons, eight_gaussians, checkerboard, two_spirals, swiss_roll, rings, pinwheel,
    grid25, ring8, digits, mnist), an .npy or .npz file, or a folder of images"""
    data_dir: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """where the files of mnist are"""
    download: bool = False
    """fetch the files of mnist if they are not there"""
    binarise: bool = False
    """images of two levels: integers from half of the highest on become 1, others 0"""
    steps: Annotated[int | None, _INTEGER] = None
    """training steps in all"""
    batch_size: Annotated[int | None, _INTEGER] = None
    """examples a step"""
    learning_rate: Annotated[float | None, _NUMBER] = None
    """peak learning rate of AdamW"""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """of the learning rate, after the warm-up"""
    warmup: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: a 20th)")] = None
    """steps over which the learning rate rises from 0"""
    b1: Annotated[float | None, _BY_METHOD] = None
    """decay of AdamW's first moment"""
    b2: Annotated[float | None, _BY_METHOD] = None
    """decay of AdamW's second moment"""
    weight_decay: float = 0.0
    """decoupled weight decay"""
    clip_norm: float = 1.0
    """greatest global norm of the gradient; 0 for none"""
    clip_update: Annotated[float | None, _BY_METHOD] = None
    """greatest root mean square of AdamW's direction in an array; 0 for none"""
    seed: int = 0
    """of initialisation, batches and noise"""
    steps_per_dispatch: Annotated[int | None, _INTEGER] = None
    """steps compiled into one call; bars, metrics and interrupts come between calls"""
    evaluations: int = 10
    """how often in the run to evaluate on held-out data, draw a picture and save a checkpoint"""
    save_minutes: float = 1.0
    """also save a checkpoint after so many minutes without one"""
    out: Annotated[str | None, tyro.conf.arg(metavar="RUN_DIR", help_behavior_hint="(default: runs/METHOD-DATA)")] = (
        None
    )
    """the run directory; the same command again resumes the run that is there"""
    fresh: bool = False
    """start anew: refuse a directory that holds a run ..."""
    replace: bool = False
    """... unless this is given too: the old run is moved aside"""


_WHERE_AND_WHEN = ("data_dir", "download", "evaluations", "save_minutes", "out", "fresh", "replace")


def identity(options: TrainingOptions) -> dict[str, Any]:
    """The options that decide what a run computes; a resumed run must agree with them."""
    return {k: v for k, v in dataclasses.asdict(options).items() if k not in _WHERE_AND_WHEN}


def check(options: TrainingOptions) -> None:
    """Refuse (UsageError) numbers that make no training; None stands for a default."""
    for name in ("steps", "batch_size", "steps_per_dispatch", "evaluations"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} is {value}; expected at least 1")
    for name in ("learning_rate", "save_minutes"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise UsageError(f"--{name.replace('_', '-')} is {value}; expected more than 0")
    for name in ("warmup", "weight_decay", "clip_norm", "clip_update", "seed"):
        value = getattr(options, name)
        if value is not None and not value >= 0:
            raise UsageError(f"--{name.replace('_', '-')} is {value}; expected at least 0")
    for name in ("b1", "b2"):
        value = getattr(options, name)
        if value is not None and not 0 <= value < 1:
            raise UsageError(f"--{name} is {value}; expected at least 0 and below 1")
    if options.seed >= 2**32:
        raise UsageError(f"--seed is {options.seed}; expected below 2^32")
