"""Metal kernels to PTX: renders variants, translates each, and writes a manifest of what to launch and how.

    python bench/gpu/translate.py OUT                       # head dims 64 and 128, three dtypes, both modes
    python bench/gpu/translate.py OUT --head-dim 40,256 --dtype float32 --mode tensor --resources

ORCHARD_JIT_BLOCKS chooses other block sizes, as it does for a call. A thread may take 168 registers at most,
so that a multiprocessor runs three threadgroups of 128 threads of every kernel; `--registers 0` leaves it to
the driver. `--resources` asks ptxas for registers, stack and threadgroup memory, prints them and puts them
into the manifest.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))

from software_mac.metal.ptx import MODES, REGISTERS, resources, to_ptx
from software_mac.metal.source import prepare

from orchard_jit.backends.metal import groupings
from orchard_jit.jit import recipe
from orchard_jit.selection import select
from orchard_jit.variant import Variant


def variants(head_dims: list[int], dtypes: list[str], arch: str) -> Iterator[Variant]:
    """Forward, backward and decode of each, full and causal."""
    for head_dim, dtype, features, kernel in itertools.product(
        head_dims, dtypes, ((), ("causal",)), ("forward", "backward", "decode")
    ):
        yield select(
            backend="metal", arch=arch, kernel=kernel, dtype=dtype,
            head_dim=head_dim, head_dim_v=head_dim, features=features,
        )  # fmt: skip


def launches(variant: Variant, source: Path) -> dict[str, dict[str, Any]]:
    """Threads of a threadgroup, rows that it finishes, its memory and its buffers' names, by kernel."""
    buffers = {
        kernel.name.removesuffix("_wide"): [p.name for p in kernel.parameters if p.attribute == "buffer"]
        for kernel in prepare(source, {}, ()).kernels
    }
    return {
        kernel: {
            "threads": grouping.threads,
            "rows": grouping.finished,
            "columns": grouping.columns,
            "teams": grouping.simdgroups // grouping.split,
            "threadgroup_bytes": grouping.threadgroup_bytes,
            "buffers": buffers[kernel],
        }
        for kernel, grouping in groupings(variant).items()
    }


def translate(
    variant: Variant, mode: str, folder: Path, registers: int, with_resources: bool
) -> dict[str, Any]:
    """Writes the PTX of a variant and returns its entry of the manifest."""
    name = f"{variant.name}-{mode}"
    source = folder / f"{name}.metal"
    source.write_text(recipe.for_variant(variant).files[f"{variant.kernel}.metal"])
    limit = registers or None
    counts = mode == REGISTERS  # and computes nothing: ptxas gets the limit, and lower ones if it spills
    ptx = to_ptx(source, mode, registers=None if counts else limit)
    (folder / f"{name}.ptx").write_text(ptx)
    taken = resources(ptx, registers=limit if counts else None) if with_resources else None
    return {
        "ptx": f"{name}.ptx",
        "mode": mode,
        "variant": variant.to_json(),
        "kernels": launches(variant, source),
        "resources": {kernel: vars(used) for kernel, used in (taken or {}).items()},
    }


def report(entry: dict[str, Any]) -> None:
    """A line for each kernel with blocks. A stack means spills: no array is indexed at run time."""
    for kernel, launch in entry["kernels"].items():
        for width in ("wide", "narrow"):
            used = entry["resources"].get(f"{kernel}_{width}")
            if used and kernel != "prepare":
                print(
                    f"{entry['ptx']:52} {kernel + '_' + width:21} {used['registers']:3} registers, stack "
                    f"{used['stack_bytes']:4} bytes, threadgroup {used['shared_bytes']:5} bytes"
                    f" (predicted {launch['threadgroup_bytes']})",
                    flush=True,
                )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--head-dim", default="64,128")
    parser.add_argument("--dtype", default="float32,float16,bfloat16")
    parser.add_argument("--mode", default=",".join(MODES))
    parser.add_argument("--arch", default="apple9", help="the GPU family to render for")
    parser.add_argument("--registers", type=int, default=168, help="of a thread, at most; 0: any number")
    parser.add_argument("--resources", action="store_true", help="run ptxas on each")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()

    options.folder.mkdir(parents=True, exist_ok=True)
    wanted = variants(
        [int(word) for word in options.head_dim.split(",")], options.dtype.split(","), options.arch
    )
    work = list(itertools.product(wanted, options.mode.split(",")))

    def entry(wanted: tuple[Variant, str]) -> dict[str, Any]:
        return translate(*wanted, options.folder, options.registers, options.resources)

    with ThreadPoolExecutor(options.jobs) as pool:
        entries = list(pool.map(entry, work))
    for translated in entries:
        report(translated)
    (options.folder / "manifest.json").write_text(json.dumps(entries, indent=1) + "\n")


if __name__ == "__main__":
    main()
