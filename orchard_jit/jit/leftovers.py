"""What is left in a store beside its entries, and when it goes.

What a dead process has left in `.staging` goes as soon as anybody builds. Entries that were set aside and
builds that failed are kept to be looked at: the last few of each.
"""

from __future__ import annotations

import platform
import re
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from orchard_jit.jit import lock

_KEPT = 10
_HOST = re.sub(r"\W", "_", platform.node())


def staging_name(key: str) -> str:
    """How the names of staging folders begin: with what `of_the_dead` asks about them."""
    return f"{key}-{_HOST}-"


def of_the_dead(staging: Path, locks: Path) -> list[Path]:
    """The staging folders whose builders have ended: a living one holds the lock of its key.

    Those of other machines are passed over, because locks on a network mount may not reach that far.
    """
    return [
        folder
        for folder in staging.glob(f"*-{_HOST}-*")
        if lock.is_free(locks / folder.name.partition("-")[0])
    ]


def keep(folder: Path, shelf: Path) -> Path:
    """Move a folder to others of its kind, of which the last few are kept; returns where it is now."""
    place = Path(tempfile.mkdtemp(prefix=f"{folder.name.partition('-')[0]}-", dir=shelf))
    kept = folder.rename(place / "entry")
    for old in sorted(shelf.iterdir(), key=_changed)[:-_KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return kept


def _changed(path: Path) -> float:
    with suppress(OSError):
        return path.stat().st_mtime
    return 0.0
