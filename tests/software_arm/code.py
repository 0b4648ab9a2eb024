"""What a compiler has made of loops: the few instructions that matter, by their bits."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from .program import Program

_MULTIPLY_ADDS = ((0xBFA0FC00, 0x0E20CC00), (0xBF80F400, 0x0F801000))
"""Masks and values of fmla: of vectors, and of a vector and an element."""
_STORES = ((0xFFC00000, 0x3D800000), (0xFFE00000, 0x3C800000), (0xFE400000, 0xAC000000))
"""Of 16-byte registers: str, stur, stp."""
_CONDITIONAL_BRANCHES = (
    (0xFF000010, 0x54000000, 19),
    (0x7E000000, 0x34000000, 19),
    (0x7E000000, 0x36000000, 14),
)
"""b.cond, cbz, tbz: and how many bits their distance has."""


@dataclass(frozen=True)
class Loop:
    """A loop without branches inside: how many of its instructions are what."""

    instructions: int
    multiply_adds: int
    stores: int


def innermost_loops(program: Program) -> Iterator[Loop]:
    """All of the program's."""
    for segment in program.segments:
        if segment.executable:
            yield from _loops([word for (word,) in struct.iter_unpack("<I", segment.content)])


def _loops(words: list[int]) -> Iterator[Loop]:
    last = -1
    for place, word in enumerate(words):
        distance = _distance(word)
        if distance is None:
            continue
        if distance < 0 and place + distance > last:
            body = words[place + distance : place + 1]
            yield Loop(len(body), _count(body, _MULTIPLY_ADDS), _count(body, _STORES))
        last = place


def _distance(word: int) -> int | None:
    """Of a conditional branch, in instructions."""
    for mask, value, bits in _CONDITIONAL_BRANCHES:
        if word & mask == value:
            field = word >> 5 & (1 << bits) - 1
            return field - (field >> bits - 1 << bits)
    return None


def _count(words: list[int], kinds: tuple[tuple[int, int], ...]) -> int:
    return sum(any(word & mask == value for mask, value in kinds) for word in words)
