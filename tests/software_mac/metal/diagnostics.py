"""Diagnostics: what is wrong with a Metal source, and where."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

_CLANG_LINE = re.compile(
    r"^(?P<path>[^:\n]+):(?P<line>\d+):\d+: (?P<kind>fatal error|error|warning|note): (?P<text>.*)$"
)
_SPACES = {"1": "device", "2": "constant", "3": "threadgroup"}


@dataclass(frozen=True)
class Diagnostic:
    severity: str  # "error" or "warning"
    path: str
    line: int
    message: str
    kernel: str | None = None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = f" (kernel '{self.kernel}')" if self.kernel else ""
        head = f"{self.path}:{self.line}: {self.severity}: {self.message}{where}"
        return "\n".join([head, *(f"    {note}" for note in self.notes)])


class MetalCompileError(Exception):
    """The source is not valid Metal. ``diagnostics`` lists every error that was found."""

    def __init__(self, diagnostics: Sequence[Diagnostic]) -> None:
        self.diagnostics = tuple(diagnostics)
        super().__init__("\n".join(str(d) for d in self.diagnostics))


def in_words_of_metal(text: str) -> str:
    """Clang's wording, with Metal's names of the address spaces."""
    text = re.sub(r"__attribute__\(\(address_space\((\d)\)\)\)", lambda m: _SPACES.get(m[1], m[0]), text)
    text = re.sub(r"const constant ", "constant ", text)
    return text.replace("_Float16", "half").replace("__bf16", "bfloat")


def parse(output: str, library: str) -> list[Diagnostic]:
    """Reads clang's messages. One about the library (headers under that path) is told at the user's line."""
    found: list[Diagnostic] = []
    for line in output.splitlines():
        match = _CLANG_LINE.match(line)
        if not match:
            continue
        path, text, at = match["path"], in_words_of_metal(match["text"]), int(match["line"])
        if match["kind"] != "note":
            severity = "warning" if match["kind"] == "warning" else "error"
            found.append(Diagnostic(severity, path, at, text))
        elif found:
            last = found[-1]
            if last.path.startswith(library) and not path.startswith(library):
                found[-1] = replace(last, path=path, line=at)
            elif not path.startswith(library):
                found[-1] = replace(last, notes=(*last.notes, f"{path}:{at}: {text}"))
    return found


def errors(diagnostics: Iterable[Diagnostic]) -> list[Diagnostic]:
    return [d for d in diagnostics if d.severity == "error"]
