"""What ``software-mac-clang++`` does: hands Objective-C++ to clang, everything else to g++."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from software_mac.apple.toolchain import OBJECTIVE_C, build_runtime, clang

FRAMEWORKS = ("Foundation", "Metal")
HOST_COMPILER = "g++"


def command(arguments: Sequence[str]) -> list[str]:
    """The command that does what ``arguments`` ask of a Mac's clang++."""
    if any(argument.endswith(".mm") or argument == "objective-c++" for argument in arguments):
        return [*clang(), *OBJECTIVE_C, *arguments]
    frameworks, rest = _split_frameworks(arguments)
    if not frameworks:
        return [HOST_COMPILER, *arguments]
    runtime = build_runtime()
    return [HOST_COMPILER, *rest, str(runtime), f"-Wl,-rpath,{runtime.parent}"]


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


if __name__ == "__main__":
    words = command(sys.argv[1:])
    os.execvp(words[0], words)
