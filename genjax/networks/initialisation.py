"""Parameters drawn at once: compiling one random draw a leaf is most of the time of a network's first call.

Every parameter of this package starts as `mean + std z` with `z ~ N(0, 1)`, and an initializer made by `normal` says
so in the metadata of the parameter. `initialiser_of` learns all shapes, means and deviations by tracing the module,
draws one vector of standard normals and cuts it up. Parameters with another initializer are drawn by that initializer.
"""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta

from genjax.typing import Array, Key, Params

Initializer = Callable[..., Any]


@flax.struct.dataclass
class Normal(meta.AxisMetadata):
    """A parameter distributed as `N(mean, std^2)`, each entry on its own."""

    value: Any
    mean: float = flax.struct.field(pytree_node=False)
    std: float = flax.struct.field(pytree_node=False)
    replace: ClassVar[Callable[..., Any]]

    def unbox(self) -> Any:
        """The parameter."""
        return self.value

    def replace_boxed(self, val: Any) -> "Normal":
        """Another parameter of the same distribution."""
        return self.replace(value=val)

    def add_axis(self, index: int, params: dict[Any, Any]) -> "Normal":
        """A new axis holds independent draws."""
        return self

    def remove_axis(self, index: int, params: dict[Any, Any]) -> "Normal":
        """A slice along an axis has the same distribution."""
        return self


def normal(std: float | None = None, *, mean: float = 0.0) -> Initializer:
    """The initializer `N(mean, std^2)`; by default `std = 1 / sqrt(fan in)`.

    The fan in of a kernel is the product of all its axes but the last.

    Source: LeCun, Bottou, Orr & Müller 1998, "Efficient BackProp", eq. 16.
    """

    def initializer(key: Key, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Normal:
        deviation = 1 / math.sqrt(math.prod(shape[:-1])) if std is None else std
        if deviation == 0:
            return Normal(jnp.full(shape, mean, dtype), mean, 0.0)
        return Normal(mean + deviation * jax.random.normal(key, shape, dtype), mean, deviation)

    return initializer


zeros = normal(0.0)
ones = normal(0.0, mean=1.0)


def initialiser_of(module: nn.Module) -> Callable[..., Params]:
    """`init(key, *inputs)`: the module's parameters as nested dicts of arrays, of its initializers' distributions.

    The inputs serve for their shapes alone, unless an initializer reads them. `init` may be traced (`jit`, `vmap`).

    Raises:
        ValueError: (from `init`) the module has variables besides parameters, such as batch statistics.
    """

    def others(key: Key, *inputs: Any) -> list[Array]:
        leaves = _leaves(module.init(key, *inputs)["params"])
        return [leaf for leaf in leaves if not isinstance(leaf, Normal)]

    compiled_others = jax.jit(others)

    def init(key: Key, *inputs: Any) -> Params:
        variables = jax.eval_shape(module.init, key, *inputs)
        extra = sorted(set(variables) - {"params"})
        if extra:
            raise ValueError(f"the module has variables besides its parameters: {', '.join(extra)}")
        leaves, structure = jax.tree.flatten(variables["params"], is_leaf=_is_normal)
        normals = [leaf for leaf in leaves if isinstance(leaf, Normal)]
        drawn = iter(_draw_all(key, normals))
        own = iter(compiled_others(quick_key(key), *inputs) if len(normals) < len(leaves) else ())
        return jax.tree.unflatten(structure, [next(drawn if _is_normal(leaf) else own) for leaf in leaves])

    return init


def quick_key(key: Key) -> Key:
    """A key whose draws are one operation each, so that a program of many draws compiles in a fraction of the time."""
    return jax.random.wrap_key_data(jax.random.bits(key, (4,), jnp.uint32), impl="unsafe_rbg")


def _is_normal(leaf: Any) -> bool:
    return isinstance(leaf, Normal)


def _leaves(params: Params) -> list[Any]:
    return jax.tree.leaves(params, is_leaf=_is_normal)


def _draw_all(key: Key, normals: list[Normal]) -> list[Array]:
    """Independent draws of the given distributions, from one vector of standard normals.

    NumPy cuts the vector up where it can: each slice of a JAX array would be a program of its own.
    """
    sizes = [math.prod(leaf.value.shape) if leaf.std else 0 for leaf in normals]
    widest = jnp.result_type(*(leaf.value.dtype for leaf in normals)) if normals else jnp.float32
    z = jax.lax.optimization_barrier(jax.random.normal(key, (sum(sizes),), widest))
    if not isinstance(z, jax.core.Tracer):
        z = np.asarray(z)
    ends = np.cumsum(sizes)
    cut = [
        (leaf.mean + leaf.std * z[end - size : end].reshape(leaf.value.shape)).astype(leaf.value.dtype)
        if size
        else np.full(leaf.value.shape, leaf.mean, leaf.value.dtype)
        for leaf, size, end in zip(normals, sizes, ends, strict=True)
    ]
    return jax.device_put(cut)
