"""All-gather attention, as for Llama 3 (arXiv:2407.21783, 3.3.2): each process gets all keys and values.

Queries stay, and there is nothing to merge. With a causal mask the first chunks of all ranks are gathered
before the second ones: while these are on their way, the early queries, which see none of them, are at work.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import distributed as dist

from orchard_jit.distributed.block import Problem, Rows, pack
from orchard_jit.distributed.layout import Sight
from orchard_jit.distributed.place import Place


def forward(
    problem: Problem, place: Place, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and base-2 log-sum-exp of this process's queries."""
    gathered = gather(pack(key, value), place, causal=problem.causal)
    results = [problem.attend(query, sequence, seen) for sequence, seen in gathered]
    out, lse = (torch.cat(parts, 2) for parts in zip(*results, strict=True))
    return out, lse


def backward(
    problem: Problem, place: Place, rows: Rows, key: torch.Tensor, value: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of this process's query and block.

    The keys are gathered once more: to keep those of each layer would take the memory of whole sequences.
    """
    own = pack(key, value)
    grads = own.new_zeros((place.size * len(own), *own.shape[1:]), dtype=rows.lse.dtype)
    grad_queries = []
    for sequence, seen in gather(own, place, causal=problem.causal):
        grad_query, grad_block = problem.differentiate(rows, sequence, seen)
        grad_queries.append(grad_query)
        grads[: seen.keys] += grad_block
    return torch.cat(grad_queries, 2), scatter_sum(grads, place, causal=problem.causal)


def gather(block: torch.Tensor, place: Place, *, causal: bool) -> Iterator[tuple[torch.Tensor, Sight]]:
    """All blocks as one, in the sequence's order, and what this process's queries see of it, in turn.

    What some queries see is there when they are told.
    """
    rank, size, length = place.rank, place.size, len(block)
    sequence = block.new_empty((size * length, *block.shape[1:]))
    if not causal:
        dist.all_gather(list(sequence.chunk(size)), block, place.group)
        yield sequence, Sight(slice(None), size * length)
        return
    half = length // 2
    chunks = sequence.chunk(2 * size)
    first = dist.all_gather(list(chunks[:size]), block[:half], place.group, async_op=True)
    second = dist.all_gather(list(chunks[: size - 1 : -1]), block[half:], place.group, async_op=True)
    first.wait()
    yield sequence, Sight(slice(half), (rank + 1) * half, diagonal=True)
    second.wait()
    yield sequence, Sight(slice(half, None), (2 * size - rank) * half, diagonal=True)


def scatter_sum(grads: torch.Tensor, place: Place, *, causal: bool) -> torch.Tensor:
    """This process's block in the sum of all processes' gradients of the sequence.

    Each sends the others their parts and adds what it gets in the order of ranks: the same bits each time.
    `reduce_scatter` would do, but gloo's makes the whole sum in every process, for twice the bytes.
    """
    rank, size = place.rank, place.size
    if not causal:
        return _sum_of_parts(grads, place, lowest=0, highest=size - 1)
    first, second = grads.chunk(2)
    second = second.unflatten(0, (size, -1)).flip(0).flatten(0, 1)  # in the order of ranks, as the first is
    return torch.cat(
        [
            _sum_of_parts(first, place, lowest=0, highest=size - 1),
            # A rank sees the second chunks of the ranks above it and its own.
            _sum_of_parts(second, place, lowest=rank, highest=rank),
        ]
    )


def _sum_of_parts(parts: torch.Tensor, place: Place, *, lowest: int, highest: int) -> torch.Tensor:
    """Give each rank from `lowest` on its part, and add up those that come from the ranks up to `highest`."""
    length = len(parts) // place.size
    to = [length * (rank >= lowest) for rank in range(place.size)]
    of = [length * (rank <= highest) for rank in range(place.size)]
    received = parts.new_empty((sum(of), *parts.shape[1:]))
    dist.all_to_all_single(received, parts[lowest * length :], of, to, place.group)
    return torch.sum(received.unflatten(0, (-1, length)), 0)
