"""PyTorch's `scaled_dot_product_attention` over a sequence that is spread over processes."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed as dist

from orchard_jit import functional
from orchard_jit.distributed.attention import Method, flash_attention
from orchard_jit.integrations import routing, traced


@contextmanager
def context_parallel(
    group: dist.ProcessGroup | None = None, *, method: Method | None = None
) -> Iterator[None]:
    """Within it, this thread's calls of PyTorch's attention are of the parts that each process holds.

    That is every call of `torch.nn.functional.scaled_dot_product_attention`, as in `orchard_jit.sdpa`: the
    model need not know of it, but gets its tokens from `shard` and their places from `positions`. No call
    falls back to PyTorch's own attention: what can't be served, such as a mask, is an error. `torch.compile`
    leaves the calls out of its graphs.

    The function has to be looked up within the region; one that was kept before is PyTorch's, of one part.
    So is what activation checkpointing computes again if the backward is not within the region too.

    Args:
        group: The processes that share the sequence; None is all of them.
        method: As in `orchard_jit.distributed.flash_attention`.

    """
    with routing.region(functools.partial(_attention, group=group, method=method)):
        yield


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    group: dist.ProcessGroup | None,
    method: Method | None,
) -> torch.Tensor:
    if traced.is_traced(query, key, value, attn_mask):
        raise NotImplementedError("context_parallel: attention can't be part of a graph or of a transform")
    if attn_mask is not None or dropout_p:
        given = "attn_mask" if attn_mask is not None else "dropout_p"
        raise NotImplementedError(f"context_parallel: {given} is not supported; is_causal is")
    query, key, value, _ = functional.translate(query, key, value, enable_gqa=enable_gqa)
    return flash_attention(query, key, value, group=group, causal=is_causal, scale=scale, method=method)
