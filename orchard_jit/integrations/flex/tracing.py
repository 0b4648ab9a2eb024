"""A Python function of a score and its place, run once on stand-ins, becomes an expression of what it does.

Each call traces anew, so nothing that a function captures can go stale. What it captures of tensors is an
input of the kernels; they are not compiled again for other values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from orchard_jit.integrations.flex.arrays import Arrays
from orchard_jit.integrations.flex.interval import check_index
from orchard_jit.integrations.flex.nodes import arithmetic, constant, number, select
from orchard_jit.integrations.flex.operators import OPERATORS
from orchard_jit.integrations.flex.refusal import Refusal, explained
from orchard_jit.score.expression import SCORE_NODE, Node

_FACTORIES = ("new_zeros", "new_ones", "new_full", "zeros_like", "ones_like", "full_like")
_VALUE_READERS = ("_local_scalar_dense", "is_nonzero", "equal", "item")


class StandIn(torch.Tensor):
    """A scalar whose value is an expression, or a tensor of which only some indices are known.

    Attributes:
        node: The expression, if it is a scalar.
        indexed: Else the tensor and its indices, None where there is none yet.

    """

    node: Node | None
    indexed: tuple[torch.Tensor, tuple[Node | None, ...]] | None

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise RuntimeError("flex_attention: a value of a score_mod or mask_mod is used outside of it")

    def __repr__(self, **_: object) -> str:  # type: ignore[override]
        return f"<a {self.dtype} that flex_attention compiles>"


class Tracer:
    """Runs functions for the scores of one call.

    Args:
        sizes: Of the coordinates.
        dtype: Of the scores.
        device: Of the inputs.

    Attributes:
        arrays: What the functions index.

    """

    def __init__(self, sizes: Mapping[str, int], dtype: torch.dtype, device: torch.device) -> None:
        self.arrays = Arrays(device)
        self._sizes = sizes
        self._dtypes = {"float": dtype, "int": torch.int32, "bool": torch.bool}
        self._device = device

    def score(self, function: Callable[..., torch.Tensor]) -> Node:
        """What a score_mod makes of the score."""
        node = self._run("score_mod", function, SCORE_NODE)
        return arithmetic("add", node, number(0.0)) if node.type != "float" else node

    def mask(self, function: Callable[..., torch.Tensor]) -> Node:
        """Whether a mask_mod lets the query see the key."""
        node = self._run("mask_mod", function)
        if node.type != "bool":
            raise TypeError(
                f"flex_attention: {_named('mask_mod', function)} must return bools, got {node.type}"
            )
        return node

    def _run(self, kind: str, function: Callable[..., torch.Tensor], *leading: Node) -> Node:
        places = (Node("name", "int", (), name) for name in self._sizes)
        name = _named(kind, function)
        with _Indexing(self, name), _Dispatch(self, name):
            result = function(*map(self.stand_in, (*leading, *places)))
        if not isinstance(result, torch.Tensor) or result.dim():
            got = (
                f"shape {tuple(result.shape)}" if isinstance(result, torch.Tensor) else type(result).__name__
            )
            raise TypeError(f"flex_attention: {name} must return a scalar tensor, got {got}")
        return self.node(result)

    def stand_in(self, node: Node) -> StandIn:
        """For a user's function to compute with."""
        return self._new((), self._dtypes[node.type], node, None)

    def _new(self, shape: Any, dtype: torch.dtype, node: Node | None, indexed: Any) -> StandIn:
        made: StandIn = torch.Tensor._make_wrapper_subclass(StandIn, shape, dtype=dtype, device=self._device)
        made.node, made.indexed = node, indexed
        return made

    def node(self, value: object) -> Node:
        """What a scalar stands for."""
        if isinstance(value, (bool, int, float)):
            return number(value)
        if not isinstance(value, torch.Tensor):
            raise Refusal(f"{type(value).__name__} is no scalar")
        if value.dim():
            raise Refusal(f"a tensor of shape {tuple(value.shape)} must be indexed down to a scalar")
        if isinstance(value, StandIn):
            assert value.node is not None
            return value.node
        if value.device.type == "cpu" and not value.requires_grad:
            return number(value.item())
        return self.arrays.element(value.view(1), (number(0),), is_learned=value.requires_grad)

    def operation(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor:
        """What an operator does with stand-ins."""
        name = func.overloadpacket.__name__
        if name in _VALUE_READERS:
            raise Refusal(
                "Python asks for a value that differs from score to score (by if, and, or, not, min, max, "
                "int(), math); use torch.where, & | ~, torch.minimum, torch.maximum"
            )
        if name in _FACTORIES:
            like, *given = args
            made: torch.Tensor = func(torch.empty((), dtype=like.dtype), *given, **{**kwargs, "device": None})
            return made
        rule = OPERATORS.get(name) if func.namespace == "aten" else None
        if rule is None:
            raise Refusal(f"the operator {name} is not accepted")
        nodes = [None if value is None else self.node(value) for value in args]
        named = {key: value if key in _AS_THEY_ARE else self.node(value) for key, value in kwargs.items()}
        try:
            return self.stand_in(rule(*nodes, **named))
        except TypeError as error:
            raise Refusal(f"the operator {name} is not accepted with these arguments") from error

    def index(self, base: torch.Tensor, index: object) -> StandIn:
        """A tensor indexed by stand-ins."""
        if isinstance(base, StandIn) and base.indexed is None:
            raise Refusal("a scalar cannot be indexed")
        tensor, indices = (isinstance(base, StandIn) and base.indexed) or (base, (None,) * base.dim())
        open_ = [dim for dim, known in enumerate(indices) if known is None]
        given = list(index) if isinstance(index, tuple) else [index]
        if any(item is None for item in given):
            raise Refusal("an index must be an integer or ':', not None")
        for at in [at for at, item in enumerate(given) if item is ...]:
            given[at : at + 1] = [slice(None)] * (len(open_) - len(given) + 1)
        if len(given) > len(open_):
            raise IndexError(f"too many indices for a tensor of {len(open_)} dimensions: {len(given)}")
        filled = list(indices)
        for dim, item in zip(open_, given, strict=False):
            if not (isinstance(item, slice) and item == slice(None)):
                filled[dim] = self._place_in(tensor.shape[dim], item)
        shape = [tensor.shape[dim] for dim, known in enumerate(filled) if known is None]
        if shape:
            return self._new(shape, tensor.dtype, None, (tensor, tuple(filled)))
        element = tuple(node for node in filled if node)
        return self.stand_in(self.arrays.element(tensor, element, is_learned=tensor.requires_grad))

    def _place_in(self, size: int, item: object) -> Node:
        """An index from 0 on; in PyTorch a negative one counts from the end."""
        if not isinstance(item, (int, torch.Tensor)) or isinstance(item, bool):
            raise Refusal(f"an index must be an integer or ':', not {item!r}")
        node = self.node(item)
        if node.type != "int":
            raise Refusal(f"an index must be an integer, this is a {node.type}")
        if node.uses_score:
            raise Refusal("an index cannot depend on the score")
        if not check_index(node, size, self._sizes):
            return node
        if node.operator == "number":
            return number(size + constant(node))
        return select(Node("less", "bool", (node, number(0))), Node("add", "int", (node, number(size))), node)


_AS_THEY_ARE = ("dtype", "layout", "device", "pin_memory", "non_blocking", "memory_format", "rounding_mode")


class _Indexing(TorchFunctionMode):
    """Indexing, which would otherwise ask for the value of an index."""

    def __init__(self, tracer: Tracer, name: str) -> None:
        super().__init__()
        self._tracer, self._name = tracer, name

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.__getitem__ and _has_stand_in(args):
            return explained(self._name, self._tracer.index, *args)
        return func(*args, **(kwargs or {}))


class _Dispatch(TorchDispatchMode):
    """Every operator that runs: those of stand-ins are traced, others compute with what was captured."""

    def __init__(self, tracer: Tracer, name: str) -> None:
        super().__init__()
        self._tracer, self._name = tracer, name
        self._has_gradients = torch.is_grad_enabled()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return explained(self._name, self._run, func, args, kwargs or {})

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = func.overloadpacket.__name__
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise Refusal(f"{name} draws random numbers")
        if func._schema.is_mutable:
            raise Refusal(f"{name} writes into a tensor")
        if _has_stand_in(args):
            if self._has_gradients and not torch.is_grad_enabled():
                raise Refusal(f"{name} runs without gradients, in no_grad or an autograd.Function")
            return self._tracer.operation(func, args, kwargs)
        if func is torch.ops.aten.scalar_tensor.default:  # on the CPU its value can be read
            kwargs = {**kwargs, "device": None}
        return func(*args, **kwargs)


def _has_stand_in(args: Any) -> bool:
    if isinstance(args, (tuple, list)):
        return any(map(_has_stand_in, args))
    return isinstance(args, StandIn)


def _named(kind: str, function: Callable[..., object]) -> str:
    return f"{kind} {getattr(function, '__qualname__', None) or repr(function)}"
