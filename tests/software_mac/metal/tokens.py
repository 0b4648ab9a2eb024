"""Tokens of preprocessed C++: a flat list that keeps every character, so that joining it gives the text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_PATTERN = re.compile(
    r"""(?P<line>^[ \t]*\#[^\n]*)          # a line marker or a pragma
      | (?P<space>\s+)
      | (?P<word>[A-Za-z_]\w*)
      | (?P<number>\.?\d(?:[eEpP][+-]|[\w.'])*)
      | (?P<string>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')
      | (?P<sign>::|->|\.\.\.|.)""",
    re.VERBOSE | re.MULTILINE | re.DOTALL,
)
_MARKER = re.compile(r'\s*#(?:line)? (\d+) "((?:[^"\\]|\\.)*)"')
_OPENING = {"(": ")", "[": "]", "{": "}", "<": ">"}
_CLOSING = {close: open_ for open_, close in _OPENING.items()}


@dataclass(slots=True)
class Token:
    kind: str
    text: str
    path: str
    line: int

    @property
    def is_code(self) -> bool:
        return self.kind not in ("space", "line")


class TokenList:
    """Tokens with the few ways of walking that the preparation of a source needs. Positions are indices."""

    def __init__(self, text: str) -> None:
        self.items: list[Token] = []
        path, line = "", 1
        for match in _PATTERN.finditer(text):
            kind = match.lastgroup or "sign"
            self.items.append(Token(kind, match[0], path, line))
            line += match[0].count("\n")
            marker = _MARKER.match(match[0]) if kind == "line" else None
            if marker:
                path, line = marker[2], int(marker[1]) - 1

    def __getitem__(self, position: int) -> Token:
        return self.items[position]

    def __len__(self) -> int:
        return len(self.items)

    def code(self, start: int = 0, end: int | None = None) -> Iterator[int]:
        """Positions of the tokens that are code."""
        for position in range(start, len(self) if end is None else end):
            if self.items[position].is_code:
                yield position

    def text(self, start: int = 0, end: int | None = None) -> str:
        return "".join(token.text for token in self.items[start:end])

    def words(self, start: int, end: int) -> str:
        """The code from start to end on one line, without line markers."""
        return " ".join("".join(t.text if t.is_code else "\n" for t in self.items[start:end]).split())

    def after(self, position: int) -> int:
        """The next position with code; the length if there is none."""
        return next(self.code(position + 1), len(self))

    def before(self, position: int) -> int:
        """The previous position with code; -1 if there is none."""
        for previous in range(position - 1, -1, -1):
            if self.items[previous].is_code:
                return previous
        return -1

    def is_at(self, position: int, *texts: str) -> bool:
        """Whether the code from position on is these tokens."""
        for text in texts:
            if not 0 <= position < len(self) or self.items[position].text != text:
                return False
            position = self.after(position)
        return True

    def closing(self, position: int) -> int:
        """The position of the bracket that closes the one at position. ``<`` counts only as the first."""
        pairs = "<>" if self.items[position].text == "<" else ""
        depth: list[str] = []
        for here in self.code(position):
            text = self.items[here].text
            if text in "([{" or (text == "<" and pairs and (not depth or depth[-1] == ">")):
                depth.append(_OPENING[text])
            elif text in ")]}" or (text == ">" and pairs and depth[-1] == ">"):
                if depth.pop() != text:
                    raise ValueError(f"line {self.items[here].line}: unbalanced '{text}'")
                if not depth:
                    return here
        raise ValueError(f"line {self.items[position].line}: '{self.items[position].text}' is never closed")

    def opening(self, position: int) -> int:
        """The position of the bracket that the one at position closes."""
        close = self.items[position].text
        depth = 0
        while position >= 0:
            text = self.items[position].text
            depth += (text == close) - (text == _CLOSING[close])
            if depth == 0:
                return position
            position = self.before(position)
        return -1

    def split(self, start: int, end: int) -> list[tuple[int, int]]:
        """The pieces between the commas from start to end; commas inside of brackets do not count."""
        pieces: list[tuple[int, int]] = []
        depth, first = 0, start
        for here in self.code(start, end):
            text = self.items[here].text
            depth += (text in "([{<") - (text in ")]}>")
            if text == "," and depth == 0:
                pieces.append((first, here))
                first = here + 1
        if any(True for _ in self.code(first, end)):
            pieces.append((first, end))
        return pieces

    def line_of(self, position: int) -> int:
        return self.items[min(position, len(self) - 1)].line
