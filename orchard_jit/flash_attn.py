"""flash-attn's functions, by their signatures and conventions, and Orchard's.

Tensors are (batch, length, heads, head_dim), or packed (total, heads, head_dim). The causal diagonal and the
window are aligned to the lower right: query i stands at key i + Sk - Sq.
"""

from __future__ import annotations

import torch

from orchard_jit import call, dropout, kvcache
from orchard_jit.options import Options, resolve
from orchard_jit.packed import resolve as packed

Result = torch.Tensor | tuple[torch.Tensor, torch.Tensor, torch.Tensor]


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
) -> Result:
    """`flash_attn.flash_attn_func`, by the same signature and layout.

    Args:
        q: (B, Sq, H, D).
        k: (B, Sk, Hk, D), H a multiple of Hk.
        v: (B, Sk, Hk, Dv).
        dropout_p: The probability that a weight is dropped.
        softmax_scale: Factor of the scores, 1 / sqrt(D) by default.
        causal: Query i attends to keys j <= i + Sk - Sq.
        window_size: (left, right): keys i + Sk - Sq - left to i + Sk - Sq + right; -1 is unbounded.
        softcap: cap * tanh(score / cap); 0 is none.
        alibi_slopes: float32 (H) or (B, H): adds -slope * |i + Sk - Sq - j|. Not differentiable, and refused
            if it requires a gradient.
        deterministic: Accepted; every result here is deterministic.
        return_attn_probs: Return what is below too.

    Returns:
        (B, Sq, H, Dv). With `return_attn_probs` also the natural log-sum-exp (B, H, Sq), and, if weights are
        dropped, the probabilities (B, H, Sq, Sk), negative where they were dropped (else an empty tensor).
        The probabilities take S x S memory and are made for tests.

    Raises:
        ValueError, TypeError, NotImplementedError, OrchardError: As in `orchard_jit.flash_attention`.

    """
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        _require(name, tensor, 4, "(batch, length, heads, head_dim)")
    arguments = resolve(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        causal=causal,
        window=window_size,
        alignment="lower_right",
        softcap=softcap or None,
        alibi_slopes=alibi_slopes,
        dropout_p=dropout_p,
        scale=softmax_scale,
    )
    out, lse = call.forward(arguments)
    out = out.transpose(1, 2)
    return (out, lse * call.LN_2, dropout.probabilities(arguments)) if return_attn_probs else out


def flash_attn_varlen_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: torch.Tensor | None = None,
) -> Result:
    """`flash_attn.flash_attn_varlen_func`: packed sequences, each attending to itself alone.

    Args:
        q: (total_q, H, D).
        k: (total_k, Hk, D).
        v: (total_k, Hk, Dv).
        cu_seqlens_q: int32 (N + 1): where each of N sequences begins in q, from 0 to total_q. Sequences may
            be empty.
        cu_seqlens_k: int32 (N + 1): the same for k and v.
        max_seqlen_q: Rows of the longest sequence in q.
        max_seqlen_k: The same for k.
        dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic: As in
            `flash_attn_func`, with each sequence's own lengths.
        return_attn_probs: Also return the log-sum-exp. The probabilities are not given: the third value is an
            empty tensor, and with dropout this is refused.
        block_table: Not supported.

    Returns:
        (total_q, H, Dv), and with `return_attn_probs` also the natural log-sum-exp (H, total_q) and an empty
        tensor.

    Raises:
        ValueError: cu_seqlens fall, don't begin with 0 or end with the total, or hold a longer sequence than
            was said.
        ValueError, TypeError, NotImplementedError, OrchardError: As in `orchard_jit.flash_attention`.

    """
    if block_table is not None:
        raise NotImplementedError("block_table (a paged cache) is not supported; pass k and v packed")
    if return_attn_probs and dropout_p:
        raise NotImplementedError("return_attn_probs with dropout is not supported for packed sequences")
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        _require(name, tensor, 3, "(total, heads, head_dim)")
    options: Options = {
        "causal": causal,
        "window": window_size,
        "alignment": "lower_right",
        "softcap": softcap or None,
        "alibi_slopes": alibi_slopes,
        "dropout_p": dropout_p,
        "scale": softmax_scale,
    }
    arguments = packed(
        *(tensor.transpose(0, 1) for tensor in (q, k, v)),
        query_offsets=cu_seqlens_q,
        key_offsets=cu_seqlens_k,
        longest_query=max_seqlen_q,
        longest_key=max_seqlen_k,
        options=options,
    )
    out, lse = (result[0] for result in call.forward(arguments))
    out = out.transpose(0, 1)
    return (out, lse * call.LN_2, out.new_empty(0)) if return_attn_probs else out


def flash_attn_with_kvcache(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    k: torch.Tensor | None = None,
    v: torch.Tensor | None = None,
    rotary_cos: torch.Tensor | None = None,
    rotary_sin: torch.Tensor | None = None,
    cache_seqlens: int | torch.Tensor | None = None,
    cache_batch_idx: torch.Tensor | None = None,
    cache_leftpad: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    alibi_slopes: torch.Tensor | None = None,
    num_splits: int = 0,
    return_softmax_lse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """`flash_attn.flash_attn_with_kvcache`: a few new queries against a cache; forward only.

    Args:
        q: (B, Sq, H, D).
        k_cache: (B, capacity, Hk, D).
        v_cache: (B, capacity, Hk, Dv).
        k, v: (B, new, Hk, D) and (B, new, Hk, Dv): first written into the caches, in place, behind
            `cache_seqlens`.
        cache_seqlens: How many rows of the cache are in use, before the new ones: one number, or int32 (B).
            None: all of them.
        softmax_scale, causal, window_size, softcap, alibi_slopes: As in `flash_attn_func`, with the number of
            keys in use as Sk.
        num_splits: Accepted; how the keys are split follows from the sizes.
        return_softmax_lse: Also return the natural log-sum-exp (B, H, Sq).
        rotary_cos, rotary_sin, rotary_interleaved: Not supported: rotate q and k before.
        cache_batch_idx, cache_leftpad, block_table: Not supported.

    Returns:
        (B, Sq, H, Dv).

    Raises:
        ValueError: The new rows don't fit into the cache, or as in `orchard_jit.flash_attention`.
        NotImplementedError: An argument that is not supported was given.
        TypeError, OrchardError: As in `orchard_jit.flash_attention`.

    """
    for name, unsupported in (
        ("rotary_cos", rotary_cos),
        ("rotary_sin", rotary_sin),
        ("cache_batch_idx", cache_batch_idx),
        ("cache_leftpad", cache_leftpad),
        ("block_table", block_table),
    ):
        if unsupported is not None:
            raise NotImplementedError(f"{name} is not supported; only None is")
    for name, tensor in (("q", q), ("k_cache", k_cache), ("v_cache", v_cache)):
        _require(name, tensor, 4, "(batch, length, heads, head_dim)")
    lengths = kvcache.lengths(cache_seqlens, k_cache)
    with torch.no_grad():
        if k is not None or v is not None:
            lengths = kvcache.append(k_cache, v_cache, k, v, lengths)
        arguments = resolve(
            q.transpose(1, 2),
            k_cache.transpose(1, 2),
            v_cache.transpose(1, 2),
            causal=causal,
            window=window_size,
            alignment="lower_right",
            softcap=softcap or None,
            alibi_slopes=alibi_slopes,
            key_lengths=lengths,
            scale=softmax_scale,
        )
        out, lse = call.forward(arguments)
    out = out.transpose(1, 2)
    return (out, lse * call.LN_2) if return_softmax_lse else out


def flash_attn_qkvpacked_func(qkv: torch.Tensor, *args: object, **kwargs: object) -> Result:
    """`flash_attn.flash_attn_qkvpacked_func`: `flash_attn_func` of qkv (B, S, 3, H, D), read in place."""
    return flash_attn_func(*qkv.unbind(2), *args, **kwargs)  # type: ignore[arg-type]


def flash_attn_kvpacked_func(q: torch.Tensor, kv: torch.Tensor, *args: object, **kwargs: object) -> Result:
    """`flash_attn.flash_attn_kvpacked_func`: `flash_attn_func` of kv (B, Sk, 2, Hk, D), read in place."""
    return flash_attn_func(q, *kv.unbind(2), *args, **kwargs)  # type: ignore[arg-type]


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
        dropout_p: The probability that a weight is dropped.
        causal: Causal with the upper-left alignment.

    Returns:
        The output (..., H, Sq, Dv), through which gradients flow, and the dropout keep-mask, bool
        (..., H, Sq, Sk): exactly what the kernels used. It is empty when `dropout_p` is 0.

    Raises:
        ValueError, TypeError, OrchardError: As in `orchard_jit.flash_attention`.

    """
    arguments = resolve(q, k, v, causal="upper_left" if causal else False, dropout_p=dropout_p, scale=scale)
    out, _ = call.forward(arguments)
    kept = dropout.kept(arguments)
    if dropout_p:
        kept = kept.view(*q.shape[:-1], k.shape[-2])
    return out.view(*q.shape[:-1], v.shape[-1]), kept


def _require(name: str, tensor: torch.Tensor, rank: int, form: str) -> None:
    if tensor.dim() != rank:
        raise ValueError(f"{name} must have {rank} dimensions {form}, got {tuple(tensor.shape)}")
