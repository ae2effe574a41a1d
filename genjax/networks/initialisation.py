"""Parameters drawn at once: compiling one random draw a leaf is most of the time of a network's first call.

An initializer made by `normal` tells its standard deviation in the metadata of the parameter. `draw` learns all shapes
and deviations without computing anything, draws one long vector of standard normals and cuts it up. Parameters with
any other initializer are initialised by the module itself.
"""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from flax.core import meta

from genjax.typing import Array, Key, Params

Initializer = Callable[..., Any]


@flax.struct.dataclass
class Drawn(meta.AxisMetadata):
    """A parameter that is `std` times a standard normal."""

    value: Any
    std: float = flax.struct.field(pytree_node=False)
    replace: ClassVar[Callable[..., Any]]

    def unbox(self) -> Any:
        """The parameter."""
        return self.value

    def replace_boxed(self, val: Any) -> "Drawn":
        """Another parameter of the same distribution."""
        return self.replace(value=val)

    def add_axis(self, index: int, params: dict[Any, Any]) -> "Drawn":
        """A new axis holds independent draws."""
        return self

    def remove_axis(self, index: int, params: dict[Any, Any]) -> "Drawn":
        """A slice along an axis has the same distribution."""
        return self


def normal(std: float | None = None) -> Initializer:
    """`N(0, std^2)`; by default `std = 1 / sqrt(fan in)`, the product of all axes but the last (LeCun et al. 1998)."""

    def initializer(key: Key, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Drawn:
        deviation = 1 / math.sqrt(math.prod(shape[:-1])) if std is None else std
        return Drawn(deviation * jax.random.normal(key, shape, dtype), deviation)

    return initializer


def draw(module: nn.Module, key: Key, *inputs: Any) -> Params:
    """The parameters of `module` at `inputs`, nested dicts of arrays, of the distribution its initializers state.

    Raises:
        ValueError: the module has variables besides parameters.
    """
    shapes = jax.eval_shape(module.init, key, *inputs)
    extra = sorted(set(shapes) - {"params"})
    if extra:
        raise ValueError(f"the module has variables besides its parameters: {', '.join(extra)}")
    leaves, structure = jax.tree.flatten(shapes["params"], is_leaf=_is_drawn)
    others = _others(module, key, inputs) if not all(map(_is_drawn, leaves)) else iter(())
    return jax.tree.unflatten(
        structure, [value if value is not None else next(others) for value in _draw_all(key, leaves)]
    )


def _is_drawn(leaf: Any) -> bool:
    return isinstance(leaf, Drawn)


def _others(module: nn.Module, key: Key, inputs: tuple[Any, ...]) -> Any:
    """The leaves that are not `Drawn`, by the module's own initializers; what they do not need is not compiled."""

    def initialise(key: Key, *inputs: Any) -> list[Array]:
        leaves = jax.tree.leaves(module.init(key, *inputs)["params"], is_leaf=_is_drawn)
        return [leaf for leaf in leaves if not _is_drawn(leaf)]

    return iter(jax.jit(initialise)(key, *inputs))


def _draw_all(key: Key, leaves: list[Any]) -> list[Array | None]:
    described = [(leaf.value.shape, leaf.value.dtype, leaf.std) if _is_drawn(leaf) else None for leaf in leaves]
    total = sum(math.prod(each[0]) for each in described if each)

    def cut(key: Key) -> list[Array]:
        z = jax.random.normal(jax.random.fold_in(key, total), (total,))
        parts, start = [], 0
        for shape, dtype, std in filter(None, described):
            size = math.prod(shape)
            parts.append((std * z[start : start + size]).reshape(shape).astype(dtype))
            start += size
        return parts

    parts = iter(jax.jit(cut)(key))
    return [next(parts) if each else None for each in described]
