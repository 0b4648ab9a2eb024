"""Attention with everything that it can have, in one function."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, overload

import torch
from typing_extensions import Unpack

from orchard_jit import call
from orchard_jit.diagonal import Alignment, Causal, Window, bounds
from orchard_jit.options import Options, like, resolve

if TYPE_CHECKING:
    from orchard_jit.score import ScoreMod


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
    is_nested = query.is_nested or key.is_nested or value.is_nested
    if (
        query.dim() == key.dim() == value.dim() == 4
        and not (is_nested or dropout_p or return_lse)
        and mask is None
        and bias is None
        and softcap is None
        and alibi_slopes is None
        and score_mod is None
        and sinks is None
        and key_lengths is None
    ):
        return call.attention(query, key, value, scale, *bounds(query, key, causal, window, alignment))
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
    if is_nested:
        from orchard_jit.nested import attention

        return attention(query, key, value, return_lse=return_lse, **options)
    out, lse = call.forward(resolve(query, key, value, **options))
    out = like(query, out)
    return (out, lse.view(query.shape[:-1]) * call.LN_2) if return_lse else out
