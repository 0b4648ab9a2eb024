"""Attention of DTensors: the shardings that it can work on. Registered by importing this module.

Batches are independent, and so are heads. So are queries that see all keys, with which this is all-gather
attention: DTensor gathers key and value, and sums up their gradients where they belong. A sharding that can't
be worked on, as of a sequence with a causal mask, DTensor changes into another one, or gathers everything;
`orchard_jit.distributed.flash_attention` is made for that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.distributed.tensor import Partial, Placement, Replicate, Shard
from torch.distributed.tensor.experimental import register_sharding

from orchard_jit import operators
from orchard_jit.call import Arguments

Placements = list[Placement | None]
"""Of an operator's results or arguments; None where there is no tensor."""

_EVERYWHERE, _BATCH, _HEADS, _SEQUENCE = Replicate(), Shard(0), Shard(1), Shard(2)
_COUNTING = (
    "mask",
    "bias",
    "sinks",
    "seed",
    "query_offsets",
    "key_offsets",
    "key_lengths",
    "arrays",
    "score",
)
"""The arguments by which batches, heads or tokens of one process differ from another's."""


@register_sharding(operators.forward)
def _of_forward(*given: Any) -> list[tuple[Placements, Placements]]:
    arguments = Arguments(*given)
    others = [_EVERYWHERE] * _tensors(arguments[3:])
    return [
        ([queries, queries], [queries, keys, keys, *others]) for queries, keys, _ in _shardings(arguments)
    ]


@register_sharding(operators.backward)
def _of_backward(grad_out: Any, grad_lse: Any, *given: Any) -> list[tuple[Placements, Placements]]:
    *given_forward, _, _, _ = given
    arguments = Arguments(*given_forward)
    others = [_EVERYWHERE] * _tensors(arguments[3:])
    return [
        (
            [queries, sums, sums, _EVERYWHERE, _EVERYWHERE],
            [*[queries] * _tensors((grad_out, grad_lse)), queries, keys, keys, *others, queries, queries],
        )
        for queries, keys, sums in _shardings(arguments)
    ]


def _shardings(arguments: Arguments) -> list[tuple[Placement, Placement, Placement]]:
    """Placements of what there is of queries, and of keys, and of the sums of keys' gradients."""
    shardings: list[tuple[Placement, Placement, Placement]] = [(_EVERYWHERE, _EVERYWHERE, _EVERYWHERE)]
    if not any(getattr(arguments, name) for name in _COUNTING):
        shardings.append((_BATCH, _BATCH, _BATCH))
        query: Any = arguments.query  # what DTensor knows of a tensor: its shape, and its mesh
        key = arguments.key
        if query.shape[1] == key.shape[1] or key.shape[1] % query.mesh.size() == 0:  # with its own key heads
            shardings.append((_HEADS, _HEADS, _HEADS))
        if arguments.left is None and arguments.right is None:
            shardings.append((_SEQUENCE, _EVERYWHERE, Partial()))
    return shardings


def _tensors(values: Sequence[Any]) -> int:
    """How many tensors there are among an operator's arguments; PyTorch gives their shardings for them."""
    return sum(
        _tensors(value) if isinstance(value, list | tuple) else hasattr(value, "placements")
        for value in values
    )
