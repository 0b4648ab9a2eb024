"""A program's file (ELF, 64-bit): its segments, and where its functions lie."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import unicorn

from .memory import PAGE

_ARM64, _LOADED, _SYMBOLS = 183, 1, 2
_RIGHTS = {4: unicorn.UC_PROT_READ, 2: unicorn.UC_PROT_WRITE, 1: unicorn.UC_PROT_EXEC}


@dataclass(frozen=True)
class Segment:
    """Some of the program's memory; what `content` leaves of its size is zero."""

    address: int
    size: int
    content: bytes
    rights: int

    @property
    def executable(self) -> bool:
        return bool(self.rights & unicorn.UC_PROT_EXEC)

    @property
    def pages(self) -> tuple[int, int]:
        """Start and size of the pages that it lies in."""
        start = self.address // PAGE * PAGE
        return start, -(-(self.address + self.size) // PAGE) * PAGE - start


class Program:
    """What a loader has to know of the file at `path`.

    Attributes:
        segments: What lies where.
        symbols: Addresses by name.

    """

    def __init__(self, path: Path) -> None:
        self._file = path.read_bytes()
        if self._file[:5] != b"\x7fELF\x02" or self._numbers("<H", 18) != (_ARM64,):
            raise ValueError(f"{path} is no program for 64-bit ARM")
        self.segments = list(self._segments())
        self.symbols = dict(self._symbols())

    def _numbers(self, layout: str, offset: int) -> tuple[int, ...]:
        return struct.unpack_from(layout, self._file, offset)

    def _table(self, layout: str, place: int, sizes: int) -> list[tuple[int, ...]]:
        """All entries of a table. Where it lies, and its sizes, the file's header says."""
        (start,), (size, count) = self._numbers("<Q", place), self._numbers("<HH", sizes)
        return [self._numbers(layout, start + size * index) for index in range(count)]

    def _segments(self) -> Iterator[Segment]:
        for kind, flags, offset, address, _, stored, size, _ in self._table("<II6Q", 32, 54):
            if kind == _LOADED:
                rights = sum(right for bit, right in _RIGHTS.items() if flags & bit)
                yield Segment(address, size, self._file[offset : offset + stored], rights)

    def _symbols(self) -> Iterator[tuple[str, int]]:
        sections = self._table("<IIQQQQIIQQ", 40, 58)
        (table,) = (section for section in sections if section[1] == _SYMBOLS)
        start, size, names = table[4], table[5], sections[table[6]][4]
        for offset in range(start, start + size, 24):
            name, _, address, _ = self._numbers("<IIQQ", offset)
            end = self._file.index(b"\0", names + name)
            yield self._file[names + name : end].decode(), address
