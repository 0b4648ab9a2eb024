"""`torch.nn.attention.flex_attention.flex_attention` by its signature, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from orchard_jit import dynamo
from orchard_jit.attention import flash_attention
from orchard_jit.integrations.flex.blocks import restricted
from orchard_jit.integrations.flex.nodes import TRUE
from orchard_jit.integrations.flex.tracing import Tracer
from orchard_jit.integrations.flex.translation import options
from orchard_jit.score.expression import SCORE_NODE

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import AuxOutput, AuxRequest, BlockMask


def flex_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    score_mod: Callable[..., torch.Tensor] | None = None,
    block_mask: BlockMask | None = None,
    scale: float | None = None,
    enable_gqa: bool = False,
    return_lse: bool = False,
    kernel_options: Mapping[str, Any] | None = None,
    *,
    return_aux: AuxRequest | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor] | tuple[torch.Tensor, AuxOutput]:
    """FlexAttention in our kernels, with gradients on the CPU and on MPS too.

    score_mod and mask_mod are functions of scalars. Each call runs them once, on stand-ins that note what is
    done to them. So they may read what they like; other numbers, and other tensors of the same dtype and
    rank, compile nothing. They compute in float32, or in float64 where the inputs are. What kernels cannot
    do is refused with the line where it is asked for. `torch.compile` leaves the call out of its graphs.

    Args:
        query: (B, Hq, L, E).
        key: (B, Hkv, S, E); B may be 1 with a block_mask.
        value: (B, Hkv, S, Ev).
        score_mod: score_mod(score, b, h, q_idx, kv_idx) is the score that counts; -inf hides the key. Of the
            tensors that it captures, one that is added as bias[b, h, q_idx, kv_idx] is, or by fewer of these
            indices, gets its gradient; any other that requires one is refused.
        block_mask: Its mask_mod says what a query sees, and its blocks do where they say something else, as
            in compiled FlexAttention. Blocks of keys that a causal mask or a window hides are skipped; of
            others that are hidden, only the products are.
        scale: Factor of the scores, 1 / sqrt(E) by default.
        enable_gqa: Hq may be a multiple of Hkv.
        return_lse: Also return the natural log-sum-exp of each row's scores, (B, Hq, L); -inf for a row that
            sees nothing, whose output is 0.
        kernel_options: Hints for PyTorch's kernels, which mean nothing to ours. A BACKEND is refused.
        return_aux: AuxRequest(lse=True) returns AuxOutput(lse) beside the output.

    Raises:
        ValueError, TypeError, IndexError, NotImplementedError: As `flash_attention`; or what a function does
            has no counterpart.

    """
    key, value = _checked(query, key, value, block_mask, enable_gqa)
    _check_requests(return_lse, return_aux, kernel_options)
    out, lse = _attention(query, key, value, score_mod, block_mask, scale)
    if return_aux is not None:
        from torch.nn.attention.flex_attention import AuxOutput

        return out, AuxOutput(lse=lse if return_aux.lse else None)
    return (out, lse) if return_lse else out


@dynamo.left_out("orchard_jit: Dynamo cannot trace what traces")
def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    score_mod: Callable[..., torch.Tensor] | None,
    block_mask: BlockMask | None,
    scale: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and natural log-sum-exp."""
    if torch._C._are_functorch_transforms_active():  # what a function captures may be transformed, too
        raise NotImplementedError(
            "flex_attention runs under autograd, not under torch.func's vmap and grad; "
            "orchard_jit.flash_attention(..., score_mod=orchard_jit.ScoreMod(...)) does"
        )
    shape = (*query.shape[:3], key.shape[2])
    sizes = dict(zip(("b", "h", "q", "kv"), shape, strict=True))
    dtype = torch.float64 if query.dtype is torch.float64 else torch.float32
    tracer = Tracer(sizes, dtype, query.device)
    score = SCORE_NODE if score_mod is None else tracer.score(score_mod)
    mask = TRUE
    if block_mask is not None:
        mask = restricted(tracer.mask(block_mask.mask_mod), block_mask, tracer.arrays, shape)
    given = options(score, mask, tracer.arrays, shape)
    given["scale"] = scale
    return flash_attention(query, key, value, return_lse=True, **given)


def _checked(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    block_mask: BlockMask | None,
    enable_gqa: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Key and value in the query's batch, where this is stricter than `flash_attention`."""
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.is_nested:
            raise NotImplementedError(f"flex_attention takes dense tensors, {name} is nested")
        if tensor.dim() != 4:
            raise NotImplementedError(
                f"flex_attention takes 4 dimensions (batch, heads, length, head_dim), {name} has shape "
                f"{tuple(tensor.shape)}"
            )
    if query.shape[1] != key.shape[1] and not enable_gqa:
        raise ValueError(
            f"query has {query.shape[1]} heads and key has {key.shape[1]}; enable_gqa=True lets a key head "
            "serve several query heads"
        )
    batch = query.shape[0]
    if block_mask is not None:
        _check_mask(block_mask, query, key)
        if key.shape[0] == 1 == value.shape[0]:
            return key.expand(batch, -1, -1, -1), value.expand(batch, -1, -1, -1)
    return key, value


def _check_mask(block_mask: BlockMask, query: torch.Tensor, key: torch.Tensor) -> None:
    lengths = (query.shape[2], key.shape[2])
    if tuple(block_mask.seq_lengths) != lengths:
        raise ValueError(
            "block_mask was made for {} queries and {} keys, ".format(*block_mask.seq_lengths)
            + "the inputs have {} and {}; make one for these".format(*lengths)
        )
    if block_mask.kv_num_blocks.device != query.device:
        raise ValueError(
            f"block_mask is on {block_mask.kv_num_blocks.device} but query is on {query.device}; "
            "they must be on one device"
        )


def _check_requests(
    return_lse: bool, return_aux: AuxRequest | None, kernel_options: Mapping[str, Any] | None
) -> None:
    if return_lse and return_aux is not None:
        raise ValueError(
            "return_lse and return_aux exclude each other; AuxRequest(lse=True) asks for the former"
        )
    if return_aux is not None and return_aux.max_scores:
        raise NotImplementedError("return_aux: AuxRequest(lse=True) is served, max_scores=True is not")
    backend = (kernel_options or {}).get("BACKEND", "AUTO")
    if backend != "AUTO":
        raise NotImplementedError(f"kernel_options: BACKEND must be 'AUTO' here, got {backend!r}")
