"""Nested tensors of layout jagged: sequences of different lengths that lie packed one after the other."""

from __future__ import annotations

from typing import Any

import torch
from typing_extensions import Unpack

from orchard_jit import call, packed
from orchard_jit.call import Arguments
from orchard_jit.diagonal import ALIGNMENTS, lower_right
from orchard_jit.options import Options

Nested = Any
"""A tensor of layout jagged, whose methods PyTorch does not annotate."""

_RAGGED = 2
_REFUSED = {
    "mask": "; a ScoreMod has a mask of each sequence's places",
    "bias": "; a ScoreMod can add what it computes of each sequence's places",
    "key_lengths": ", whose sequences have their own lengths",
}


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    return_lse: bool,
    **options: Unpack[Options],
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """`flash_attention` of jagged (B, H, sequence, D): each sequence attends to itself, without padding."""
    out, lse = (result[0] for result in call.forward(resolve(query, key, value, **options)))
    nested_out = like(query, out)
    return (nested_out, like(query, lse * call.LN_2)) if return_lse else nested_out


def resolve(
    query: Nested, key: Nested, value: Nested, *, seed: torch.Tensor | None = None, **options: Unpack[Options]
) -> Arguments:
    """What it means by its arguments, as one call of the operator."""
    given: Any = dict(options)
    for name, instead in _REFUSED.items():
        if given.pop(name, None) is not None:
            raise NotImplementedError(f"{name} can't be combined with nested tensors{instead}")
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        _check(name, tensor)
        if tensor.shape[0] != query.shape[0]:
            raise ValueError(f"{name} has {tensor.shape[0]} sequences but query has {query.shape[0]}")
    if not _same_lengths(key, value):
        raise ValueError("key and value must have sequences of the same lengths")
    causal, alignment = given.get("causal", False), given.get("alignment")
    if causal or given.get("window") or given.get("alibi_slopes") is not None:
        unequal = None if _same_lengths(query, key) else "sequences of different lengths"
        in_corner = lower_right(causal, alignment, unequal)
        given |= {"causal": bool(causal), "alignment": ALIGNMENTS[in_corner]}
    return packed.resolve(
        query.values(),
        key.values(),
        value.values(),
        query_offsets=query.offsets().to(torch.int32),
        key_offsets=key.offsets().to(torch.int32),
        longest_query=_longest(query),
        longest_key=_longest(key),
        options=given,
        seed=seed,
    )


def like(query: Nested, rows: torch.Tensor) -> torch.Tensor:
    """(H, total, ...) with the sequences of the query."""
    return torch.nested.nested_tensor_from_jagged(rows, query.offsets(), jagged_dim=_RAGGED)


def _check(name: str, tensor: Nested) -> None:
    if not tensor.is_nested or tensor.layout != torch.jagged:
        raise ValueError(
            f"{name} must be a nested tensor of layout torch.jagged where query, key or value is nested, "
            f"got layout {tensor.layout}"
        )
    if tensor.dim() != 4 or isinstance(tensor.shape[_RAGGED], int):
        raise ValueError(f"{name} must be (batch, heads, sequence, head_dim) with ragged sequences")
    if tensor.lengths() is not None:
        raise NotImplementedError(f"{name} has holes between its sequences; pack it with .contiguous()")


def _same_lengths(one: Nested, other: Nested) -> bool:
    return one.offsets() is other.offsets() or torch.equal(one.offsets(), other.offsets())


def _longest(tensor: Nested) -> int:
    return int(tensor.offsets().diff().max()) if tensor.shape[0] else 0
