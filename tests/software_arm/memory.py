"""Memory of this process: blocks of our own, and what there is at an address."""

from __future__ import annotations

import bisect
import ctypes
import mmap
from pathlib import Path

import torch
import unicorn

PAGE = 1 << 16
"""The largest page of an ARM system."""
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class Block:
    """Whole pages of our own, which stay where they are, between pages that nobody can read or write."""

    def __init__(self, size: int) -> None:
        self.size = -(-size // PAGE) * PAGE
        self._map = mmap.mmap(-1, self.size + 3 * PAGE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self.address = -(-start // PAGE) * PAGE + PAGE
        self.end = self.address + self.size
        for fence in (self.address - PAGE, self.end):
            if _libc.mprotect(fence, PAGE, 0):
                raise OSError(ctypes.get_errno(), "mprotect")


class Guarded:
    """Tensors that end where memory ends: what is read or written past one is an error of its own."""

    def __init__(self) -> None:
        self._blocks: list[Block] = []

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        """A dense tensor with the same numbers, in memory of its own."""
        size = tensor.numel() * tensor.element_size()
        self._blocks.append(Block(size))
        memory = (ctypes.c_char * size).from_address(self._blocks[-1].end - size)
        return torch.frombuffer(memory, dtype=tensor.dtype).view(tensor.shape).copy_(tensor)


class Ranges:
    """What memory the process had, and what it might do there, when this was made."""

    def __init__(self) -> None:
        self._ranges = []
        for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
            bounds, letters, *_ = line.split()
            start, end = (int(bound, 16) for bound in bounds.split("-"))
            self._ranges.append((start, end, _rights(letters)))

    def around(self, address: int) -> tuple[int, int, int] | None:
        """Start, end and rights of the memory around an address, no more of it than a page."""
        index = bisect.bisect(self._ranges, (address, 1 << 64)) - 1
        if index < 0:
            return None
        start, end, rights = self._ranges[index]
        page = address // PAGE * PAGE
        return (max(start, page), min(end, page + PAGE), rights) if address < end and rights else None


def _rights(letters: str) -> int:
    rights = {"r": unicorn.UC_PROT_READ, "w": unicorn.UC_PROT_WRITE}
    return sum(rights.get(letter, 0) for letter in letters)
