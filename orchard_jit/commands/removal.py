"""What `prune` and `clear` have in common: entries and rests go, and are accounted for."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from orchard_jit.commands.console import SHOWN_DIGITS, bytes_text, columns, count_text, fitted, print_json
from orchard_jit.jit import lock
from orchard_jit.jit import manifest as manifests
from orchard_jit.jit.entry import disk_bytes
from orchard_jit.jit.eviction import Candidate
from orchard_jit.jit.store import Store


@dataclass
class Removal:
    """What is to go from one store, and what has gone.

    Attributes:
        store: The store.
        candidates: Its entries that are to go.
        rests: Folders beside the entries that are to go: of dead builds, failed ones, damaged entries.
        even_held: Whether entries go that a running process has loaded.
        gone: The candidates that are gone, or would be.
        rest_bytes: What the rests take up.

    """

    store: Store
    candidates: Sequence[Candidate]
    rests: Sequence[Path]
    even_held: bool = False
    gone: list[Candidate] = field(default_factory=list)
    rest_bytes: int = 0

    def run(self, dry_run: bool) -> None:
        """Remove, or only find out what could be."""
        for candidate in self.candidates:
            if self._would_go(candidate) if dry_run else self._goes(candidate):
                self.gone.append(candidate)
        for rest in self.rests:
            self.rest_bytes += disk_bytes(rest)
            if not dry_run:
                shutil.rmtree(rest, ignore_errors=True)

    @property
    def bytes(self) -> int:
        """Of everything that is gone."""
        return sum(candidate.disk_bytes for candidate in self.gone) + self.rest_bytes

    def __str__(self) -> str:
        rests = f" and {count_text(len(self.rests), 'folder')} of builds" if self.rests else ""
        return f"{count_text(len(self.gone), 'library')}{rests}, {bytes_text(self.bytes)}"

    def _goes(self, candidate: Candidate) -> bool:
        return self.store.remove(candidate.entry, even_held=self.even_held)

    def _would_go(self, candidate: Candidate) -> bool:
        return self.even_held or lock.is_free(candidate.entry.directory / manifests.FILE)


def report(removal: Removal, *, dry_run: bool, as_json: bool) -> None:
    """Say what is gone and what is not, for a person or a program."""
    held = [candidate for candidate in removal.candidates if candidate not in removal.gone]
    if as_json:
        print_json(
            {
                "removed": not dry_run,
                "entries": [_described(candidate) for candidate in removal.gone],
                "in_use": [_described(candidate) for candidate in held],
                "folders": [str(path) for path in removal.rests],
                "bytes": removal.bytes,
            }
        )
        return
    for line in columns([_row(candidate) for candidate in removal.gone]) if removal.gone else ():
        print(fitted(line))
    print(f"{removal} {'would be removed' if dry_run else 'removed'} from {removal.store.root}")
    if held:
        print(f"{count_text(len(held), 'library')} in use by running programs stay")


def _row(candidate: Candidate) -> tuple[str, ...]:
    entry = candidate.entry
    return (
        entry.key[:SHOWN_DIGITS],
        f"{bytes_text(candidate.disk_bytes):>8}",
        candidate.reason,
        entry.title,
    )


def _described(candidate: Candidate) -> dict[str, object]:
    entry = candidate.entry
    return {
        "key": entry.key,
        "name": entry.title,
        "shelf": entry.shelf,
        "bytes": candidate.disk_bytes,
        "reason": candidate.reason,
    }
