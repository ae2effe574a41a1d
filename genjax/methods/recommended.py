"""How long and how fast to train by kind of data, where the user does not say."""

import math
from typing import NamedTuple

from genjax.training.compilation import convolution_steps_per_dispatch


class Recommended(NamedTuple):
    """Training options that give a good result without being asked for."""

    steps: int
    batch_size: int
    learning_rate: float
    steps_per_dispatch: int
    b1: float = 0.9
    b2: float = 0.999
    clip_update: float = 0.0


def for_path_models(event_shape: tuple[int, ...]) -> Recommended:
    """For models on a Gaussian path with the networks of `network_options`."""
    if len(event_shape) == 1:
        return Recommended(steps=10_000, batch_size=256, learning_rate=1e-3, steps_per_dispatch=100)
    per_dispatch = convolution_steps_per_dispatch()
    if math.prod(event_shape) <= 16 * 16:
        return Recommended(steps=2_500, batch_size=64, learning_rate=1e-3, steps_per_dispatch=per_dispatch)
    return Recommended(steps=10_000, batch_size=64, learning_rate=1e-3, steps_per_dispatch=per_dispatch)
