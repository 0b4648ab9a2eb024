"""Sequences packed one after the other, each of which attends to itself alone."""

from __future__ import annotations

import torch

from orchard_jit.call import Arguments
from orchard_jit.options import Options
from orchard_jit.options import resolve as resolve_batch


def resolve(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    query_offsets: torch.Tensor,
    key_offsets: torch.Tensor,
    longest_query: int,
    longest_key: int,
    options: Options,
    seed: torch.Tensor | None = None,
) -> Arguments:
    """What `flash_attention` would mean by (H, total, D) and its options, as one call of the operator."""
    sequences = query_offsets.numel() - 1
    arguments = resolve_batch(query[None], key[None], value[None], sequences=sequences, seed=seed, **options)
    return arguments._replace(
        query_offsets=query_offsets,
        key_offsets=key_offsets,
        longest_query=longest_query,
        longest_key=longest_key,
    )
