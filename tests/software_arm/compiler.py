"""Texts -> a program for 64-bit ARM, by clang and LLVM's linker out of the PyPI wheel ``ziglang``."""

from __future__ import annotations

import hashlib
import json
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import ziglang

ZIG = Path(ziglang.__file__).parent / "zig"
CACHE = Path(__file__).resolve().parents[2] / ".pytest_cache" / "software_arm"
BASE = 1 << 32
"""Where programs lie: they need not move, as each has an emulator of its own."""
LINUX, MAC = "aarch64-linux-gnu", "aarch64-macos"
_ALWAYS = ("-fPIC", "-g0", "-Wall", "-Wextra", "-Werror")
"""As for every library, nothing for a debugger, and no warning."""


@dataclass(frozen=True)
class Unit:
    """Some texts by file name, which of them to compile, how, and for what."""

    files: Mapping[str, str]
    source: str
    flags: Sequence[str]
    target: str = LINUX

    @property
    def object(self) -> Path:
        """Compiled, unless it has been."""
        return _kept([dict(self.files), *self._words], self._compile)

    def _compile(self, folder: Path) -> None:
        for name, text in self.files.items():
            (folder / name).write_text(text, encoding="utf-8")
        _run(folder, *self._words, "-o", "made")

    @property
    def _words(self) -> tuple[str, ...]:
        return ("c++", "-target", self.target, *_ALWAYS, *self.flags, "-c", self.source)


def link(*units: Unit) -> Path:
    """The program that they make up, whose functions are all in its table of symbols."""
    objects = [str(unit.object) for unit in units]
    words = ("ld.lld", f"--image-base={BASE}", "--entry=0", *objects, "-o", "made")
    return _kept(list(words), lambda folder: _run(folder, *words))


def _kept(made_of: Sequence[object], make: Callable[[Path], None]) -> Path:
    """The file "made" that `make` leaves in a folder, kept by what it is made of."""
    key = hashlib.sha256(json.dumps([version("ziglang"), *made_of]).encode()).hexdigest()[:20]
    kept = CACHE / key
    if not kept.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            make(Path(folder))
            (Path(folder) / "made").replace(kept)  # whole; another process may have been quicker
    return kept


def _run(folder: Path, *words: str) -> None:
    done = subprocess.run([str(ZIG), *words], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} failed:\n{done.stderr}")
