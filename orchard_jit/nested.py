"""Nested tensors of layout jagged: sequences of different lengths that lie packed one after the other."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from orchard_jit.attention import ALIGNMENTS, Options, aligned_lower_right
from orchard_jit.flash_attn import packed_attention

_RAGGED = 2
_LN_2 = math.log(2.0)


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    refused: Mapping[str, object],
    options: Options,
    return_lse: bool,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """`flash_attention` of jagged (B, H, sequence, D): each sequence attends to itself, without padding."""
    for name, argument in refused.items():
        if argument is not None:
            raise NotImplementedError(f"{name} can't be combined with nested tensors; use a ScoreMod")
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        _check(name, tensor)
    if options.get("causal") or options.get("window") or options.get("alibi_slopes") is not None:
        same = query.offsets() is key.offsets() or torch.equal(query.offsets(), key.offsets())
        lower_right = aligned_lower_right(
            options["causal"], options["alignment"], same, "sequences of different lengths"
        )
        options = {**options, "causal": bool(options["causal"]), "alignment": ALIGNMENTS[lower_right]}
    out, lse = packed_attention(
        query.values(),
        key.values(),
        value.values(),
        query_offsets=query.offsets().to(torch.int32),
        key_offsets=key.offsets().to(torch.int32),
        longest_query=_longest(query),
        longest_key=_longest(key),
        options=options,
    )
    nested_out = _like(query, out)
    return (nested_out, _like(query, (lse * _LN_2)[..., None]).squeeze(-1)) if return_lse else nested_out


def _check(name: str, tensor: torch.Tensor) -> None:
    if not tensor.is_nested or tensor.layout != torch.jagged:
        raise ValueError(f"{name} must be a nested tensor of layout torch.jagged, as query is")
    if tensor.dim() != 4 or isinstance(tensor.shape[_RAGGED], int):
        raise ValueError(f"{name} must be (batch, heads, sequence, head_dim) with ragged sequences")
    if tensor.lengths() is not None:
        raise NotImplementedError(f"{name} has holes between its sequences; pack it with .contiguous()")


def _longest(tensor: torch.Tensor) -> int:
    return int(tensor.offsets().diff().max()) if tensor.shape[0] else 0


def _like(model: torch.Tensor, packed: torch.Tensor) -> torch.Tensor:
    """(H, total, D) with the model's sequences."""
    return torch.nested.nested_tensor_from_jagged(packed, model.offsets(), jagged_dim=_RAGGED)
