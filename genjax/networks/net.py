"""From a module of Flax, Linen or NNX, to the pair of functions `Net(init, apply)`."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from genjax.networks.initialisation import initialiser_of, quick_key
from genjax.typing import Array, Key, Net, Params


def from_linen(module: nn.Module) -> Net:
    """The pair `(init, apply)` of a Linen module whose only variables are parameters.

    `init(key, *inputs)` returns nested dicts of arrays, without the outer `{"params": ...}`, distributed as the
    module's initializers say though not the numbers that `module.init` draws from the same key;
    `apply(params, *inputs)` calls the module. `init` raises ValueError if there are other variables, such as
    batch statistics.

    >>> net = from_linen(nn.Dense(3))
    >>> net.apply(net.init(jax.random.key(0), jax.numpy.ones((4, 2))), jax.numpy.ones((4, 2))).shape
    (4, 3)
    """

    def apply(params: Params, *inputs: Any) -> Array:
        output: Any = module.apply({"params": params}, *inputs)
        return output

    return Net(initialiser_of(module), apply)


def from_nnx(make_module: Callable[[Any], Any]) -> Net:
    """The pair `(init, apply)` of an NNX module: `make_module(nnx.Rngs) -> module`, called with the inputs.

    `init(key, *inputs)` returns the values of the module's `nnx.Param`s as nested dicts, the items of lists under
    "0", "1", ...; the inputs are not looked at. Raises ValueError if the module has other state.

    >>> from flax import nnx
    >>> net = from_nnx(lambda rngs: nnx.Linear(2, 3, rngs=rngs))
    >>> net.apply(net.init(jax.random.key(0)), jax.numpy.ones((4, 2))).shape
    (4, 3)
    """
    from flax import nnx

    @functools.cache
    def abstract() -> tuple[Any, Any]:
        parts: Any = nnx.split(nnx.eval_shape(lambda: make_module(nnx.Rngs(0))), nnx.Param, ...)
        graph, params, rest = parts
        if jax.tree.leaves(rest):
            raise ValueError("the module has state besides its parameters, such as batch statistics or dropout's keys")
        return graph, params

    @jax.jit
    def draw(key: Key) -> Params:
        return _with_string_keys(nnx.to_pure_dict(nnx.state(make_module(nnx.Rngs(key)), nnx.Param)))

    def init(key: Key, *inputs: Any) -> Params:
        abstract()
        return draw(quick_key(key))

    def apply(params: Params, *inputs: Any) -> Array:
        graph, shapes = abstract()
        state = jax.tree.map(lambda leaf: leaf, shapes)
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graph, state)(*inputs)

    return Net(init, apply)


def _with_string_keys(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    return {str(name): _with_string_keys(branch) for name, branch in tree.items()}
