"""python -m software_mac.metal: check, compile and translate Metal files."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from . import MetalCompileError, check, compile_library
from .clang import ToolError
from .ptx import MODES, REGISTERS, resources, to_ptx


def main() -> int:
    options = _parser().parse_args()
    try:
        options.run(options)
    except (MetalCompileError, ToolError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="software_mac.metal", description="Metal Shading Language on Linux."
    )
    commands = parser.add_subparsers(required=True)
    checking = commands.add_parser("check", help="type-check and lint a file")
    checking.set_defaults(run=_check)
    compiling = commands.add_parser("compile", help="compile a file to a library (include/software_metal.h)")
    compiling.set_defaults(run=_compile)
    translating = commands.add_parser("ptx", help="translate a file to PTX; print what each kernel takes")
    translating.set_defaults(run=_translate)
    for each in (checking, compiling, translating):
        each.add_argument("file", type=Path)
        each.add_argument(
            "-I", dest="include", type=Path, action="append", default=[], help='where #include "…" looks'
        )
    compiling.add_argument("-o", dest="output", type=Path, help="the library; by default a file of the cache")
    compiling.add_argument(
        "--checked", action="store_true", help="with the race, bounds and initialisation checks"
    )
    compiling.add_argument("--fast-math", action="store_true", help="as Metal's default: no NaN, no infinity")
    translating.add_argument("-o", dest="output", type=Path, required=True, help="the PTX file")
    translating.add_argument(
        "--mode", choices=(*MODES, REGISTERS), default="exact", help="how 8x8 products are translated"
    )
    translating.add_argument(
        "--constant",
        type=_constant,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a function constant",
    )
    return parser


def _check(options: argparse.Namespace) -> None:
    for warning in check(options.file, options.include):
        print(warning, file=sys.stderr)


def _compile(options: argparse.Namespace) -> None:
    print(compile_library(options.file, options.output, options.checked, options.fast_math, options.include))


def _translate(options: argparse.Namespace) -> None:
    ptx = to_ptx(options.file, options.mode, dict(options.constant), options.include)
    options.output.write_text(ptx)
    for name, taken in (resources(ptx) or {}).items():
        spills = taken.spill_store_bytes + taken.spill_load_bytes
        print(f"{name}: {taken.registers} registers, {spills} bytes of spills, "
              f"{taken.shared_bytes} bytes of threadgroup memory")  # fmt: skip


def _constant(text: str) -> tuple[str, bool | int | float]:
    name, _, value = text.partition("=")
    if value in ("true", "false"):
        return name, value == "true"
    return name, float(value) if "." in value else int(value)


if __name__ == "__main__":
    sys.exit(main())
