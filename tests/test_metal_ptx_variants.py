"""The shipped block table: its kernels translate to PTX and take the threadgroup memory that we predict."""

from __future__ import annotations

import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from software_mac.metal import Library, compile_library
from software_mac.metal.ptx import REGISTERS, resources, to_ptx

from orchard_jit.backends.metal import groupings
from orchard_jit.jit import recipe
from orchard_jit.selection import select
from orchard_jit.variant import Variant

PASSES = ("forward", "backward", "decode")
ROWS = (32, 64, 80, 96, 128, 256, 512)  # of the block table, by their largest head dim
APPLE_REGISTERS = 128
CORE_BYTES = 32 * 1024
SHARED = re.compile(r"\.shared .* _ZZ\d+(\w+?)ILb[01]E\w*\[(\d+)\];")


def variant(kernel: str, dtype: str, head_dim: int, *features: str) -> Variant:
    return select(
        backend="metal", arch="apple9", kernel=kernel, dtype=dtype,
        head_dim=head_dim, head_dim_v=head_dim, features=features,
    )  # fmt: skip


def source(of: Variant, folder: Path) -> Path:
    path = folder / f"{of.name}.metal"
    path.write_text(recipe.for_variant(of).files[f"{of.kernel}.metal"])
    return path


def predicted(of: Variant) -> dict[str, int]:
    """Threadgroup bytes of each kernel."""
    return {kernel: grouping.threadgroup_bytes for kernel, grouping in groupings(of).items()}


def test_every_row_of_the_table_takes_the_predicted_threadgroup_memory(tmp_path: Path) -> None:
    variants = [variant(k, d, row) for k in PASSES for d in ("float16", "float32") for row in ROWS]
    with ThreadPoolExecutor(2) as pool:
        texts = pool.map(lambda v: to_ptx(source(v, tmp_path), "tensor"), variants)
    for each, ptx in zip(variants, texts, strict=True):
        found: Counter[str] = Counter()
        for kernel, size in SHARED.findall(ptx):
            found[kernel] += int(size)
        # The wide and the narrow instance have an array each.
        assert found == {k: 2 * size for k, size in predicted(each).items() if size}, each


def test_two_threadgroups_fit_into_a_core() -> None:
    sizes = [predicted(variant(k, d, row)) for k in PASSES for d in ("float16", "float32") for row in ROWS]
    assert max(size for each in sizes for size in each.values()) <= CORE_BYTES // 2


@pytest.mark.parametrize("kernel, head_dim", [("forward", 128), ("backward", 96)])
def test_the_engine_reports_the_predicted_threadgroup_memory(
    kernel: str, head_dim: int, tmp_path: Path
) -> None:
    each = variant(kernel, "float32", head_dim)
    kernels = Library(compile_library(source(each, tmp_path))).kernels
    expected = predicted(each)
    assert any(expected.values())
    for name, size in expected.items():
        of_kernel = [
            each for kernel, each in kernels.items() if re.fullmatch(f"{name}(_wide|_narrow)?", kernel)
        ]
        assert of_kernel
        assert all(each.static_threadgroup_bytes == size for each in of_kernel)


@pytest.mark.parametrize(
    ("kernel", "dtype", "head_dim"),
    [
        ("forward", "float32", 64),
        ("forward", "float16", 128),
        ("backward", "float16", 64),
        ("backward", "float16", 128),
        ("backward", "float32", 64),
        ("backward", "float32", 80),
        ("backward", "float32", 128),
        ("backward", "bfloat16", 96),
        ("decode", "float32", 128),
    ],
)
def test_128_registers_are_enough(kernel: str, dtype: str, head_dim: int, tmp_path: Path) -> None:
    """With more of them, fewer threads fit into a core of Apple's GPUs."""
    each = variant(kernel, dtype, head_dim, "causal")
    taken = resources(to_ptx(source(each, tmp_path), REGISTERS), registers=APPLE_REGISTERS)
    if taken is None:
        pytest.skip("there is no ptxas")
    # Spills lie on the stack, and nothing else does: no array is indexed at run time.
    assert {name: used.stack_bytes for name, used in taken.items()} == dict.fromkeys(taken, 0)
    assert max(used.registers for used in taken.values()) <= APPLE_REGISTERS
    for name, size in predicted(each).items():
        if f"{name}_wide" in taken:
            assert taken[f"{name}_wide"].shared_bytes == size


@pytest.mark.parametrize("mode", ["exact", "tensor"])
def test_tails_and_masks_translate(mode: str, tmp_path: Path) -> None:
    ptx = to_ptx(source(variant("forward", "bfloat16", 40, "causal"), tmp_path), mode)
    assert set(re.findall(r"\.entry (\w+)\(", ptx)) == {"forward_wide", "forward_narrow"}
    assert ".extern .func" not in ptx
    assert ("mma.sync" in ptx) == (mode == "tensor")
