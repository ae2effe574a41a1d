"""How long and how fast to train by kind of data, where the user does not say."""

import math
from typing import NamedTuple


class Recommended(NamedTuple):
    """Training options that give a good result without being asked for."""

    steps: int
    batch_size: int
    learning_rate: float
    steps_per_dispatch: int
    dequantise: bool = False


def for_path_models(event_shape: tuple[int, ...]) -> Recommended:
    """For models on a Gaussian path with the networks of `network_options`, measured on two cores."""
    if len(event_shape) == 1:
        return Recommended(steps=20_000, batch_size=512, learning_rate=1e-3, steps_per_dispatch=100)
    if math.prod(event_shape) <= 16 * 16:
        return Recommended(steps=4_000, batch_size=64, learning_rate=1e-3, steps_per_dispatch=25)
    return Recommended(steps=10_000, batch_size=64, learning_rate=5e-4, steps_per_dispatch=5)
