"""The command line `orchard-jit`: parses and dispatches. The work is in `orchard_jit.commands`."""

from __future__ import annotations

import argparse
import io
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import orchard_jit
from orchard_jit.commands import bench, clear, doctor, listing, prebuild, render, show, smoke, tune, values
from orchard_jit.commands.calls import MASKS
from orchard_jit.commands.console import UsageError
from orchard_jit.errors import OrchardError
from orchard_jit.tuning import PASSES
from orchard_jit.variant import BACKENDS, DTYPES, FEATURES, KERNELS

_DESCRIPTION = """\
Flash attention for PyTorch, compiled at the first call: check this machine,
compile ahead of the first call, look at what is compiled.
"""
_VARIABLES = """\
environment:
  ORCHARD_JIT_CACHE_DIR      where compiled kernels are kept
  ORCHARD_JIT_PREBUILT_DIRS  kernels compiled elsewhere, searched first
  ORCHARD_JIT_OFFLINE=1      never compile; a missing kernel is an error
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
    options = vars(_parser().parse_args(arguments))
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="orchard-jit",
        description=_DESCRIPTION,
        epilog=_VARIABLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"orchard_jit {orchard_jit.__version__}")
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_smoke(verbs)
    _add_doctor(verbs)
    _add_bench(verbs)
    _add_tune(verbs)
    _add_prebuild(verbs)
    _add_list(verbs)
    _add_show(verbs)
    _add_clear(verbs)
    _add_render(verbs)
    return parser


def _add_smoke(verbs: Any) -> None:
    verb = _verb(
        verbs,
        "smoke",
        smoke.run,
        "compile, check and train a little, step by step",
        "Toolchain, render, build, load, numerics, gradients, training: each a line with its time. Outputs "
        "and gradients are compared with attention in float64 and with PyTorch, and a small GPT is trained "
        "with both attentions side by side.",
        "orchard-jit smoke --clean",
    )
    verb.add_argument("--device", choices=("cpu", "mps"), default="cpu", help="where to run (default: cpu)")
    verb.add_argument("--clean", action="store_true", help="compile everything anew, into a temporary cache")
    _add_json(verb)


def _add_doctor(verbs: Any) -> None:
    verb = _verb(
        verbs,
        "doctor",
        doctor.run,
        "find out why something does not work",
        "Check Python, PyTorch, compiler, ninja, cache, prebuilt folders, block sizes, environment "
        "variables, processor, MPS and the operators; say the fix of whatever is wrong. Nothing is changed.",
        "orchard-jit doctor",
    )
    _add_json(verb)


def _add_bench(verbs: Any) -> None:
    verb = _verb(
        verbs,
        "bench",
        bench.run,
        "time attention, ours and PyTorch's",
        "Forward and backward over a grid of calls, ours and PyTorch's in turn, with their ratio and our "
        "share of the peak, which is measured too. On mps also against the CPU, and against the mode that "
        "clones tensors.",
        "orchard-jit bench --head-dim 64 --length 512,2048 --dtype float32",
    )
    verb.add_argument("--device", choices=("cpu", "mps"), default="cpu", help="where to run (default: cpu)")
    verb.add_argument(
        "--head-dim",
        type=values.some(values.head_dim),
        default=[32, 64, 128],
        metavar="D[,D]",
        help="(default: 32,64,128)",
    )
    verb.add_argument(
        "--length",
        type=values.some(values.positive),
        default=[128, 512, 2048],
        metavar="S[,S]",
        help="of queries and keys (default: 128,512,2048)",
    )
    verb.add_argument(
        "--dtype",
        type=values.one_of(DTYPES),
        default=["float32", "bfloat16", "float16"],
        metavar="T[,T]",
        help=f"{', '.join(DTYPES)} (default: all but float64)",
    )
    verb.add_argument("--causal", choices=("yes", "no", "both"), default="both", help="(default: both)")
    verb.add_argument(
        "--mask",
        type=values.one_of(MASKS),
        default=["none"],
        metavar="M[,M]",
        help=f"{', '.join(MASKS)} (default: none)",
    )
    verb.add_argument("--batch", type=values.positive, default=1, metavar="B", help="(default: 1)")
    verb.add_argument("--heads", type=values.positive, default=8, metavar="H", help="(default: 8)")
    verb.add_argument("--kv-heads", type=values.positive, metavar="H", help="(default: as many as heads)")
    verb.add_argument(
        "--threads",
        type=values.some(values.positive),
        metavar="N[,N]",
        help="of the CPU (default: as many as PyTorch takes)",
    )
    which = verb.add_mutually_exclusive_group()
    which.add_argument("--forward", action="store_true", help="the forward alone")
    which.add_argument("--backward", action="store_true", help="the backward alone")
    verb.add_argument(
        "--rounds",
        type=values.positive,
        default=7,
        metavar="N",
        help="timings of each (default: %(default)s)",
    )
    verb.add_argument("--plot", type=Path, metavar="FILE", help="draw the ratios; needs matplotlib")
    verb.add_argument(
        "--json", type=Path, metavar="FILE", dest="json_file", help="also write JSON; - prints it alone"
    )


def _add_tune(verbs: Any) -> None:
    verb = _verb(
        verbs,
        "tune",
        tune.run,
        "find the fastest block sizes for a call",
        "Compile the kernels of a call in other block sizes, check their results, time them in turn, and "
        "keep the best for this model of processor or GPU, if it gains more than the noise.",
        "orchard-jit tune --shape 1,8,1024,1024,64 --dtype float32 --causal --budget 60s",
    )
    verb.add_argument(
        "--shape",
        type=values.shape,
        required=True,
        metavar="B,H,Sq,Sk,D",
        help="batch, heads, queries, keys, head dim",
    )
    verb.add_argument("--dtype", choices=DTYPES, default="float32", metavar="T", help="(default: float32)")
    verb.add_argument("--kv-heads", type=values.positive, metavar="H", help="(default: as many as heads)")
    verb.add_argument("--causal", action="store_true", help="with a causal mask")
    verb.add_argument("--device", choices=("cpu", "mps"), default="cpu", help="where to run (default: cpu)")
    verb.add_argument(
        "--kernel",
        type=values.one_of(PASSES),
        default=list(PASSES),
        metavar="K[,K]",
        help=f"{', '.join(PASSES)} (default: both)",
    )
    verb.add_argument(
        "--budget", type=values.seconds, default=60.0, metavar="TIME", help="for everything (default: 60s)"
    )
    verb.add_argument("--dry-run", action="store_true", help="keep nothing")
    verb.add_argument("--plot", type=Path, metavar="FILE", help="draw the times; needs matplotlib")
    _add_json(verb)


def _add_prebuild(verbs: Any) -> None:
    verb = _verb(
        verbs,
        "prebuild",
        prebuild.run,
        "compile kernels ahead of their first call",
        "Compile the operators and every combination of the given values that is not in the cache yet. The "
        "cache folder can then be copied to machines without a compiler; name it there in "
        "ORCHARD_JIT_PREBUILT_DIRS.",
        "orchard-jit prebuild --head-dim 64,128 --dtype bfloat16,float32 --causal yes",
    )
    verb.add_argument(
        "--head-dim",
        type=values.some(values.head_dim),
        default=[],
        metavar="D[,D]",
        help="head dim of query and key",
    )
    verb.add_argument(
        "--head-dim-v",
        type=values.some(values.head_dim),
        default=[],
        metavar="D[,D]",
        help="head dim of value (default: the same)",
    )
    verb.add_argument(
        "--dtype",
        type=values.one_of(DTYPES),
        default=[],
        metavar="T[,T]",
        help=f"{', '.join(DTYPES)} (default: all)",
    )
    verb.add_argument(
        "--causal", choices=("yes", "no", "both"), default="both", help="with a causal mask (default: both)"
    )
    verb.add_argument(
        "--kernel",
        type=values.one_of(KERNELS),
        default=["forward", "backward"],
        metavar="K[,K]",
        help=f"{', '.join(KERNELS)} (default: forward and backward)",
    )
    _add_features(verb)
    _add_target(verb)
    which = verb.add_mutually_exclusive_group()
    which.add_argument(
        "--operators", action="store_true", help="the operators, and nothing else without --head-dim"
    )
    which.add_argument("--kernels-only", action="store_true", help="leave the operators out")
    verb.add_argument(
        "--jobs",
        type=values.positive,
        default=os.cpu_count() or 1,
        metavar="N",
        help="how many to compile at a time (default: %(default)s)",
    )
    verb.add_argument("--dry-run", action="store_true", help="list, compile nothing")
    _add_json(verb)


def _add_list(verbs: Any) -> None:
    verb = _verb(
        verbs,
        "list",
        listing.run,
        "what is compiled",
        "Every library in the cache and in the prebuilt folders: key, size, age, seconds that it took, name.",
        "orchard-jit list",
    )
    _add_json(verb)


def _add_show(verbs: Any) -> None:
    verb = _verb(
        verbs,
        "show",
        show.run,
        "everything about one compiled library",
        "The manifest of one library: what it is, its flags, compiler and files, and whether it is whole.",
        "orchard-jit show 6476ef",
    )
    verb.add_argument("entry", metavar="KEY_OR_NAME", help="the beginning of its key, or its name")
    _add_json(verb)


def _add_clear(verbs: Any) -> None:
    verb = _verb(
        verbs,
        "clear",
        clear.run,
        "remove what is compiled",
        "Remove every library from the cache, after a question. Prebuilt folders are left alone, and "
        "programs that run now are not disturbed.",
        "orchard-jit clear --dry-run",
    )
    verb.add_argument("--yes", action="store_true", help="ask nothing")
    verb.add_argument("--dry-run", action="store_true", help="say what would be removed")
    _add_json(verb)


def _add_render(verbs: Any) -> None:
    verb = _verb(
        verbs,
        "render",
        render.run,
        "the source of a kernel",
        "Print the sources of one kernel as the compiler would get them.",
        "orchard-jit render --kernel forward --dtype float32 --head-dim 64 --file variant.h",
    )
    verb.add_argument("--kernel", choices=KERNELS, required=True, help="which pass")
    verb.add_argument("--dtype", choices=DTYPES, required=True, metavar="T", help=", ".join(DTYPES))
    verb.add_argument(
        "--head-dim", type=values.head_dim, required=True, metavar="D", help="head dim of query and key"
    )
    verb.add_argument(
        "--head-dim-v", type=values.head_dim, metavar="D", help="head dim of value (default: the same)"
    )
    verb.add_argument("--causal", action="store_true", help="with a causal mask")
    _add_features(verb)
    _add_target(verb)
    where = verb.add_mutually_exclusive_group()
    where.add_argument("--file", metavar="NAME", help="only this file")
    where.add_argument(
        "--out", type=Path, metavar="DIR", help="write the files there, print the key and the flags"
    )
    _add_json(verb)


def _verb(
    verbs: Any, name: str, run: Callable[..., int], summary: str, description: str, example: str
) -> argparse.ArgumentParser:
    """A subparser. The names of its options are the parameters of `run`."""
    verb: argparse.ArgumentParser = verbs.add_parser(
        name,
        help=summary,
        description=description,
        epilog=f"example: {example}",
        formatter_class=partial(argparse.HelpFormatter, max_help_position=28),
    )
    verb.set_defaults(verb=verb, run=run)
    return verb


def _add_json(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--json", action="store_true", dest="as_json", help="print JSON for a program to read")


def _add_features(verb: argparse.ArgumentParser) -> None:
    others = [name for name in FEATURES if name != "causal"]
    verb.add_argument(
        "--features",
        type=values.one_of(others),
        default=[],
        metavar="F[,F]",
        help=f"with {', '.join(others)}",
    )
    verb.add_argument("--score", default="", metavar="SPEC", help="with a score function: ScoreMod.spec")
    verb.add_argument(
        "--blocks",
        type=values.blocks,
        default={},
        metavar="NAME=N[,…]",
        help="in these block sizes, as q=64,k=32",
    )


def _add_target(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--backend", choices=BACKENDS, default="cpu", help="what the kernel runs on (default: cpu)"
    )
    verb.add_argument("--arch", help="instruction set or GPU family (default: this machine's)")


def _print_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"orchard-jit: warning: {str(message).removeprefix('orchard_jit: ')}", file=sys.stderr)
