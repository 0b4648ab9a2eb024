"""The keys and values of one process as one tensor, and attention to a part of them.

A block is (length, B, Hk, D + Dv), contiguous: one message, and so is any part of its sequence. The kernels
read key and value in it where they are.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from orchard_jit import call, operators
from orchard_jit.call import Arguments
from orchard_jit.diagonal import Causal
from orchard_jit.distributed.layout import Sight
from orchard_jit.options import resolve


def pack(key: torch.Tensor, value: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Key and value, or their gradients, as a block. It is in the CPU's memory, which gloo sends from."""
    batch, heads, length, head_dim = key.shape
    block = torch.empty((length, batch, heads, head_dim + value.shape[-1]), dtype=dtype or key.dtype)
    block[..., :head_dim] = key.permute(2, 0, 1, 3)
    block[..., head_dim:] = value.permute(2, 0, 1, 3)
    return block


def unpack(block: torch.Tensor, head_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Key and value, as views of the block."""
    key, value = block.permute(1, 2, 0, 3).tensor_split((head_dim,), -1)
    return key, value


class Rows(NamedTuple):
    """What the backward needs of each query. Results are those of all keys, of this process and others."""

    query: torch.Tensor
    out: torch.Tensor
    lse: torch.Tensor
    grad_out: torch.Tensor
    grad_lse: torch.Tensor | None

    def part(self, queries: slice) -> Rows:
        """Some of the rows."""
        grad_lse = None if self.grad_lse is None else self.grad_lse[:, :, queries]
        query, out, lse, grad_out = (tensor[:, :, queries] for tensor in self[:4])
        return Rows(query, out, lse, grad_out, grad_lse)


class Problem(NamedTuple):
    """What is computed, but for its tensors."""

    causal: bool
    softcap: float | None
    scale: float | None
    blocks: str
    """Block sizes that are forced, as `orchard_jit.blocks` writes them down."""

    def attend(
        self, query: torch.Tensor, block: torch.Tensor, seen: Sight
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What some queries get from the keys of a block that they see: output and base-2 log-sum-exp."""
        query = query[:, :, seen.queries]
        return call.forward(self.arguments(query, *_seen(block, seen, query), diagonal=seen.diagonal))

    def differentiate(
        self, rows: Rows, block: torch.Tensor, seen: Sight
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What some queries and the keys that they see add to the gradients of query and block.

        With the log-sum-exp of the whole row, the probabilities are those in the whole row, and so is the sum
        that the softmax's gradient needs with its output: each part is what it adds, with nothing to merge.
        """
        rows = rows.part(seen.queries)
        arguments = self.arguments(rows.query, *_seen(block, seen, rows.query), diagonal=seen.diagonal)
        grad_query, grad_key, grad_value, _, _ = operators.backward(
            rows.grad_out, rows.grad_lse, *arguments, rows.out, rows.lse, False
        )
        return grad_query, pack(grad_key, grad_value, rows.lse.dtype)

    def arguments(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, diagonal: bool
    ) -> Arguments:
        """One call of the operator."""
        causal: Causal = "lower_right" if diagonal else False
        arguments = resolve(query, key, value, causal=causal, softcap=self.softcap, scale=self.scale)
        return arguments._replace(blocks=self.blocks)


def _seen(block: torch.Tensor, seen: Sight, query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return unpack(block[: seen.keys].to(query.device), query.shape[-1])
