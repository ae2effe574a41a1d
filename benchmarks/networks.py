"""The networks that are timed, with parameters that both frameworks read from one file."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from genjax.methods import network_options
from genjax.methods.network_options import NetworkOptions
from genjax.networks.dit import dit
from genjax.networks.layers import selu
from genjax.networks.mlp import mlp
from genjax.networks.unet import unet
from genjax.training import compilation
from genjax.typing import CompilerOptions, Net


class Timed(NamedTuple):
    """A network, the shape of an example, and whether convolutions are most of it."""

    title: str
    net: Net
    event_shape: tuple[int, ...]
    convolutional: bool


NETWORKS = {
    "mlp": Timed("2-D MLP 3x256", mlp((256, 256, 256)), (2,), False),
    "mlp-64": Timed("2-D MLP 3x64", mlp((64, 64, 64), activation=selu, time_features=0), (2,), False),
    "unet": Timed("U-Net 28x28, base 32", unet(), (28, 28, 1), True),
    "dit": Timed("DiT 28x28, patch 4, width 256, depth 6", dit(), (28, 28, 1), False),
}


def compiler_options(name: str) -> CompilerOptions:
    """As the methods choose them."""
    return compilation.convolution_options() if NETWORKS[name].convolutional else None


def training_options(name: str) -> Callable[[int], CompilerOptions] | None:
    """As the methods choose them for steps that all devices share."""
    timed = NETWORKS[name]
    return compilation.convolution_training_options(timed.event_shape) if timed.convolutional else None


def sampling_options(name: str, batch: int) -> CompilerOptions:
    """As the methods choose them for a call of so many examples."""
    if NETWORKS[name].convolutional:
        return compilation.convolution_sampling_options(batch)
    if len(NETWORKS[name].event_shape) == 1:
        return compilation.perceptron_sampling_options(batch)
    return compilation.transformer_sampling_options(batch)


def sampling_net(name: str) -> Net:
    """As the methods call it in sampling."""
    timed, kind = NETWORKS[name], name.partition("-")[0]
    options = network_options.resolve(NetworkOptions(kind), timed.event_shape)
    return network_options.sampling_net(options, timed.net)


def inputs(name: str, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """The same everywhere: x of N(0, 1) and t uniform."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, *NETWORKS[name].event_shape), np.float32)
    return x, rng.random(batch, np.float32)


def initialised(name: str) -> Any:
    """Parameters that make the network no constant."""
    x, t = inputs(name, 1)
    return not_constant(NETWORKS[name].net.init(jax.random.key(0), jnp.asarray(x), jnp.asarray(t)))


def not_constant(params: Any) -> Any:
    """What starts at 0 is N(0, 0.02^2) instead, so that the network is no constant."""
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: leaf if np.any(leaf) else jnp.asarray(0.02 * rng.standard_normal(leaf.shape), leaf.dtype), params
    )


@contextmanager
def saved(*names: str) -> Iterator[dict[str, str]]:
    """Files of the parameters of networks, by path within each, for as long as they are needed."""
    with tempfile.TemporaryDirectory() as folder:
        files = {name: str(Path(folder) / f"{name}.npz") for name in names}
        for name, file in files.items():
            leaves = jax.tree_util.tree_flatten_with_path(initialised(name))[0]
            np.savez(file, **{"/".join(part.key for part in path): np.asarray(leaf) for path, leaf in leaves})
        yield files


def read(file: str) -> Any:
    """The nested parameters of a file of `saved`."""
    params: dict[str, Any] = {}
    with np.load(file) as arrays:
        for path in arrays.files:
            *parents, leaf = path.split("/")
            branch = params
            for parent in parents:
                branch = branch.setdefault(parent, {})
            branch[leaf] = jnp.asarray(arrays[path])
    return params
