"""Attention with everything that it can have: one function, and what its arguments mean."""

from __future__ import annotations

import math
from functools import reduce
from typing import TYPE_CHECKING, Literal, TypedDict, overload

import torch
from typing_extensions import Unpack

from orchard_jit import call
from orchard_jit.call import Arguments

if TYPE_CHECKING:
    from orchard_jit.score import ScoreMod

Alignment = Literal["upper_left", "lower_right"]
Causal = bool | Alignment
Window = tuple[int | None, int | None]

ALIGNMENTS = ("upper_left", "lower_right")


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


@overload
def flash_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    return_lse: Literal[False] = ...,
    **options: Unpack[Options],
) -> torch.Tensor: ...
@overload
def flash_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    return_lse: Literal[True],
    **options: Unpack[Options],
) -> tuple[torch.Tensor, torch.Tensor]: ...
def flash_attention(
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
    return_lse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Exact attention, softmax(scale * query @ key^T) @ value, in O(S) memory, with gradients.

    Method: FlashAttention-2 (Dao 2023, arXiv:2307.08691): online softmax in the forward, and a backward
    that recomputes the probabilities from the saved log-sum-exp. The same inputs give the same bits.

    A score goes this way: scaled; softcap; ALiBi; score_mod; bias added; hidden by causal, window, mask,
    key_lengths; softmax with sinks; dropout.

    Args:
        query: (..., H, Sq, D), float32, float16, bfloat16 or float64 (float64 on the CPU only). Two to four
            dimensions; more if the leading ones can be merged without a copy. D is 1 to 512. Or a nested
            tensor of layout jagged, (B, H, sequence, D), as key and value then are.
        key: (..., Hk, Sk, D). H must be a multiple of Hk: each key head serves H / Hk query heads (GQA, MQA).
        value: (..., Hk, Sk, Dv). Dv may differ from D.
            Any strides are read in place as long as the last dimension is dense, expanded tensors too.
        causal: Query i attends to keys j <= i + d. True, or an alignment, which says what d is.
            A row that attends to nothing gives 0, its log-sum-exp is -inf and its gradients are 0.
        window: (left, right): query i attends to keys i + d - left <= j <= i + d + right. None or -1 is
            unbounded. Blocks of keys outside are skipped.
        alignment: "upper_left": d = 0, as in PyTorch. "lower_right": d = Sk - Sq, as in flash-attn, each
            sequence by its own lengths. Needed by causal, window and alibi_slopes where Sq != Sk.
        mask: bool, broadcasts to (..., H, Sq, Sk); True where a query attends to a key. Read in place.
        bias: In the inputs' dtype or float32, broadcasts to (..., H, Sq, Sk); added to the scaled scores.
            Read in place, and differentiable; its gradient is summed over what it is broadcast along.
        softcap: cap * tanh(score / cap).
        alibi_slopes: float32 (H) or (B, H): adds -slope * |i + d - j|. Not differentiable.
        score_mod: A function of your own of each score, and a mask; see `ScoreMod`.
        sinks: (H): a logit of each head that takes weight and gives no value. Differentiable.
        dropout_p: The probability that a weight is dropped; the others are divided by 1 - dropout_p. Follows
            `torch.manual_seed`, by one number drawn from the CPU's generator; nothing is stored.
        key_lengths: int32 (B): how many of the keys exist in each batch, as in a cache.
        scale: Factor of the scores, 1 / sqrt(D) by default.
        return_lse: Also return the log-sum-exp of each row's scores, which is differentiable too.

    Returns:
        (..., H, Sq, Dv) in the inputs' dtype, and with `return_lse` the natural log-sum-exp (..., H, Sq) in
        float32 (float64 for float64).

    Raises:
        ValueError: Shapes, strides, lengths or choices don't fit; the message names the argument.
        TypeError: dtypes differ or have no kernel.
        NotImplementedError: The device has no kernels, or what was asked for can't be combined.
        RuntimeError: The gradient is differentiated again (double backward).
        OrchardError: A kernel is missing and can't be compiled; see `orchard_jit.errors`.

    """
    options: Options = {
        "causal": causal,
        "window": window,
        "alignment": alignment,
        "mask": mask,
        "bias": bias,
        "softcap": softcap,
        "alibi_slopes": alibi_slopes,
        "score_mod": score_mod,
        "sinks": sinks,
        "dropout_p": dropout_p,
        "key_lengths": key_lengths,
        "scale": scale,
    }
    if query.is_nested or key.is_nested or value.is_nested:
        from orchard_jit import nested

        return nested.attention(query, key, value, return_lse=return_lse, **options)
    out, lse = call.forward(resolve(query, key, value, **options))
    if query.dim() != 4:
        out = out.view(*query.shape[:-1], value.shape[-1])
    return (out, lse.view(query.shape[:-1]) * call.LN_2) if return_lse else out


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
    lower_right = False
    if causal is not False or window is not None or alibi_slopes is not None or alignment is not None:
        same = key_lengths is None and query.shape[-2] == key.shape[-2]
        lengths = f"{query.shape[-2]} queries and {key.shape[-2]} keys"
        lower_right = aligned_lower_right(causal, alignment, same, lengths)
    if query.dim() != 4 or key.dim() != 4 or value.dim() != 4:
        query, key, value, mask, bias = _with_four_dimensions(query, key, value, mask, bias)
    if alibi_slopes is not None:
        _require_slopes(alibi_slopes, query.shape[0] if sequences is None else sequences, query.shape[1])
    left, right = bounds(causal, window)
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


def aligned_lower_right(causal: Causal, alignment: Alignment | None, same: bool, lengths: str) -> bool:
    """Whether the diagonal ends in the lower right corner; where that would be a guess, an error."""
    if causal is not True and causal is not False:
        _require_alignment("causal", causal, "False, True, ")
        if alignment is not None and alignment != causal:
            raise ValueError(f"causal={causal!r} and alignment={alignment!r} contradict each other")
        alignment = causal
    if alignment is not None:
        _require_alignment("alignment", alignment, "None, ")
        return alignment == "lower_right"
    if not same:
        raise ValueError(
            f"the diagonal is ambiguous for {lengths}: say "
            "alignment='upper_left' (query i and key i, as in PyTorch) or alignment='lower_right' "
            "(the last query and the last key, as in flash-attn)"
        )
    return False


def bounds(causal: Causal, window: Window | None) -> tuple[int | None, int | None]:
    """How far a query sees to the left and to the right; None without end."""
    left = right = None
    if window is not None:
        try:
            left, right = (None if bound in (None, -1) else bound for bound in window)
        except (TypeError, ValueError):
            raise ValueError(f"window must be (left, right), got {window!r}") from None
        for bound in (left, right):
            if bound is not None and (isinstance(bound, bool) or not isinstance(bound, int) or bound < 0):
                raise ValueError(f"window must be two integers from 0 on, or None or -1, got {window!r}")
    return left, (right if causal is False else 0)


def draw_seed(device: torch.device) -> torch.Tensor:
    """A key for the random bits of one call.

    It comes from the CPU's generator on every device: activation checkpointing restores that one alone
    for MPS, and must drop the same weights when it computes again.
    """
    return torch.randint(-(2**63), 2**63 - 1, (1,), dtype=torch.int64).to(device)


def _require_alignment(name: str, given: object, others: str) -> None:
    if given not in ALIGNMENTS:
        raise ValueError(f"{name} must be {others}'upper_left' or 'lower_right', got {given!r}")


def _require_slopes(slopes: torch.Tensor, batch: int, heads: int) -> None:
    """A score function alone would read the nearest slope that there is."""
    by_batch = slopes.dim() == 2
    if slopes.dim() not in (1, 2) or slopes.shape[-1] != heads or (by_batch and slopes.shape[0] != batch):
        raise ValueError(
            f"alibi_slopes must be (heads), here ({heads},), or (batch, heads), here ({batch}, {heads}), "
            f"got {_shape(slopes)}"
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
