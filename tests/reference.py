"""Attention by its definition, in float64: what every kernel is measured against."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch


@dataclass
class Result:
    """Output, natural log-sum-exp and the gradients of query, key and value, and of others by name."""

    out: torch.Tensor
    lse: torch.Tensor
    grads: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    others: dict[str, torch.Tensor] = field(default_factory=dict)


def attention(
    query,
    key,
    value,
    causal="none",
    scale=None,
    *,
    window=(None, None),
    alignment="upper_left",
    mask=None,
    bias=None,
    score: Callable | None = None,
    visible: Callable | None = None,
    sinks=None,
    keep=None,
    dropout_p=0.0,
    key_lengths=None,
):
    """Output and log-sum-exp; rows that attend to nothing give 0 and -inf. Differentiable.

    `score(score, b, h, q, kv)` and `visible(b, h, q, kv)` are a user's functions, over broadcasting indices.
    `keep` is the dropout keep-mask.
    """
    batch, heads, query_length, key_length = *query.shape[:3], key.shape[2]
    group = heads // max(key.shape[1], 1)
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = scale * (query @ key.transpose(-1, -2))
    at = indices(batch, heads, query_length, key_length, query.device)
    if score is not None:
        scores = score(scores, *at)
    if bias is not None:
        scores = scores + bias
    seen = bounded(at, query_length, key_length, causal, window, alignment, key_lengths)
    if visible is not None:
        seen = seen & visible(*at)
    if mask is not None:
        seen = seen & mask
    seen = seen.expand(batch, heads, query_length, key_length)
    scores = scores.masked_fill(~seen, -math.inf)
    if sinks is not None:
        scores = torch.cat((scores, sinks.view(1, -1, 1, 1).expand(batch, heads, query_length, 1)), -1)
    dead = (scores == -math.inf).all(-1, keepdim=True)
    lse = torch.logsumexp(scores.masked_fill(dead, 0.0), -1, keepdim=True)
    weights = torch.softmax(scores.masked_fill(dead, 0.0), -1).masked_fill(dead, 0.0)[..., :key_length]
    if keep is not None:
        weights = weights * keep / (1 - dropout_p)
    return weights @ value, lse.masked_fill(dead, -math.inf).squeeze(-1)


def indices(batch, heads, query_length, key_length, device="cpu"):
    """b, h, q and kv, each with a dimension of its own."""
    sizes = (batch, heads, query_length, key_length)
    return tuple(
        torch.arange(size, device=device).view([-1 if i == dim else 1 for i in range(4)])
        for dim, size in enumerate(sizes)
    )


def bounded(at, query_length, key_length, causal, window, alignment, key_lengths):
    """Where the diagonal's bounds, and the number of keys that there are, let a query see a key."""
    b, _, q, kv = at
    lengths = key_length if key_lengths is None else key_lengths.to(b.device).long()[b]
    if causal != "none":
        alignment, window = causal, (window[0], 0)
    diagonal = q + (lengths - query_length if alignment == "lower_right" else 0)
    seen = (kv < lengths) & (q == q)
    left, right = window
    if left is not None:
        seen = seen & (kv >= diagonal - left)
    if right is not None:
        seen = seen & (kv <= diagonal + right)
    return seen


def result(query, key, value, grad_out, causal="none", scale=None, grad_lse=None, **options) -> Result:
    """Everything in float64, on the CPU, from inputs of any dtype."""
    leaves = [_exact(tensor).requires_grad_() for tensor in (query, key, value)]
    others = {name: _exact(options[name]).requires_grad_() for name in ("bias", "sinks") if name in options}
    rest = {name: _there(value) for name, value in options.items() if name not in others}
    out, lse = attention(*leaves, causal=causal, scale=scale, **others, **rest)
    loss = (out * _exact(grad_out)).sum()
    if grad_lse is not None:
        loss = loss + (lse.masked_fill(lse == -math.inf, 0.0) * _exact(grad_lse)).sum()
    grads = torch.autograd.grad(loss, [*leaves, *others.values()], allow_unused=True)
    return Result(out.detach(), lse.detach(), tuple(grads[:3]), dict(zip(others, grads[3:], strict=True)))


def _exact(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().double()


def _there(value):
    return value.cpu() if isinstance(value, torch.Tensor) else value


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Distance relative to the size of `expected`: Frobenius norms. NaN anywhere gives infinity."""
    if expected.numel() == 0:
        return 0.0
    distance = (actual.detach().cpu().double() - expected).norm() / expected.norm().clamp_min(1e-30)
    return math.inf if distance.isnan() else distance.item()
