"""A file of block sizes: what is shipped, what tuning writes, and what a person may write.

    {"format": 1,
     "entries": [
      {"backend": "cpu", "kernel": "forward", "head_dim": [1, 128], "blocks": {"q": 256, "k": 96}},
      ...]}

An entry holds for the variants that all of its conditions fit; of several, the first one counts.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from orchard_jit import backends
from orchard_jit.errors import BlocksError
from orchard_jit.variant import Variant

FORMAT = 1

CONDITIONS = {
    "backend": "the variant's",
    "arch": "the variant's",
    "device": "the model of the machine's processor or GPU",
    "kernel": "the variant's",
    "dtype": "the variant's",
    "operand_bits": "the width in which the kernel multiplies",
    "head_dim": "[first, last] of the larger one of query's and value's",
    "features": "exactly these, with `score` for a score function",
}
"""What an entry may ask of a variant. Where a list is given in place of a text, any of it fits."""

NOTES = {
    "length": "[first, last]: the longest sequence that it was measured with",
    "reason": "why these sizes",
    "measured": "date, shape and times",
}
"""What an entry may say for people. A kernel serves calls of any length, so `length` decides nothing."""


class Table:
    """The entries of one file, in order."""

    def __init__(self, entries: Iterable[Mapping[str, Any]] = ()) -> None:
        self.entries = tuple(entries)

    @classmethod
    def read(cls, path: Path) -> Table:
        """The file's entries.

        Raises:
            BlocksError: It is no such file; the message names the entry and what is wrong with it.

        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(content, dict) or content.get("format") != FORMAT:
                raise ValueError(f'it must be an object with "format": {FORMAT} and "entries"')
            entries = content.get("entries")
            if not isinstance(entries, list):
                raise ValueError('"entries" must be a list')
            for number, entry in enumerate(entries, 1):
                if fault := _fault(entry):
                    raise ValueError(f"entry {number}: {fault}")
        except (OSError, ValueError) as error:
            raise BlocksError(f"the block sizes in {path} can't be used: {error}") from None
        return cls(entries)

    def write(self, path: Path) -> None:
        """Replace the file, so that whoever reads it meets the old or the new one, whole."""
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = ",\n".join(f"  {json.dumps(entry)}" for entry in self.entries)
        text = f'{{\n "format": {FORMAT},\n "entries": [\n{lines}\n ]\n}}\n'
        descriptor, name = tempfile.mkstemp(prefix=f"{path.name}-", dir=path.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(descriptor)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    def sizes(self, variant: Variant) -> dict[str, int]:
        """The block sizes of the first entry that fits the variant; none if none does."""
        entry = next((entry for entry in self.entries if fits(entry, variant)), None)
        return dict(entry["blocks"]) if entry else {}

    def with_first(self, entry: Mapping[str, Any]) -> Table:
        """The table with a new first entry, in place of the one that has the same conditions and length."""
        return Table((entry, *self.without(entry).entries))

    def without(self, entry: Mapping[str, Any]) -> Table:
        """The table without the entry that has the same conditions and length."""
        return Table(other for other in self.entries if _scope(other) != _scope(entry))


def fits(entry: Mapping[str, Any], variant: Variant) -> bool:
    """Whether an entry's conditions hold for a variant on this machine."""
    return all(_is_met(name, entry, variant) for name in CONDITIONS if name in entry)


def _is_met(name: str, entry: Mapping[str, Any], variant: Variant) -> bool:
    if name == "head_dim":
        first, last = entry[name]
        return bool(first <= max(variant.head_dim, variant.head_dim_v) <= last)
    if name == "features":
        return sorted(entry[name]) == features(variant)
    backend = backends.get(variant.backend)
    if name == "operand_bits":
        actual: object = backend.operand_bits(variant)
    elif name == "device":
        actual = backend.device()
    else:
        actual = getattr(variant, name)
    return holds(name, entry, actual)


def holds(name: str, entry: Mapping[str, Any], actual: object) -> bool:
    """Whether an entry asks for this, or for nothing."""
    wanted = entry.get(name, actual)
    return actual in wanted if isinstance(wanted, list) else bool(actual == wanted)


def features(variant: Variant) -> list[str]:
    """A variant's features as entries call them."""
    return sorted((*variant.features, *(("score",) if variant.score else ())))


def _scope(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: entry.get(name) for name in (*CONDITIONS, "length")}


def _fault(entry: Any) -> str | None:
    """What is wrong with an entry, if anything is."""
    if not isinstance(entry, dict):
        return "it must be an object"
    accepted = (*CONDITIONS, *NOTES, "blocks")
    if unknown := [name for name in entry if name not in accepted]:
        return f"nothing reads {', '.join(unknown)}; an entry has {', '.join(accepted)}"
    blocks = entry.get("blocks")
    if not isinstance(blocks, dict) or not all(type(size) is int and size > 0 for size in blocks.values()):
        return f'"blocks" must be positive integers by block name, got {json.dumps(blocks)}'
    for name in ("head_dim", "length"):
        if name in entry and not _is_range(entry[name]):
            return f'"{name}" must be [first, last], got {json.dumps(entry[name])}'
    if "features" in entry and not _is_texts(entry["features"]):
        return f'"features" must be a list of names, got {json.dumps(entry["features"])}'
    return None


def _is_range(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(end) is int for end in value)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)
