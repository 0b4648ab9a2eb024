"""Which variants a run uses, for `orchard-jit prebuild`.

`ORCHARD_JIT_RECORD` names a file, to which each process of the run appends a line of JSON for each variant
that one of its calls asks for. `orchard-jit record` sets the variable and makes a list of what it finds then.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from orchard_jit.variant import Variant

VARIABLE = "ORCHARD_JIT_RECORD"


def note(variants: Sequence[Variant]) -> None:
    """Write the variants down, if the user wants that. A run never fails for its recording."""
    named = os.environ.get(VARIABLE)
    if not named:
        return
    lines = "".join(json.dumps(variant.to_json(), sort_keys=True) + "\n" for variant in variants)
    try:
        # One write in append mode: lines of several processes can't mix.
        descriptor = os.open(named, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            os.write(descriptor, lines.encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        warnings.warn(f"orchard_jit: {VARIABLE}: kernels could not be recorded: {error}", stacklevel=2)


def read(path: Path) -> Iterator[Variant]:
    """The variants of a recording, each once. A line that a full disk has cut short is passed over."""
    seen = set()
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            variant = Variant.from_json(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError):
            warnings.warn(f"orchard_jit: {path} has a line that is no variant: {line[:60]!r}", stacklevel=2)
            continue
        if variant not in seen:
            seen.add(variant)
            yield variant
