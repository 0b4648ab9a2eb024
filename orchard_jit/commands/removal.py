"""What `prune` and `clear` have in common: entries and rests go, and are accounted for."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchard_jit.commands.console import SHOWN_DIGITS, bytes_text, columns, count_text, fitted, print_json
from orchard_jit.jit import files, lock
from orchard_jit.jit.eviction import Candidate
from orchard_jit.jit.store import Store


@dataclass(frozen=True)
class Removal:
    """What is to go from one store.

    Attributes:
        store: The store.
        candidates: Its entries that are to go.
        rests: Folders beside the entries that are to go: of dead builds, failed ones, damaged entries.
        even_held: Whether entries go that a running process has loaded.

    """

    store: Store
    candidates: Sequence[Candidate]
    rests: Sequence[Path]
    even_held: bool = False

    def run(self) -> Account:
        """Remove all of it that can be."""
        gone = [each for each in self.candidates if self.store.remove(each.entry, even_held=self.even_held)]
        rest_bytes = 0
        for rest in self.rests:
            rest_bytes += files.disk_bytes(rest)
            shutil.rmtree(rest, ignore_errors=True)
        return Account(self, gone, rest_bytes, removed=True)

    def foreseen(self) -> Account:
        """What `run` would do now."""
        gone = [each for each in self.candidates if self.even_held or lock.is_free(each.entry.manifest_path)]
        return Account(self, gone, sum(map(files.disk_bytes, self.rests)), removed=False)


@dataclass(frozen=True)
class Account:
    """What became of a removal, or would.

    Attributes:
        removal: The removal.
        gone: Its candidates that are gone.
        rest_bytes: What its rests took up.
        removed: Whether it has happened.

    """

    removal: Removal
    gone: Sequence[Candidate]
    rest_bytes: int
    removed: bool

    @property
    def held(self) -> list[Candidate]:
        """The candidates that stay, because a running process has loaded them."""
        return [candidate for candidate in self.removal.candidates if candidate not in self.gone]

    @property
    def bytes(self) -> int:
        """Of everything that is gone."""
        return sum(candidate.disk_bytes for candidate in self.gone) + self.rest_bytes

    def __str__(self) -> str:
        rests = self.removal.rests
        of_builds = f" and {count_text(len(rests), 'folder')} of builds" if rests else ""
        return f"{count_text(len(self.gone), 'library')}{of_builds}, {bytes_text(self.bytes)}"

    def report(self, *, as_json: bool) -> int:
        """Say what is gone and what is not, for a person or a program. Returns 1 if something stays."""
        if as_json:
            print_json(
                {
                    "removed": self.removed,
                    "entries": [_described(candidate) for candidate in self.gone],
                    "in_use": [_described(candidate) for candidate in self.held],
                    "folders": [str(path) for path in self.removal.rests],
                    "bytes": self.bytes,
                }
            )
            return 1 if self.held else 0
        for line in columns([_row(candidate) for candidate in self.gone]):
            print(fitted(line))
        what = str(self) if self.gone or self.removal.rests else "nothing"
        print(f"{what} {'removed' if self.removed else 'would be removed'} from {self.removal.store.root}")
        if self.held:
            stay = "stays" if len(self.held) == 1 else "stay"
            print(f"{count_text(len(self.held), 'library')} {stay}: in use by running programs")
        return 1 if self.held else 0


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
