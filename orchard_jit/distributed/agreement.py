"""What the processes of a group tell each other before a call, so that all of them begin it, or none does."""

from __future__ import annotations

import torch
from torch import distributed as dist

from orchard_jit.distributed.place import Place

_LENGTH = 512
"""Bytes of a statement. One that is longer is cut off: it is an error, and its beginning says which."""


def require_same(statement: str, error: Exception | None, place: Place) -> None:
    """Raise in every process unless all of them state the same, and none has an error.

    A process that waited for messages of others that have none to send would wait for as long as the group's
    timeout. One gathering of half a kilobyte is the price of an error at once.

    Args:
        statement: What this process is about to do.
        error: Why it can't do it.
        place: Where it stands.

    Raises:
        error: If there is one.
        RuntimeError: Another process has an error.
        ValueError: Another process states something else.

    """
    text = f"!{type(error).__name__}: {error}" if error is not None else statement
    mine = torch.zeros(_LENGTH, dtype=torch.uint8)
    data = text.encode()[:_LENGTH]
    mine[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    gathered = [torch.empty_like(mine) for _ in range(place.size)]
    dist.all_gather(gathered, mine, place.group)
    if error is not None:
        raise error
    statements = [bytes(other.tolist()).rstrip(b"\0").decode(errors="ignore") for other in gathered]
    for rank, other in enumerate(statements):
        if other.startswith("!"):
            raise RuntimeError(f"rank {rank} of the group can't make this call: {other[1:]}")
    for rank, other in enumerate(statements):
        if other != statements[place.rank]:
            raise ValueError(
                "the processes of the group call differently; "
                f"rank {place.rank}: {statements[place.rank]}; rank {rank}: {other}"
            )
