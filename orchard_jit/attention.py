"""The functions that people call. Each turns its arguments into one call of the forward operator."""

from __future__ import annotations

import math
from typing import Literal, overload

import torch

from orchard_jit import operators
from orchard_jit.binding import cause

Causal = bool | Literal["upper_left", "lower_right"]

_LN_2 = math.log(2.0)
_forward = operators.forward


@overload
def flash_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    causal: Causal = ...,
    scale: float | None = ...,
    return_lse: Literal[False] = ...,
) -> torch.Tensor: ...
@overload
def flash_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    causal: Causal = ...,
    scale: float | None = ...,
    return_lse: Literal[True],
) -> tuple[torch.Tensor, torch.Tensor]: ...
def flash_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    causal: Causal = False,
    scale: float | None = None,
    return_lse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Exact attention, softmax(scale * query @ key^T) @ value, in O(S) memory, with gradients.

    Method: FlashAttention-2 (Dao 2023, arXiv:2307.08691): online softmax in the forward, and a backward
    that recomputes the probabilities from the saved log-sum-exp. The same inputs give the same bits.

    Args:
        query: (..., H, Sq, D), float32, float16, bfloat16 or float64 (float64 on the CPU only). Two to four
            dimensions; more if the leading ones can be merged without a copy. D is 1 to 512.
        key: (..., Hk, Sk, D). H must be a multiple of Hk: each key head serves H / Hk query heads (GQA, MQA).
        value: (..., Hk, Sk, Dv). Dv may differ from D.
            Any strides are read in place as long as the last dimension is dense, expanded tensors too.
        causal: "upper_left": query i attends to keys j <= i, as in PyTorch. "lower_right": to keys
            j <= i + Sk - Sq, as in flash-attn. True needs Sq == Sk, where both are the same.
            A row that attends to nothing gives 0, its log-sum-exp is -inf and its gradients are 0.
        scale: Factor of the scores, 1 / sqrt(D) by default.
        return_lse: Also return the log-sum-exp of each row's scaled scores, which is differentiable too.

    Returns:
        (..., H, Sq, Dv) in the inputs' dtype, and with `return_lse` the natural log-sum-exp (..., H, Sq) in
        float32 (float64 for float64).

    Raises:
        ValueError: Shapes, strides or `causal` don't fit; the message names the argument.
        TypeError: dtypes differ or have no kernel.
        NotImplementedError: The device has no kernels.
        RuntimeError: The gradient is differentiated again (double backward).
        OrchardError: A kernel is missing and can't be compiled; see `orchard_jit.errors`.

    """
    alignment = "none" if causal is False else _alignment(causal, query, key)
    if query.dim() != 4 or key.dim() != 4 or value.dim() != 4:
        return _with_other_rank(query, key, value, alignment, scale, return_lse)
    try:
        out, lse = _forward(query, key, value, scale, alignment)
    except RuntimeError as error:
        raise cause(error) from None
    return (out, lse * _LN_2) if return_lse else out


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
        attn_mask: Not supported yet.
        dropout_p: Not supported yet, except 0.
        is_causal: Causal with the upper-left alignment: query i attends to keys j <= i.
        scale: Factor of the scores, 1 / sqrt(D) by default.
        enable_gqa: Allow H to be a multiple of Hk. Nothing is expanded in memory.

    Returns:
        (..., H, Sq, Dv).

    Raises:
        NotImplementedError: An argument that is not supported yet was given; the message names it.
        ValueError, TypeError, OrchardError: As in `flash_attention`.

    """
    if attn_mask is not None:
        raise _unsupported("attn_mask", "a tensor", "None")
    if dropout_p != 0.0:
        raise _unsupported("dropout_p", dropout_p, "0.0")
    if query.shape[:-2] != key.shape[:-2] or key.shape[:-2] != value.shape[:-2]:
        query, key, value = _broadcast(query, key, value, enable_gqa)
    return flash_attention(query, key, value, causal="upper_left" if is_causal else False, scale=scale)


def flash_attn_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> torch.Tensor:
    """`flash_attn.flash_attn_func`, by the same signature and layout.

    Args:
        q: (B, Sq, H, D).
        k: (B, Sk, Hk, D), H a multiple of Hk.
        v: (B, Sk, Hk, Dv).
        dropout_p: Not supported yet, except 0.
        softmax_scale: Factor of the scores, 1 / sqrt(D) by default.
        causal: Causal with the lower-right alignment: query i attends to keys j <= i + Sk - Sq.
        window_size: Not supported yet, except (-1, -1), which is no window.
        softcap: Not supported yet, except 0.
        alibi_slopes: Not supported yet.
        deterministic: Accepted; every result here is deterministic.
        return_attn_probs: Not supported yet.

    Returns:
        (B, Sq, H, Dv).

    Raises:
        NotImplementedError: An argument that is not supported yet was given; the message names it.
        ValueError, TypeError, OrchardError: As in `flash_attention`.

    """
    if dropout_p != 0.0:
        raise _unsupported("dropout_p", dropout_p, "0.0")
    if tuple(window_size) != (-1, -1):
        raise _unsupported("window_size", window_size, "(-1, -1)")
    if softcap != 0.0:
        raise _unsupported("softcap", softcap, "0.0")
    if alibi_slopes is not None:
        raise _unsupported("alibi_slopes", "a tensor", "None")
    if return_attn_probs:
        raise _unsupported("return_attn_probs", return_attn_probs, "False")
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.dim() != 4:
            raise ValueError(
                f"{name} must have 4 dimensions (batch, length, heads, head_dim), got {_shape(tensor)}"
            )
    out = flash_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        causal="lower_right" if causal else False,
        scale=softmax_scale,
    )
    return out.transpose(1, 2)


def flash_attn_fwd(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float | None = None,
    dropout_p: float = 0.0,
    causal: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Orchard's `orchard_ops.flash_attn_fwd`.

    Args:
        q: (..., H, Sq, D), three dimensions as (2, 4, 64) too.
        k: (..., Hk, Sk, D).
        v: (..., Hk, Sk, Dv).
        scale: Factor of the scores, 1 / sqrt(D) by default.
        dropout_p: Not supported yet, except 0.
        causal: Causal with the upper-left alignment.

    Returns:
        The output (..., H, Sq, Dv), through which gradients flow, and the dropout keep-mask, which is an
        empty boolean tensor when `dropout_p` is 0.

    Raises:
        NotImplementedError: `dropout_p` is not 0.
        ValueError, TypeError, OrchardError: As in `flash_attention`.

    """
    if dropout_p != 0.0:
        raise _unsupported("dropout_p", dropout_p, "0.0")
    out = flash_attention(q, k, v, causal="upper_left" if causal else False, scale=scale)
    return out, torch.empty(0, dtype=torch.bool, device=out.device)


def _alignment(causal: object, query: torch.Tensor, key: torch.Tensor) -> str:
    """What the operator is told; anything but False comes here."""
    if causal is True:
        sq, sk = query.shape[-2], key.shape[-2]
        if sq != sk:
            raise ValueError(
                f"causal=True is ambiguous for query length {sq} and key length {sk}; "
                "say causal='upper_left' (as PyTorch) or causal='lower_right' (as flash-attn)"
            )
        return "upper_left"
    if causal in ("upper_left", "lower_right"):
        return str(causal)
    raise ValueError(f"causal must be False, True, 'upper_left' or 'lower_right', got {causal!r}")


def _with_other_rank(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    alignment: str,
    scale: float | None,
    return_lse: bool,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Two, three or more than four dimensions: as views of four, so without a copy."""
    rank = query.dim()
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.dim() < 2:
            raise ValueError(
                f"{name} must have at least 2 dimensions (..., length, head_dim), got {_shape(tensor)}"
            )
        if tensor.dim() != rank:
            raise ValueError(f"{name} has {tensor.dim()} dimensions but query has {rank}; they must be equal")
    four = [_as_four(name, tensor) for name, tensor in (("query", query), ("key", key), ("value", value))]
    try:
        out, lse = _forward(four[0], four[1], four[2], scale, alignment)
    except RuntimeError as error:
        raise cause(error) from None
    out = out.view(*query.shape[:-1], value.shape[-1])
    return (out, lse.view(query.shape[:-1]) * _LN_2) if return_lse else out


def _as_four(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dim() < 4:
        return tensor[(None,) * (4 - tensor.dim())]
    try:
        return tensor.view(-1, *tensor.shape[-3:])
    except RuntimeError:
        raise ValueError(
            f"the leading dimensions of {name} can't be merged without a copy: shape {_shape(tensor)}, "
            f"strides {tuple(tensor.stride())}; pass {name}.contiguous()"
        ) from None


def _broadcast(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, enable_gqa: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Expand the leading dimensions to their common shape; the heads stay apart under `enable_gqa`."""
    kept = 3 if enable_gqa else 2
    try:
        common = torch.broadcast_shapes(*(tensor.shape[:-kept] for tensor in (query, key, value)))
    except RuntimeError:
        shapes = ", ".join(_shape(tensor) for tensor in (query, key, value))
        hint = "" if enable_gqa else "; if key and value have fewer heads, pass enable_gqa=True"
        raise ValueError(
            f"the leading dimensions of query, key and value don't broadcast: {shapes}{hint}"
        ) from None
    query, key, value = (tensor.expand(*common, *tensor.shape[-kept:]) for tensor in (query, key, value))
    return query, key, value


def _unsupported(argument: str, given: object, accepted: str) -> NotImplementedError:
    return NotImplementedError(f"{argument}={given} is not supported yet; only {argument}={accepted} is")


def _shape(tensor: torch.Tensor) -> str:
    return str(tuple(tensor.shape))
