"""The command line `orchard-jit`: parses and dispatches. The work is in `orchard_jit.commands`.

A verb is a module with `DESCRIPTION`, `EXAMPLE`, `add_options(verb)` and `run(**options) -> int`. Only
the one that is asked for is imported, so that those which need no PyTorch work where it does not.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import Any

import orchard_jit
from orchard_jit.commands.console import UsageError
from orchard_jit.errors import OrchardError

_VERBS = {
    "smoke": ("smoke", "compile, check and train a little, step by step"),
    "doctor": ("doctor", "find out why something does not work"),
    "bench": ("bench", "time attention, ours and PyTorch's"),
    "tune": ("tune", "find the fastest block sizes for a call"),
    "prebuild": ("prebuild", "compile kernels ahead of their first call"),
    "record": ("record", "write down which kernels a program uses, for prebuild"),
    "export": ("exporting", "what is compiled, as an archive for other machines"),
    "import": ("importing", "take such an archive in"),
    "wheel": ("wheel", "what is compiled, as a package to install"),
    "list": ("listing", "what is compiled"),
    "show": ("show", "everything about one compiled library"),
    "verify": ("verify", "is everything that is compiled whole?"),
    "prune": ("prune", "remove what is stale or not used"),
    "clear": ("clear", "remove what is compiled"),
    "render": ("render", "the source of a kernel"),
}
"""Each verb's module in `orchard_jit.commands`, and its line in the overview."""

_DESCRIPTION = """\
Flash attention for PyTorch, compiled at the first call: check this machine,
compile ahead of the first call, look at what is compiled.
"""
_VARIABLES = """\
environment:
  ORCHARD_JIT_CACHE_DIR      where compiled kernels are kept
  ORCHARD_JIT_CACHE_MAX_SIZE what they may take up there (4 GB)
  ORCHARD_JIT_PREBUILT_DIRS  kernels compiled elsewhere, searched first
  ORCHARD_JIT_OFFLINE=1      never compile; a missing kernel is an error
  ORCHARD_JIT_RECORD         a file to write down used kernels in
  ORCHARD_JIT_QUIET=1        don't tell about compiling on stderr
  ORCHARD_JIT_CXXFLAGS, CXX  flags to add for the compiler, and another one
  ORCHARD_JIT_BLOCKS         a file of block sizes, in place of all others
  ORCHARD_JIT_TUNED          the file that tune writes

exit codes:
  0 good, 1 something fell short, 2 bad usage

example: orchard-jit smoke
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code: 0 good, 1 something fell short.

    Raises:
        SystemExit: With code 2, if the arguments can't be used; with 0, after `--help` and `--version`.

    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    options = vars(_parser(words).parse_args(words))
    verb: argparse.ArgumentParser = options.pop("verb")
    run: Callable[..., int] = options.pop("run")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(
                errors="replace"
            )  # a terminal without Unicode gets question marks, not a traceback
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _print_warning
            code = run(**options)
            sys.stdout.flush()
            return code
    except UsageError as error:
        verb.error(str(error))
    except BrokenPipeError:  # `orchard-jit list | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OrchardError, NotImplementedError, OSError) as error:
        print(f"orchard-jit: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("orchard-jit: interrupted", file=sys.stderr)
        return 130


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """The parser, with the options of that verb alone which the words name."""
    parser = argparse.ArgumentParser(
        prog="orchard-jit",
        description=_DESCRIPTION,
        epilog=_VARIABLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"orchard_jit {orchard_jit.__version__}")
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    asked = next((word for word in words if not word.startswith("-")), None)
    for name, (module, summary) in _VERBS.items():
        verb = verbs.add_parser(
            name, help=summary, formatter_class=partial(argparse.HelpFormatter, max_help_position=28)
        )
        if name == asked:
            _fill(verb, import_module(f"orchard_jit.commands.{module}"))
    return parser


def _fill(verb: argparse.ArgumentParser, command: Any) -> None:
    verb.description = command.DESCRIPTION
    verb.epilog = f"example: {command.EXAMPLE}"
    command.add_options(verb)
    verb.set_defaults(verb=verb, run=command.run)


def _print_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"orchard-jit: warning: {str(message).removeprefix('orchard_jit: ')}", file=sys.stderr)
