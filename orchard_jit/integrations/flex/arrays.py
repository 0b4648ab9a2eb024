"""The tensors that functions read."""

from __future__ import annotations

import torch

from orchard_jit.integrations.flex.refusal import Refusal, place
from orchard_jit.score.expression import Node
from orchard_jit.score.spec import ARRAY_TYPES, MAX_RANK


class Arrays:
    """The tensors that expressions index, by position.

    Attributes:
        tensors: Each once.
        learned: Where those that require a gradient are indexed.

    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.tensors: list[torch.Tensor] = []
        self.learned: dict[int, str] = {}

    def element(self, tensor: torch.Tensor, indices: tuple[Node, ...], *, is_learned: bool = False) -> Node:
        """One of its elements."""
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in ARRAY_TYPES:
            raise Refusal(f"a tensor must be {', '.join(ARRAY_TYPES)}, not {dtype}")
        if len(indices) > MAX_RANK:
            raise Refusal(f"a tensor must have up to {MAX_RANK} dimensions, not {len(indices)}")
        if tensor.device != self._device:
            raise Refusal(f"a tensor is on {tensor.device}, the inputs are on {self._device}")
        position = next((i for i, known in enumerate(self.tensors) if known is tensor), len(self.tensors))
        if position == len(self.tensors):
            self.tensors.append(tensor)
        if is_learned and torch.is_grad_enabled():
            self.learned.setdefault(position, place())
        return Node("element", ARRAY_TYPES[dtype], indices, position)
