"""Text -> Python's syntax tree, and errors that show a place in the text. Nothing of the text is ever run."""

from __future__ import annotations

import ast
import re

from orchard_jit.score.expression import FUNCTIONS

MAX_LENGTH = 16_000
ACCEPTED = (
    "numbers, names, + - * / // % **, comparisons, and, or, not, a if c else b, tensor[index, ...] and "
    + ", ".join(FUNCTIONS)
)

_CHARACTERS = re.compile(r"[\w .,+\-*/%()\[\]<>=!]*", re.ASCII)
_QUOTED = 60
"""Characters that are shown before and after a place."""


class Text:
    """An expression as the user wrote it, on one line.

    Args:
        what: What it is for, in messages.
        text: The expression.

    """

    def __init__(self, what: str, text: str) -> None:
        if not isinstance(text, str):
            raise TypeError(f"{what} must be an expression in a str, got {type(text).__name__}")
        self.what = what
        self._text = " ".join(text.split())

    def tree(self) -> ast.expr:
        """Its syntax.

        Raises:
            ValueError: It has none.

        """
        if len(self._text) > MAX_LENGTH:
            raise ValueError(f"{self.what} has {len(self._text)} characters; {MAX_LENGTH} are accepted")
        legal = len(_CHARACTERS.match(self._text)[0])  # type: ignore[index]  # it matches at least nothing
        if legal < len(self._text):
            raise self._error_at(
                ValueError, legal, legal + 1, f"{self._text[legal]!a} is not accepted", ACCEPTED
            )
        try:
            return ast.parse(self._text, mode="eval").body
        except SyntaxError as error:
            place = error.offset - 1 if error.lineno == 1 and error.offset else len(self._text)
            raise self._error_at(
                ValueError, place, place + 1, f"not an expression: {error.msg}", ACCEPTED
            ) from None
        except (RecursionError, MemoryError):
            raise ValueError(f"{self.what} is nested too deeply") from None

    def error(self, error: type[Exception], tree: ast.expr, message: str, accepted: str = "") -> Exception:
        """An error with the part of the text that `tree` stands for, and what is accepted there."""
        return self._error_at(
            error, tree.col_offset, tree.end_col_offset or tree.col_offset + 1, message, accepted
        )

    def _error_at(
        self, error: type[Exception], start: int, end: int, message: str, accepted: str
    ) -> Exception:
        first = max(0, start - _QUOTED)
        quoted = self._text[first : start + _QUOTED]
        carets = " " * (start - first) + "^" * max(1, min(end, first + len(quoted)) - start)
        hint = f"\nAccepted: {accepted}" if accepted else ""
        return error(f"{self.what}: {message}\n    {quoted}\n    {carets}{hint}")
