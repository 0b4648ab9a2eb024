"""``python -m software_mac.apple.shader macros source [--checked] [--fast-math]`` compiles Metal source.

Prints the path of the shared library. On an error, exits with 1 and the compiler's words on standard error.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from software_mac.apple.builder import cache_root, fingerprint
from software_mac.metal import MetalCompileError, compile_library

NAME = "program_source"  # what Apple's compiler calls a source that came as a string


def compiled(macros: str, source: str, *, checked: bool, fast_math: bool) -> Path:
    """The shared library of ``source``. The compiler keeps what it has compiled, by path and content."""
    folder = cache_root() / "sources" / fingerprint([], [macros, source])
    file = folder / f"{NAME}.metal"
    folder.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        fresh = folder / f"{NAME}.{id(file)}"
        fresh.write_text(f"{macros}#line 1\n{source}" if macros else source)
        fresh.rename(file)
    try:
        return compile_library(file, checked=checked, fast_math=fast_math)
    except MetalCompileError as error:
        raise SystemExit(str(error).replace(str(file), NAME)) from None


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("macros", type=Path)
    parser.add_argument("source", type=Path)
    parser.add_argument("--checked", action="store_true")
    parser.add_argument("--fast-math", action="store_true")
    options = parser.parse_args()
    macros, source = options.macros.read_text(), options.source.read_text()
    sys.stdout.write(str(compiled(macros, source, checked=options.checked, fast_math=options.fast_math)))


if __name__ == "__main__":
    main()
