"""The options of attention, and what they mean to the operators."""

from __future__ import annotations

import math
from functools import reduce
from typing import TYPE_CHECKING, TypedDict

import torch

from orchard_jit.call import Arguments
from orchard_jit.diagonal import Alignment, Causal, Window, bounds
from orchard_jit.dropout import draw_seed

if TYPE_CHECKING:
    from orchard_jit.score import ScoreMod


class Options(TypedDict, total=False):
    """The keyword arguments of `flash_attention` that say what is computed."""

    causal: Causal
    window: Window | None
    alignment: Alignment | None
    mask: torch.Tensor | None
    bias: torch.Tensor | None
    softcap: float | None
    alibi_slopes: torch.Tensor | None
    score_mod: ScoreMod | None
    sinks: torch.Tensor | None
    dropout_p: float
    key_lengths: torch.Tensor | None
    scale: float | None


def resolve(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    causal: Causal = False,
    window: Window | None = None,
    alignment: Alignment | None = None,
    mask: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    softcap: float | None = None,
    alibi_slopes: torch.Tensor | None = None,
    score_mod: ScoreMod | None = None,
    sinks: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    key_lengths: torch.Tensor | None = None,
    scale: float | None = None,
    seed: torch.Tensor | None = None,
    sequences: int | None = None,
) -> Arguments:
    """What `flash_attention` means by its arguments, as one call of the operator.

    `sequences` is their number where they are packed.
    """
    left, right, lower_right = bounds(
        query,
        key,
        causal,
        window,
        alignment,
        is_needed=alibi_slopes is not None,
        by_batch=key_lengths is not None,
    )
    if query.dim() != 4 or key.dim() != 4 or value.dim() != 4:
        query, key, value, mask, bias = _with_four_dimensions(query, key, value, mask, bias)
    if alibi_slopes is not None:
        _require_slopes(alibi_slopes, query.shape[0] if sequences is None else sequences, query.shape[1])
    if sinks is not None:
        sinks = sinks.to(torch.float64 if query.dtype == torch.float64 else torch.float32)
    if dropout_p and seed is None:
        seed = draw_seed(query.device)
    arguments = Arguments(
        query,
        key,
        value,
        mask=None if mask is None else _plane(mask),
        bias=None if bias is None else _plane(bias),
        sinks=sinks,
        seed=seed,
        key_lengths=key_lengths,
        scale=scale,
        left=left,
        right=right,
        lower_right=lower_right,
        dropout=dropout_p,
    )
    if softcap is None and alibi_slopes is None and score_mod is None:
        return arguments
    from orchard_jit import score  # a plain call need not import it

    mods = (
        None if softcap is None else score.softcap(softcap),
        None if alibi_slopes is None else score.alibi(alibi_slopes, lower_right=lower_right),
        score_mod,
    )
    mod = reduce(score.ScoreMod.then, [mod for mod in mods if mod is not None])
    return arguments._replace(arrays=mod.arrays, scalars=mod.scalars, score=mod.spec)


def like(query: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """The operator's output (B, H, Sq, Dv) in the dimensions that the query was given with."""
    return out if query.dim() == 4 else out.view(*query.shape[:-1], out.shape[-1])


def _require_slopes(slopes: torch.Tensor, batch: int, heads: int) -> None:
    """A score function alone would read the nearest slope that there is."""
    by_batch = slopes.dim() == 2
    if slopes.dim() not in (1, 2) or slopes.shape[-1] != heads or (by_batch and slopes.shape[0] != batch):
        raise ValueError(
            f"alibi_slopes must be (heads), here ({heads},), or (batch, heads), here ({batch}, {heads}), "
            f"got {_shape(slopes)}"
        )
    if slopes.requires_grad and torch.is_grad_enabled():
        raise NotImplementedError(
            "alibi_slopes requires a gradient, which kernels don't give; "
            "detach it, or pass what it adds as a bias"
        )


def _plane(tensor: torch.Tensor) -> torch.Tensor:
    """With dimensions in front until there are four."""
    return tensor if tensor.dim() >= 4 else tensor[(None,) * (4 - tensor.dim())]


def _with_four_dimensions(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    bias: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Two, three or more than four dimensions: as views of four, so without a copy."""
    rank = query.dim()
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.dim() < 2:
            raise ValueError(
                f"{name} must have at least 2 dimensions (..., length, head_dim), got {_shape(tensor)}"
            )
        if tensor.dim() != rank:
            raise ValueError(f"{name} has {tensor.dim()} dimensions but query has {rank}; they must be equal")
    leading = query.shape[:-3]
    return (
        _as_four("query", query),
        _as_four("key", key),
        _as_four("value", value),
        None if mask is None else _plane_as_four(mask, leading),
        None if bias is None else _plane_as_four(bias, leading),
    )


def _as_four(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dim() < 4:
        return tensor[(None,) * (4 - tensor.dim())]
    try:
        return tensor.view(math.prod(tensor.shape[:-3]), *tensor.shape[-3:])
    except RuntimeError:
        raise ValueError(
            f"the leading dimensions of {name} can't be merged without a copy: shape {_shape(tensor)}, "
            f"strides {tuple(tensor.stride())}; pass {name}.contiguous()"
        ) from None


def _plane_as_four(tensor: torch.Tensor, leading: torch.Size) -> torch.Tensor:
    """A mask's leading dimensions merged as the query's are. One that varies along some of them is copied."""
    if tensor.dim() <= 4 and math.prod(tensor.shape[:-3]) == 1:
        return tensor
    return tensor.expand(*leading, *tensor.shape[-3:]).reshape(math.prod(leading), *tensor.shape[-3:])


def _shape(tensor: torch.Tensor) -> str:
    return str(tuple(tensor.shape))
