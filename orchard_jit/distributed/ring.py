"""Ring attention (Liu, Zaharia, Abbeel 2023, arXiv:2310.01889): keys and values go round, queries stay.

Blocks go to the next lower rank. So a process attends to its own block, then to that of the rank above it,
and so on, and while it does, the block that comes next is on its way.

Going down, a block first meets the ranks that see all of it through a causal mask, and after rank 0, from
the top again, those that see its first half. Rank 0 hands on no more than that. So each key is sent as often
as there are other ranks that see it, which is the least that can be: n - 1 times, or with a causal mask
3/4 (n - 1) times in the mean.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from orchard_jit import call
from orchard_jit.distributed.block import Problem, Rows, pack
from orchard_jit.distributed.layout import Sight, sight
from orchard_jit.distributed.place import NOTHING, Exchange, Place

_HOMEWARD = 1  # the tag of what leaves the ring


def forward(
    problem: Problem, place: Place, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and base-2 log-sum-exp of this process's queries, in the precision that they are summed in."""
    ring = Ring(place, key.shape[2], causal=problem.causal)
    blocks = ring.blocks(pack(key, value))
    # Of its own block every query sees some key, so that there is always something to merge the next with.
    source, block = next(blocks)
    out, lse = problem.attend(query, block, ring.seen(source))
    out = out.to(lse.dtype)
    for source, block in blocks:
        seen = ring.seen(source)
        merge(out[:, :, seen.queries], lse[:, :, seen.queries], *problem.attend(query, block, seen))
    return out, lse


def merge(out: torch.Tensor, lse: torch.Tensor, out_of_more: torch.Tensor, lse_of_more: torch.Tensor) -> None:
    """Turn the results of some keys, in place, into those of more keys too."""
    share = torch.sigmoid((lse_of_more - lse) * call.LN_2)
    out.lerp_(out_of_more.to(out.dtype), share.unsqueeze(-1))
    lse.copy_(torch.logaddexp2(lse, lse_of_more))


def backward(
    problem: Problem, place: Place, rows: Rows, key: torch.Tensor, value: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of this process's query and block, in the precision that they are summed in.

    Blocks go round once more, and behind each the sum of its gradients, which ends where the block is from.
    """
    ring = Ring(place, key.shape[2], causal=problem.causal)
    blocks = ring.blocks(pack(key, value))
    source, block = next(blocks)
    grad_query, grad_own = problem.differentiate(rows, block, ring.seen(source))
    grad_query = grad_query.to(rows.lse.dtype)
    second_half = grad_own[ring.half :]
    shortcut = arriving = NOTHING
    if ring.has_shortcut(place.rank):
        shortcut = place.post({}, {0: torch.empty_like(second_half)}, _HOMEWARD)
    for source, block in blocks:
        seen = ring.seen(source)
        of_queries, grad_block = problem.differentiate(rows, block, seen)
        grad_query[:, :, seen.queries] += of_queries
        for sum_so_far in arriving.wait():
            grad_block += sum_so_far
        arriving = ring.hand_on(grad_block, source)
        if place.rank == 0 and ring.has_shortcut(source):
            shortcut.wait()
            shortcut = place.post({source: grad_block[ring.half :]}, {}, _HOMEWARD)
    for total in arriving.wait():
        grad_own[: len(total)] += total
    for total in shortcut.wait():
        second_half += total
    return grad_query, grad_own


class Ring:
    """The way of blocks that are each `length` long: which come by a process, and how much of them."""

    def __init__(self, place: Place, length: int, *, causal: bool) -> None:
        self.half = length // 2
        self._place = place
        self._length = length
        self._causal = causal

    def blocks(self, own: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
        """Each block with the rank that it is from; while the caller works on one, the next is on its way."""
        rank, size = self._place.rank, self._place.size
        block = own
        *sources, last = (*range(rank, size), *range(rank))
        for source in sources:
            arriving = self.hand_on(block, source)
            yield source, block
            (block,) = arriving.wait()
        yield last, block

    def seen(self, source: int) -> Sight:
        """What this process's queries see of a block."""
        return sight(self._place.rank, source, self._length, causal=self._causal)

    def hand_on(self, block: torch.Tensor, source: int) -> Exchange:
        """Send what is `source`'s to the rank below, and receive what is the next one's from that above."""
        rank, size = self._place.rank, self._place.size
        below, above, following = (at % size for at in (rank - 1, rank + 1, source + 1))
        sent = block[: self._handed(rank, below, source)]
        received = block.new_empty((self._handed(above, rank, following), *block.shape[1:]))
        return self._place.post({below: sent}, {above: received})

    def has_shortcut(self, source: int) -> bool:
        """Whether the gradients of a block's second half go home from rank 0, as no rank after it sees it.

        Rank 0 is the last on the way of the last rank's block anyway, and the only one to see its own half.
        """
        return self._causal and 0 < source < self._place.size - 1

    def _handed(self, giver: int, taker: int, source: int) -> int:
        """How much of a block one rank hands to another: what it has, and the other sees."""
        return min(sight(rank, source, self._length, causal=self._causal).keys for rank in (giver, taker))
