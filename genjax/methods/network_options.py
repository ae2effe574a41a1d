"""The network of a continuous-time model: its options, their defaults by data, and the `Net` they make."""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, Literal

import jax.numpy as jnp
import tyro

from genjax.errors import UsageError
from genjax.training.compilation import (
    CACHED_PIXELS,
    CACHED_TOKENS,
    convolution_options,
    convolution_sampling_options,
    convolution_training_options,
    in_parts,
    perceptron_sampling_options,
    transformer_sampling_options,
)
from genjax.typing import CompilerOptions, Examples, Net

ByData = tyro.conf.arg(metavar="INT", help_behavior_hint="(default: by data)")
BySteps = tyro.conf.arg(metavar="INT", help_behavior_hint="(default: by --steps)")


@dataclasses.dataclass(frozen=True)
class NetworkOptions:
    """Network. What is not given is chosen by the data."""

    network: Annotated[
        Literal["mlp", "unet", "dit"] | None,
        tyro.conf.arg(metavar="{mlp,unet,dit}", help_behavior_hint="(default: by data)"),
    ] = None
    """mlp for points; unet or dit for images"""
    width: Annotated[int | None, ByData] = None
    """hidden units (mlp), base channels (unet), token width (dit)"""
    depth: Annotated[int | None, ByData] = None
    """hidden layers (mlp), residual blocks a level (unet), transformer blocks (dit)"""
    resolutions: Annotated[int | None, ByData] = None
    """sizes of the image, each half of the one before (unet)"""
    patch: Annotated[int | None, ByData] = None
    """side of a token's patch (dit)"""
    bfloat16: bool = False
    """compute in bfloat16; parameters stay float32"""

    def __str__(self) -> str:
        """What is set, in a few words."""
        named = {"width": self.width, "depth": self.depth, "resolutions": self.resolutions, "patch": self.patch}
        sizes = [f"{name} {value}" for name, value in named.items() if value is not None]
        return ", ".join([self.network or "default", *sizes, *(["bfloat16"] if self.bfloat16 else [])])


def resolve(options: NetworkOptions, event_shape: tuple[int, ...]) -> NetworkOptions:
    """`options` with every default chosen for examples of `event_shape`.

    Raises:
        UsageError: a network that does not fit the data.
    """
    is_image = len(event_shape) == 3
    network = options.network or ("unet" if is_image else "mlp")
    if network == "mlp" and is_image:
        raise UsageError(f"--network mlp is for points; images of shape {event_shape} take unet or dit")
    if network != "mlp" and not is_image:
        raise UsageError(f"--network {network} is for images; points of shape {event_shape} take mlp")
    small = is_image and max(event_shape[:2]) <= 16
    resolutions = 2 if small else 4 if is_image and max(event_shape[:2]) >= 64 else 3
    defaults = {
        "mlp": {"width": 256, "depth": 4},
        "unet": {"width": 32, "depth": 1, "resolutions": resolutions},
        "dit": {"width": 192 if small else 256, "depth": 6, "patch": 2 if small else 4},
    }[network]
    given = {name: getattr(options, name) for name in ("width", "depth", "resolutions", "patch")}
    for name, value in given.items():
        if value is not None and value < 1:
            raise UsageError(f"--{name} is {value}; expected at least 1")
        if value is not None and name not in defaults:
            raise UsageError(f"--{name} does not apply to --network {network}")
    chosen: dict[str, Any] = {name: given[name] or default for name, default in defaults.items()}
    return dataclasses.replace(options, network=network, **chosen)


def check_halvings(examples: Examples, halvings: int) -> None:
    """Refuse (UsageError) images whose sides cannot be halved so often; points pass."""
    if examples.are_images and any(side % 2**halvings for side in examples.event_shape[:2]):
        size = "x".join(map(str, examples.event_shape[:2]))
        raise UsageError(
            f"images of {size} cannot be halved {halvings} times; pad or crop them to a multiple of {2**halvings}"
        )


def make_net(options: NetworkOptions, event_shape: tuple[int, ...], num_classes: int) -> Net:
    """The network of resolved `options` for examples of `event_shape`; conditional when `num_classes` > 0.

    Raises:
        UsageError: images that cannot be cut into patches.
    """
    from genjax.networks import dit, mlp, unet

    dtype = jnp.bfloat16 if options.bfloat16 else jnp.float32
    width, depth = options.width or 0, options.depth or 0
    if options.network == "mlp":
        return mlp((width,) * depth, num_classes=num_classes, dtype=dtype)
    height, image_width, _ = event_shape
    if options.network == "dit":
        patch = options.patch or 1
        if height % patch or image_width % patch:
            raise UsageError(f"images of {height}x{image_width} cannot be cut into patches of --patch {patch}")
        return dit(
            patch=patch,
            width=width,
            depth=depth,
            heads=max(width // 64, 1),
            num_classes=num_classes,
            dtype=dtype,
        )
    halvings = (options.resolutions or 1) - 1
    return unet(
        base=width,
        multipliers=(1,) + (2,) * halvings,
        blocks=depth,
        attention=(-(-height // 2**halvings),),
        num_classes=num_classes,
        dtype=dtype,
    )


def sampling_net(options: NetworkOptions, net: Net) -> Net:
    """`net`, of such a network, as sampling calls it on this backend."""
    if options.network == "unet":
        return in_parts(net, CACHED_PIXELS)
    return in_parts(net, CACHED_TOKENS, patch=options.patch or 1) if options.network == "dit" else net


def compiler_options(options: NetworkOptions) -> CompilerOptions:
    """What to give to a `jit` of this network on this backend."""
    return convolution_options() if options.network == "unet" else None


def training_options(options: NetworkOptions, event_shape: tuple[int, ...]) -> Callable[[int], CompilerOptions] | None:
    """Those for steps that all devices share, of the number of examples; None where a CPU's do not."""
    return convolution_training_options(event_shape) if options.network == "unet" else None


def sampling_options(options: NetworkOptions) -> Callable[[int], CompilerOptions] | None:
    """Those for sampling, of the number of examples a call; None where they are the same."""
    return {
        "unet": convolution_sampling_options,
        "mlp": perceptron_sampling_options,
        "dit": transformer_sampling_options,
    }.get(options.network or "")
