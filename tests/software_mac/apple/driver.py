"""What ``software-mac-clang++`` does: hands Objective-C++ to clang, everything else to g++."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from software_mac.apple.builder import build_header
from software_mac.apple.toolchain import INCLUDE, OBJECTIVE_C, build_runtime, clang

FRAMEWORKS = ("Foundation", "Metal")
HOST_COMPILER = "g++"
# A host runs for microseconds beside its kernels' lanes; optimising it would take most of its compile.
UNOPTIMISED = "-O0"

_INCLUDE_LINE = re.compile(r"#\s*(import|include)\s*<")
_BETWEEN_INCLUDES = re.compile(r"//|$")


def command(arguments: Sequence[str]) -> list[str]:
    """The command that does what ``arguments`` ask of a Mac's clang++."""
    if any(argument.endswith(".mm") or argument == "objective-c++" for argument in arguments):
        return [*clang(), *OBJECTIVE_C, *arguments, UNOPTIMISED]
    frameworks, rest = _split_frameworks(arguments)
    if not frameworks:
        return [HOST_COMPILER, *arguments]
    runtime = build_runtime()
    return [HOST_COMPILER, *rest, str(runtime), f"-Wl,-rpath,{runtime.parent}"]


def prefix(source: str) -> str:
    """The includes that a source begins with, which are the same in all variants of a host."""
    lines = []
    for line in map(str.strip, source.splitlines()):
        if _INCLUDE_LINE.match(line):
            lines.append(line)
        elif not _BETWEEN_INCLUDES.match(line):
            break
    return "\n".join(lines)


def precompiled(source: Path, arguments: Sequence[str]) -> list[str]:
    """Options that read a source's own first includes from a header that is compiled once for all of them."""
    flags = [*clang(), *OBJECTIVE_C, *_of_the_language(source, arguments), UNOPTIMISED]
    header = build_header(prefix(source.read_text()), [*flags, "-x", "objective-c++-header"], INCLUDE)
    return ["-include-pch", str(header)]


def _of_the_language(source: Path, arguments: Sequence[str]) -> list[str]:
    """The arguments without those that are of one file alone."""
    found: list[str] = []
    words = iter(arguments)
    for word in words:
        if word in ("-o", "-MF"):
            next(words, "")
        elif word not in ("-c", "-MMD", str(source)) and not word.startswith("-DTORCH_EXTENSION_NAME="):
            found.append(word)
    return found


def _split_frameworks(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    frameworks: list[str] = []
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == "-framework":
            frameworks.append(next(words, ""))
        else:
            rest.append(word)
    unknown = [name for name in frameworks if name not in FRAMEWORKS]
    if unknown:
        raise SystemExit(f"-framework {unknown[0]}: the software Mac has {' and '.join(FRAMEWORKS)}")
    return frameworks, rest


def main() -> None:
    words = command(sys.argv[1:])
    hosts = [Path(word) for word in words if word.endswith(".mm")]
    if "-c" in words and len(hosts) == 1 and hosts[0].is_file():
        quick = [*words, *precompiled(hosts[0], sys.argv[1:])]
        done = subprocess.run(quick, stderr=subprocess.PIPE, check=False)
        if done.returncode == 0:
            sys.stderr.buffer.write(done.stderr)
            return
        # What is wrong, the plain compiler says.
    os.execvp(words[0], words)


if __name__ == "__main__":
    main()
