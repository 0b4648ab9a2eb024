"""A cache of keys and values, (B, capacity, Hk, D), of which each batch uses its first rows."""

from __future__ import annotations

import torch


def lengths(given: int | torch.Tensor | None, cache: torch.Tensor) -> torch.Tensor | None:
    """How many rows are in use, int32 (B); None if all are."""
    batch, capacity = cache.shape[:2]
    if given is None:
        return None
    if isinstance(given, torch.Tensor):
        if given.shape != (batch,) or given.dtype != torch.int32:
            raise ValueError(
                f"cache_seqlens must be int32 and have shape [{batch}], got "
                f"{list(given.shape)} of {given.dtype}"
            )
        return given
    _check_length(given, capacity)
    return torch.full((batch,), given, dtype=torch.int32, device=cache.device)


def append(
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    k: torch.Tensor | None,
    v: torch.Tensor | None,
    lengths: torch.Tensor | None,
) -> torch.Tensor:
    """Write the new rows behind those in use; returns how many are in use then."""
    if k is None or v is None or lengths is None:
        raise ValueError("k, v and cache_seqlens belong together: new rows need both, and a place to go")
    batch, capacity = k_cache.shape[:2]
    new = k.shape[1]
    for name, rows, cache in (("k", k, k_cache), ("v", v, v_cache)):
        accepted = (batch, new, *cache.shape[2:])
        if rows.shape != accepted:
            raise ValueError(f"{name} must be {accepted}, got {tuple(rows.shape)}")
    for length in lengths.tolist():
        _check_length(length, capacity)
        if length + new > capacity:
            raise ValueError(f"{new} new rows don't fit behind {length} in a cache of {capacity} rows")
    places = lengths.long()[:, None] + torch.arange(new, device=k.device)
    sequences = torch.arange(batch, device=k.device)[:, None]
    k_cache[sequences, places] = k
    v_cache[sequences, places] = v
    return lengths + new


def _check_length(length: int, capacity: int) -> None:
    if not 0 <= length <= capacity:
        raise ValueError(f"cache_seqlens must be 0 to {capacity}, the cache's capacity, got {length}")
