"""The translated kernels on an NVIDIA GPU: against attention in float64, and against the clock.

    python bench/gpu/run.py FOLDER check --length 2048          # FOLDER is translate.py's
    python bench/gpu/run.py FOLDER check --length 77 --key-length 133 --heads 4 --kv-heads 2 --narrow
    python bench/gpu/run.py FOLDER time --batch 4 --heads 16 --length 2048
    python bench/gpu/run.py FOLDER decode --batch 32 --heads 32 --kv-heads 8 --length 1 --key-length 8192

Prints Markdown tables. `check` fails if an error is above what the dtype and the mode explain.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))

import numpy as np
from definition import Array, attention, decode, encode, error
from host import Program, Shape
from software_mac.metal.cuda import copy_speed

_LOG2E = 1.4426950408889634
_ACCEPTED = {"float32": 1e-5, "float16": 1.5e-3, "bfloat16": 1e-2}
_ACCEPTED_OF_TF32 = 2e-3  # the tensor mode rounds operands in float32 to 10 bits


class Case(NamedTuple):
    """A call's variants, translated: their entries of the manifest."""

    dtype: str
    head_dim: int
    causal: bool
    mode: str
    forward: dict[str, Any]
    backward: dict[str, Any]
    decode: dict[str, Any]

    def __str__(self) -> str:
        return f"| {self.head_dim} | {self.dtype} | {'yes' if self.causal else 'no'} | {self.mode} |"


class Tensors(NamedTuple):
    query: Array
    key: Array
    value: Array
    grad_out: Array


def cases(folder: Path, only: str) -> Iterator[Case]:
    """Those of a folder whose forward PTX has `only` in its name."""
    entries = {entry["ptx"]: entry for entry in json.loads((folder / "manifest.json").read_text())}
    for name, forward in entries.items():
        if "-forward-" in name and only in name:
            variant = forward["variant"]
            others = (entries[name.replace("-forward-", f"-{kernel}-")] for kernel in ("backward", "decode"))
            yield Case(
                variant["dtype"], variant["head_dim"], "causal" in variant["features"], forward["mode"],
                forward, *others,
            )  # fmt: skip


def tensors(shape: Shape, dtype: str) -> Tensors:
    random = np.random.default_rng(0)
    shapes = shape.queries, shape.keys, shape.keys, shape.queries
    return Tensors(*(encode(random.standard_normal(size, np.float32), dtype) for size in shapes))


def check(case: Case, shape: Shape, options: argparse.Namespace) -> bool:
    given = tensors(shape, case.dtype)
    program = Program(options.folder, case.forward, options.narrow)
    out, lse = program.forward(shape, *given[:3], repeat=0)
    program = Program(options.folder, case.backward, options.narrow)
    grads = program.backward(shape, *given[:3], out, lse, given.grad_out, repeat=0)
    program = Program(options.folder, case.decode, options.narrow)
    decoded, decoded_lse = program.decode(shape, *given[:3], repeat=0)

    expected = attention(*(decode(tensor, case.dtype) for tensor in given), case.causal)
    actual = dict(
        zip(("out", "grad_query", "grad_key", "grad_value"),
            (decode(tensor, case.dtype) for tensor in (out, *grads)), strict=True),
        lse=lse / _LOG2E,
    )  # fmt: skip
    errors = {name: error(actual[name], expected[name]) for name in expected}
    errors["decode"] = max(error(decode(decoded, case.dtype), expected["out"]),
                           error(decoded_lse / _LOG2E, expected["lse"]))  # fmt: skip
    accepted = _ACCEPTED[case.dtype]
    if case.mode == "tensor":
        accepted = max(accepted, _ACCEPTED_OF_TF32)
    good = max(errors.values()) <= accepted
    cells = " | ".join(f"{errors[name]:.1e}" for name in _CHECKED)
    print(f"{case} {shape.query_length} | {cells} | {'yes' if good else 'NO'} |", flush=True)
    return good


def time(case: Case, shape: Shape, options: argparse.Namespace) -> bool:
    given = tensors(shape, case.dtype)
    forward = Program(options.folder, case.forward, options.narrow)
    out, lse = forward.forward(shape, *given[:3], repeat=options.repeat)
    backward = Program(options.folder, case.backward, options.narrow)
    backward.backward(shape, *given[:3], out, lse, given.grad_out, repeat=options.repeat)
    times = {**forward.times, **backward.times}
    print(f"{case} " + " | ".join(f"{times[name]:.3f}" for name in _TIMED) + " |", flush=True)
    return True


def decoding(case: Case, shape: Shape, options: argparse.Namespace) -> bool:
    """And how fast it reads: bytes of key and value a second, and beside a copy that moves as many."""
    given = tensors(shape, case.dtype)
    program = Program(options.folder, case.decode, options.narrow)
    program.decode(shape, *given[:3], repeat=options.repeat)
    time = program.times["decode"]
    speed = (given.key.nbytes + given.value.nbytes) / time * 1e3
    copied = copy_speed(_COPIED_BYTES)
    print(f"{case} {time:.4f} | {speed / 1e12:.2f} TB/s | {copied / speed:.2f} |", flush=True)
    return True


_COPIED_BYTES = 1 << 28
_CHECKED = ("out", "lse", "grad_query", "grad_key", "grad_value", "decode")
_TIMED = ("forward", "prepare", "grad_query", "grad_key_value")
_COMMANDS = {
    "check": (check, ("length", *_CHECKED, "good")),
    "time": (time, _TIMED),
    "decode": (decoding, ("a call", "key and value", "times as long as their bytes")),
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("command", choices=_COMMANDS)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--kv-heads", type=int, help="as many as heads, by default")
    parser.add_argument("--length", type=int, required=True)
    parser.add_argument("--key-length", type=int, help="as long as the queries, by default")
    parser.add_argument("--only", default="", help="a part of the names of the wanted variants")
    parser.add_argument("--narrow", action="store_true", help="the kernels for rows that are not aligned")
    parser.add_argument("--repeat", type=int, default=11, help="launches of which `time` takes the median")
    options = parser.parse_args()

    run, columns = _COMMANDS[options.command]
    names = ("D", "dtype", "causal", "mode", *columns)
    print(f"| {' | '.join(names)} |\n|{'---|' * len(names)}", flush=True)
    all_good = True
    for case in cases(options.folder, options.only):
        shape = Shape(
            options.batch, options.heads, options.kv_heads or options.heads, options.length,
            options.key_length or options.length, case.head_dim,
        )  # fmt: skip
        all_good &= run(case, shape, options)
    return 0 if all_good else 1


if __name__ == "__main__":
    sys.exit(main())
