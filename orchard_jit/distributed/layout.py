"""Which part of a sequence each process holds, and which of its queries see which keys.

With a causal mask the first of n equal parts would have almost nothing to do, and the last almost everything.
In zigzag order the sequence is cut into 2n chunks, and rank r holds chunks r and 2n - 1 - r, an early and a
late one: every rank then has as many scores to compute as the others, and with the keys of each rank, too.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import distributed as dist

from orchard_jit.distributed.place import Place

Order = Literal["zigzag", "contiguous"]


def shard(
    tensor: torch.Tensor, dim: int, group: dist.ProcessGroup | None = None, *, order: Order = "zigzag"
) -> torch.Tensor:
    """This process's part of a tensor that all processes have.

    Args:
        tensor: The same in all processes of the group.
        dim: The sequence's dimension. Its length is a multiple of twice the group's size in zigzag order, of
            the group's size in contiguous order.
        group: The processes that share the sequence; None is all of them.
        order: "zigzag", which causal attention needs: chunks r and 2n - 1 - r of 2n. "contiguous": r of n.

    """
    place = Place.of(group)
    count = _count(place.size, order)
    length = tensor.shape[dim]
    if length % count:
        raise ValueError(
            f"a sequence of {length} can't be cut into {count} equal chunks, which {order} order needs for a "
            f"group of {place.size}; pad it to {-(-length // count) * count}"
        )
    chunks = tensor.tensor_split(count, dim)
    return torch.cat([chunks[index] for index in _held(place.rank, place.size, order)], dim)


def unshard(
    tensor: torch.Tensor, dim: int, group: dist.ProcessGroup | None = None, *, order: Order = "zigzag"
) -> torch.Tensor:
    """The whole tensor, in every process, from the parts that each holds: what `shard` has cut.

    Not differentiable: it can't know whether the processes' losses are one loss, or parts of one. Detach, or
    compute the loss of each process's own part.
    """
    if tensor.requires_grad and torch.is_grad_enabled():
        raise ValueError("unshard gives no gradient; pass a detached tensor, or call it under torch.no_grad")
    place = Place.of(group)
    count = _count(place.size, order) // place.size
    if tensor.shape[dim] % count:
        raise ValueError(f"a part of length {tensor.shape[dim]} does not hold {count} equal chunks")
    part = tensor.cpu().contiguous()
    parts = [torch.empty_like(part) for _ in range(place.size)]
    dist.all_gather(parts, part, group)
    chunks = {
        index: chunk
        for rank, part in enumerate(parts)
        for index, chunk in zip(_held(rank, place.size, order), part.tensor_split(count, dim), strict=True)
    }
    return torch.cat([chunks[index] for index in sorted(chunks)], dim).to(tensor.device)


def positions(
    length: int,
    group: dist.ProcessGroup | None = None,
    *,
    order: Order = "zigzag",
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Where in the whole sequence, of `length`, this process's tokens stand: the position ids of its part."""
    return shard(torch.arange(length, device=device), 0, group, order=order)


def _count(size: int, order: Order) -> int:
    """How many chunks the sequence is cut into."""
    if order not in ("zigzag", "contiguous"):
        raise ValueError(f"order must be 'zigzag' or 'contiguous', got {order!r}")
    return 2 * size if order == "zigzag" else size


def _held(rank: int, size: int, order: Order) -> tuple[int, ...]:
    """The chunks that a rank holds."""
    return (rank, 2 * size - 1 - rank) if order == "zigzag" else (rank,)


class Sight(NamedTuple):
    """Some queries of a process, and how many keys they see, from the first one on.

    On a diagonal the last query sees them all, and each before it one less.
    """

    queries: slice
    keys: int
    diagonal: bool = False


def sight(rank: int, source: int, length: int, *, causal: bool) -> Sight:
    """What a rank's queries see of another's `length` keys. With a causal mask both are in zigzag order."""
    everything, half = slice(None), length // 2
    if not causal:
        return Sight(everything, length)
    if source == rank:
        return Sight(everything, length, diagonal=True)
    if source < rank:  # its first chunk is before both of ours, its second one after them
        return Sight(everything, half)
    return Sight(slice(half, None), length)  # both its chunks are between ours
