"""PyTorch's `scaled_dot_product_attention`, by its signature and semantics."""

from __future__ import annotations

import torch

from orchard_jit import call
from orchard_jit.attention import flash_attention
from orchard_jit.options import Options

Call = tuple[torch.Tensor, torch.Tensor, torch.Tensor, Options]
"""Query, key, value and the options of `flash_attention`."""


def scaled_dot_product_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """`torch.nn.functional.scaled_dot_product_attention`, by the same signature and semantics.

    Args:
        query: (..., H, Sq, D).
        key: (..., Hk, Sk, D).
        value: (..., Hk, Sk, Dv). Leading dimensions broadcast.
        attn_mask: Broadcasts to (..., H, Sq, Sk). bool: True where a query attends to a key. Else, in float32
            or query's dtype: added to the scaled scores, and differentiable. A row without any key gives 0.
        dropout_p: The probability that a weight is dropped. Applied whenever it is not 0, as PyTorch does.
        is_causal: Causal with the upper-left alignment: query i attends to keys j <= i.
        scale: Factor of the scores, 1 / sqrt(D) by default.
        enable_gqa: Allow H to be a multiple of Hk. Nothing is expanded in memory.

    Returns:
        (..., H, Sq, Dv).

    Raises:
        ValueError: attn_mask and is_causal are both given, or as in `flash_attention`.
        TypeError: attn_mask is neither bool nor float32 nor of query's dtype, or as in `flash_attention`.
        NotImplementedError, OrchardError: As in `flash_attention`.

    """
    is_plain = attn_mask is None and query.shape == key.shape == value.shape and query.dim() == 4
    if is_plain and not (dropout_p or query.is_nested):  # a small call feels each question more
        return call.attention(query, key, value, scale, right=0 if is_causal else None)
    query, key, value, options = translate(
        query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa
    )
    return flash_attention(query, key, value, **options)


def translate(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Call:
    """What PyTorch means by its arguments, in those of `flash_attention`."""
    if attn_mask is not None and is_causal:
        raise ValueError("attn_mask must be None where is_causal=True: give one of them")
    if query.shape[:-2] != key.shape[:-2] or key.shape[:-2] != value.shape[:-2]:
        query, key, value = _broadcast(query, key, value, enable_gqa)
    is_bool = attn_mask is not None and attn_mask.dtype == torch.bool
    options: Options = {
        "causal": "upper_left" if is_causal else False,
        "mask": attn_mask if is_bool else None,
        "bias": None if is_bool else attn_mask,
        "dropout_p": dropout_p,
        "scale": scale,
    }
    return query, key, value, options


def _broadcast(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, enable_gqa: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Expand the leading dimensions to their common shape; the heads stay apart under `enable_gqa`."""
    kept = 3 if enable_gqa else 2
    try:
        common = torch.broadcast_shapes(*(tensor.shape[:-kept] for tensor in (query, key, value)))
    except RuntimeError:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (query, key, value))
        hint = "" if enable_gqa else "; if key and value have fewer heads, pass enable_gqa=True"
        raise ValueError(
            f"the leading dimensions of query, key and value don't broadcast: {shapes}{hint}"
        ) from None
    query, key, value = (_expanded(tensor, common, kept) for tensor in (query, key, value))
    return query, key, value


def _expanded(tensor: torch.Tensor, leading: torch.Size, kept: int) -> torch.Tensor:
    """Copied only if it has more than four dimensions, which have to become four and can't where they are."""
    expanded = tensor.expand(*leading, *tensor.shape[-kept:])
    if expanded.dim() <= 4:
        return expanded
    merged: torch.Tensor = expanded.flatten(0, -4)
    return merged.view(expanded.shape)
