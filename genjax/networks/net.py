"""From a module of Flax, Linen or NNX, to the pair of functions `Net(init, apply)`."""

from collections.abc import Callable
from typing import Any, cast

import flax.linen as nn
import jax

from genjax.networks.initialisation import draw
from genjax.typing import Array, Key, Net, Params


def from_linen(module: nn.Module) -> Net:
    """The pair `(init, apply)` of a Linen module whose only variables are parameters.

    `init(key, *inputs)` returns nested dicts of arrays, without the outer `{"params": ...}`;
    `apply(params, *inputs)` calls the module. `init` raises ValueError if there are other variables, such
    as batch statistics.
    """

    def init(key: Key, *inputs: Any) -> Params:
        return draw(module, key, *inputs)

    def apply(params: Params, *inputs: Any) -> Array:
        output: Any = module.apply({"params": params}, *inputs)
        return output

    return Net(init, apply)


def from_nnx(make_module: Callable[[Any], Any]) -> Net:
    """The pair `(init, apply)` of an NNX module: `make_module(nnx.Rngs) -> module`, called with the inputs.

    `init(key, *inputs)` returns the state of `nnx.Param`s as nested dicts; the inputs are not looked at.
    Raises ValueError if the module has other state.

    >>> from flax import nnx
    >>> net = from_nnx(lambda rngs: nnx.Linear(2, 3, rngs=rngs))
    >>> net.apply(net.init(jax.random.key(0)), jax.numpy.ones((4, 2))).shape
    (4, 3)
    """
    from flax import nnx

    def split(module: Any) -> tuple[Any, Any]:
        graph, params, rest = cast(tuple[Any, Any, Any], nnx.split(module, nnx.Param, ...))
        if jax.tree.leaves(rest):
            raise ValueError("the module has state besides its parameters")
        return graph, params

    def init(key: Key, *inputs: Any) -> Params:
        return nnx.to_pure_dict(split(make_module(nnx.Rngs(key)))[1])

    def apply(params: Params, *inputs: Any) -> Array:
        graph, state = split(nnx.eval_shape(lambda: make_module(nnx.Rngs(0))))
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graph, state)(*inputs)

    return Net(init, apply)
