"""Attention by its definition, in float64: what every kernel is measured against."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass
class Result:
    """Output, natural log-sum-exp and the gradients of query, key and value."""

    out: torch.Tensor
    lse: torch.Tensor
    grads: tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def attention(query, key, value, causal="none", scale=None):
    """Output and log-sum-exp; rows that attend to nothing give 0 and -inf. Differentiable."""
    group = query.shape[1] // max(key.shape[1], 1)
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = scale * (query @ key.transpose(-1, -2))
    visible = visibility(query.shape[-2], key.shape[-2], causal, query.device)
    scores = scores.masked_fill(~visible, -math.inf)
    dead = ~visible.any(-1, keepdim=True)
    lse = torch.logsumexp(scores.masked_fill(dead, 0.0), -1, keepdim=True)
    weights = torch.exp(scores - lse).masked_fill(dead, 0.0)
    return weights @ value, lse.masked_fill(dead, -math.inf).squeeze(-1)


def visibility(query_length, key_length, causal, device="cpu"):
    """(Sq, Sk), True where the query may see the key."""
    diagonal = {"none": key_length, "upper_left": 0, "lower_right": key_length - query_length}[causal]
    rows = torch.arange(query_length, device=device)[:, None]
    return torch.arange(key_length, device=device)[None, :] <= rows + diagonal


def result(query, key, value, grad_out, causal="none", scale=None) -> Result:
    """Everything in float64, on the CPU, from inputs of any dtype."""
    leaves = [tensor.detach().cpu().double().requires_grad_() for tensor in (query, key, value)]
    out, lse = attention(*leaves, causal=causal, scale=scale)
    grads = torch.autograd.grad(out, leaves, grad_out.detach().cpu().double(), allow_unused=True)
    return Result(out.detach(), lse.detach(), tuple(grads))


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Distance relative to the size of `expected`: Frobenius norms. NaN anywhere gives infinity."""
    if expected.numel() == 0:
        return 0.0
    distance = (actual.detach().cpu().double() - expected).norm() / expected.norm().clamp_min(1e-30)
    return math.inf if distance.isnan() else distance.item()
