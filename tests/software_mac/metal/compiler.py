"""From a Metal source to a library that runs on this machine."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from . import clang
from .diagnostics import Diagnostic, MetalCompileError, errors, parse
from .ir import Module, flatten
from .lint import lint, lint_module, precompile_library
from .sites import number_sites
from .source import PreparedSource, prepare
from .tables import host_tables

_HERE = Path(__file__).parent
_LIBRARY = ("include/*", "include/msl/*")
_ENGINE = ("engine/*",)
_ENGINE_FLAGS = (
    "-std=c++17",
    "-O2",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-sanitize=all",
)
_CHECKS = ("-fsanitize=thread,bounds,integer-divide-by-zero",)
_CHECKED_OPTIMISER = (
    # The sanitizer watches accesses of 1 to 16 bytes, so the optimiser must make no wider ones. Nor may it
    # split those of vectors into their elements: they are counted as the source makes them.
    "-fsanitize=thread", "-fno-vectorize", "-fno-slp-vectorize", "-mllvm", "-disable-vector-combine",
    "-mllvm", "-tsan-instrument-func-entry-exit=0", "-mllvm", "-tsan-instrument-read-before-write=1",
)  # fmt: skip


def cache_folder() -> Path:
    """Where libraries are kept: SOFTWARE_MAC_CACHE, or a folder of the user's cache."""
    given = os.environ.get("SOFTWARE_MAC_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "software_mac"


def optimisation() -> str:
    """How much an unchecked program is optimised: SOFTWARE_MAC_OPTIMISATION is 2, or 0 for quick compiles."""
    level = os.environ.get("SOFTWARE_MAC_OPTIMISATION", "2")
    if level not in ("0", "2"):
        raise ValueError(f"SOFTWARE_MAC_OPTIMISATION={level}: accepted are 0 and 2")
    return f"-O{level}"


def check(path: Path, include: Sequence[Path] = ()) -> list[Diagnostic]:
    """Type-checks and lints a file. Returns the warnings; errors are raised."""
    source = prepare(path, include=tuple(include))
    return _check(source, cache_folder(), checked=True)[1]


def compile_library(path: Path, output: Path | None = None, checked: bool = False, fast_math: bool = False,
                    include: Sequence[Path] = (), cache: Path | None = None,
                    linted: bool = True) -> Path:  # fmt: skip
    """Compiles a file; returns the library, which is output if that is given, else a file of the cache.

    checked: with the race, bounds and initialisation checks. fast_math: as Metal compiles by default, where
    NaN and infinity may be assumed away. linted: whether what Metal forbids beyond C++ is looked for.
    """
    source = prepare(path, include=tuple(include))
    folder = cache or cache_folder()
    how = str((checked, fast_math, linted, optimisation()))
    key = _digest(source.text, str(path), how, _state("*.py", *_LIBRARY, *_ENGINE))
    library = folder / f"{path.stem}-{key}{'-checked' if checked else ''}.so"
    if not library.exists():
        module, _ = _check(source, folder, checked, fast_math, linted)
        with _workspace(folder) as work:
            program = _optimise(flatten(module, checked), Path(work), checked)
            numbered = number_sites(program, str(clang.INCLUDE))
            objects = [_assemble(numbered, Path(work), checked), *_engine(folder)]
            _publish(_link(objects, Path(work)), library)
    if output is None:
        return library
    output.write_bytes(library.read_bytes())
    return output


def compile_source(text: str, name: str = "source", checked: bool = False, fast_math: bool = False,
                   cache: Path | None = None, linted: bool = True) -> Path:  # fmt: skip
    """Compiles a source that is in memory, as newLibraryWithSource does. Messages call it name.metal."""
    folder = cache or cache_folder()
    path = folder / "sources" / _digest(text) / f"{name}.metal"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with _workspace(folder) as work:
            (Path(work) / path.name).write_text(text)
            _publish(Path(work) / path.name, path)
    return compile_library(path, None, checked, fast_math, cache=cache, linted=linted)


def front_end(
    source: PreparedSource, tables: str, flags: Sequence[str], work: Path
) -> tuple[str, list[Diagnostic]]:
    """The strict type check, and the module in the language of LLVM. Raises the errors that are found."""
    text = work / "source.cpp"
    text.write_text(source.text + tables)
    out = work / "strict.ll"
    arguments = [
        *flags, *clang.LANGUAGE, "-include", str(clang.INCLUDE / "metal_stdlib"),
        "-Xclang", "-disable-llvm-passes", "-S", "-emit-llvm", str(text), "-o", str(out),
    ]  # fmt: skip
    done = clang.run("clang", arguments, check=False)
    found = [_with_kernel(source, d) for d in parse(done.stderr, str(clang.INCLUDE))]
    if done.returncode:
        raise MetalCompileError(errors(found) or [Diagnostic("error", str(text), 1, done.stderr)])
    return out.read_text(), found


def _check(
    source: PreparedSource, folder: Path, checked: bool, fast_math: bool = False, linted: bool = True
) -> tuple[Module, list[Diagnostic]]:
    with _workspace(None) as work:
        flags = [*clang.host_target(), "-O1", "-gline-tables-only", "-fPIC", "-fvisibility=hidden"]
        flags += [*(_CHECKS if checked else ()), *(("-ffast-math",) if fast_math else ())]
        text, found = front_end(source, host_tables(source), flags, Path(work))
        if linted:
            found += [_with_kernel(source, d) for d in lint(source, Path(work), _precompiled(folder))]
    module = Module(text)
    found += [_with_kernel(source, d) for d in lint_module(module, str(clang.INCLUDE))]
    found.sort(key=lambda d: (d.path, d.line))
    if errors(found):
        raise MetalCompileError(errors(found))
    return module, found


def _with_kernel(source: PreparedSource, diagnostic: Diagnostic) -> Diagnostic:
    return replace(diagnostic, kernel=source.kernel_at(diagnostic.path, diagnostic.line))


def _optimise(program: str, work: Path, checked: bool) -> str:
    flat, out = work / "flat.ll", work / "optimised.ll"
    flat.write_text(program)
    flags = [*clang.host_target(), *(("-O1", *_CHECKED_OPTIMISER) if checked else (optimisation(),))]
    clang.run("clang", [*flags, "-x", "ir", "-S", "-emit-llvm", "-Wno-everything", str(flat), "-o", str(out)])
    return out.read_text()


def _assemble(program: str, work: Path, checked: bool) -> Path:
    numbered, out = work / "numbered.ll", work / "program.o"
    numbered.write_text(program)
    level = "-O0" if checked else optimisation()  # checked kernels run small shapes: compiling takes the time
    flags = [*clang.host_target(), level, "-Xclang", "-disable-llvm-passes", "-fPIC", "-Wno-everything"]
    clang.run("clang", [*flags, "-x", "ir", "-c", str(numbered), "-o", str(out)])
    return out


def _link(objects: Sequence[Path], work: Path) -> Path:
    """Links without the C library's files: stubs with its names record that the library needs it."""
    nothing = work / "nothing.o"
    clang.run("clang", [*clang.host_target()[:2], "-x", "c", "-c", os.devnull, "-o", str(nothing)])
    stubs = []
    for name in ("libc.so.6", "libm.so.6"):
        stubs.append(str(work / name))
        clang.run("ld.lld", ["-shared", "-soname", name, str(nothing), "-o", stubs[-1]])
    out = work / "library.so"
    clang.run(
        "ld.lld", ["-shared", "-z", "now", "--no-as-needed", *map(str, objects), *stubs, "-o", str(out)]
    )
    return out


def _precompiled(folder: Path) -> Path:
    """The precompiled header of the library, made once for each state and place of it, which it names."""
    header = folder / f"metal_stdlib-{_digest(_state(*_LIBRARY), str(_HERE))}.pch"
    if not header.exists():
        with _workspace(folder) as work:
            precompile_library(Path(work) / header.name)
            _publish(Path(work) / header.name, header)
    return header


def _engine(folder: Path) -> list[Path]:
    """The engine's objects, compiled once for each state of its sources."""
    kept = folder / f"engine-{_state(*_LIBRARY, *_ENGINE)}"
    kept.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("ZIG_GLOBAL_CACHE_DIR", str(folder / "zig"))
    os.environ.setdefault("ZIG_LOCAL_CACHE_DIR", str(folder / "zig"))
    objects = []
    for source in sorted((_HERE / "engine").glob("*.cpp")):
        objects.append(kept / f"{source.stem}.o")
        if not objects[-1].exists():
            with _workspace(folder) as work:
                made = Path(work) / "engine.o"
                clang.run(
                    "c++", [*clang.host_target()[:2], *_ENGINE_FLAGS, "-c", str(source), "-o", str(made)]
                )
                _publish(made, objects[-1])
    return objects


def _publish(made: Path, library: Path) -> None:
    made.replace(library)


def _workspace(folder: Path | None) -> tempfile.TemporaryDirectory[str]:
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(prefix="work-", dir=folder)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]


@cache
def _state(*parts: str) -> str:
    """Of the compiler and of these parts of the package: what decides what is made with them."""
    files = [p for part in parts for p in sorted(_HERE.glob(part)) if p.is_file()]
    return _digest(clang.version(), *(p.read_text() for p in files))
