"""Where this process stands in its group, and messages to others of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed as dist

Messages = Mapping[int, torch.Tensor]
"""Tensors by the rank, in the group, that they go to or come from."""


@dataclass(frozen=True)
class Place:
    """A process in its group. `rank` and `size` are the group's; the group None is that of all processes."""

    group: dist.ProcessGroup | None
    rank: int
    size: int

    @classmethod
    def of(cls, group: dist.ProcessGroup | None) -> Place:
        """This process's place."""
        rank = dist.get_rank(group)
        if rank < 0:
            raise ValueError(f"this process, rank {dist.get_rank()} of all, is not in the group")
        return cls(group, rank, dist.get_world_size(group))

    def post(self, sends: Messages, receives: Messages, tag: int = 0) -> Exchange:
        """Begin to send and to receive."""
        operations = [*self._each(dist.isend, sends, tag), *self._each(dist.irecv, receives, tag)]
        return Exchange(dist.batch_isend_irecv(operations), sends, receives)

    def _each(self, kind: Callable[..., Any], messages: Messages, tag: int) -> list[dist.P2POp]:
        ranks = dist.get_process_group_ranks(self.group)
        return [dist.P2POp(kind, tensor, ranks[rank], self.group, tag) for rank, tensor in messages.items()]


@dataclass(frozen=True)
class Exchange:
    """Messages under way. Until `wait`, nobody writes to what is sent, or reads what is received."""

    works: list[dist.Work]
    sends: Messages
    receives: Messages

    def wait(self) -> list[torch.Tensor]:
        """What was received, when it is there and all is sent."""
        for work in self.works:
            work.wait()
        return list(self.receives.values())


NOTHING = Exchange([], {}, {})
"""No messages."""
