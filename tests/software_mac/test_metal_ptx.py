# ruff: noqa: E501  (Metal sources and tables of cases read best unwrapped)
"""The translation to PTX: it is made, ptxas accepts it, and on an NVIDIA GPU it computes what the engine computes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from software_mac.metal import Library, MetalCompileError, compile_library
from software_mac.metal.cuda import CudaError, CudaModule, Launch
from software_mac.metal.ptx import MODES, resources, to_ptx

SOURCE = """
#include <metal_stdlib>
#include <metal_simdgroup_matrix>
using namespace metal;

struct Shape { uint rows, columns; };
constant bool negate [[function_constant(0)]];

// One simdgroup for each 8x8 block: out = (a * a + eye), row sums beside it.
kernel void blocks(device const float* a [[buffer(0)]], device float* out [[buffer(1)]], device float* sums [[buffer(2)]],
                   constant Shape& shape [[buffer(3)]], threadgroup float* shared [[threadgroup(0)]],
                   uint2 group [[threadgroup_position_in_grid]], uint simdgroup [[simdgroup_index_in_threadgroup]],
                   uint lane [[thread_index_in_simdgroup]]) {
  threadgroup float tile[4][64];
  const uint row = (group.y * 4 + simdgroup) * 8, column = group.x * 8;
  simdgroup_float8x8 block, result(1.0f);
  simdgroup_load(block, a + row * shape.columns + column, shape.columns);
  simdgroup_multiply_accumulate(result, block, block, result);
  simdgroup_store(result, tile[simdgroup]);
  simdgroup_barrier(mem_flags::mem_threadgroup);
  float2 pair = float2(tile[simdgroup][2 * lane], tile[simdgroup][2 * lane + 1]);
  shared[simdgroup * 32 + lane] = simd_sum(pair.x + pair.y);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (negate) pair = -pair;
  device float2* place = (device float2*)(out + (row + lane / 4) * shape.columns + column + lane % 4 * 2);
  *place = pair;
  sums[(group.y * shape.columns / 8 + group.x) * 128 + simdgroup * 32 + lane] = shared[(3 - simdgroup) * 32 + lane];
}
"""
SHAPE = (64, 32)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "blocks.metal"
    path.write_text(SOURCE)
    return path


def arrays() -> dict[int, np.ndarray[Any, Any]]:
    a = (
        np.random.default_rng(0).integers(-3, 4, SHAPE).astype(np.float32)
    )  # products of small integers are exact in tf32
    return {
        0: a,
        1: np.zeros(SHAPE, np.float32),
        2: np.zeros(SHAPE[0] * SHAPE[1] // 2, np.float32),
        3: np.array(SHAPE, np.uint32),
    }


@pytest.mark.parametrize("mode", MODES)
def test_translation(mode: str, source: Path) -> None:
    ptx = to_ptx(source, mode, {"negate": True})
    assert re.search(r"\.visible \.entry blocks\(", ptx)
    assert ".extern .func" not in ptx
    assert ("mma.sync" in ptx) == (mode == "tensor")
    taken = resources(ptx)
    if taken is not None:
        assert taken["blocks"].shared_bytes == 1024
        assert 8 < taken["blocks"].registers < 128
        assert taken["blocks"].spill_store_bytes == taken["blocks"].spill_load_bytes == 0


def test_function_constants_need_values(source: Path) -> None:
    with pytest.raises(ValueError, match="need a value: negate"):
        to_ptx(source)


def test_a_function_without_an_instruction_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "k.metal"
    path.write_text(
        "#include <metal_stdlib>\nkernel void k(device float* x [[buffer(0)]]) { x[0] = metal::asin(x[0]); }\n"
    )
    with pytest.raises(MetalCompileError, match="no instruction for asin"):
        to_ptx(path)


def test_the_command_line(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "blocks.ptx"
    command = [
        sys.executable,
        "-m",
        "software_mac.metal",
        "ptx",
        str(source),
        "-o",
        str(out),
        "--mode",
        "tensor",
    ]
    tests = Path(__file__).parent.parent
    failed = subprocess.run(command, cwd=tests, capture_output=True, text=True)
    assert failed.returncode == 1
    assert "need a value: negate" in failed.stderr
    subprocess.run([*command, "--constant", "negate=true"], cwd=tests, check=True)
    assert "mma.sync" in out.read_text()


@pytest.mark.parametrize("mode", MODES)
def test_a_gpu_computes_what_the_engine_computes(mode: str, source: Path) -> None:
    try:
        module = CudaModule(to_ptx(source, mode, {"negate": True}))
    except CudaError as error:
        pytest.skip(str(error))
    on_gpu, on_engine = arrays(), arrays()
    groups = (SHAPE[1] // 8, SHAPE[0] // 32)
    module.run([Launch("blocks", groups, (128,), on_gpu, {0: 512})])
    lib = Library(compile_library(source, checked=True))
    lib.dispatch(
        "blocks", (groups[0] * 128, groups[1]), (128,), on_engine, {0: 512}, {"negate": True}, seed=1
    )
    assert (on_engine[1] != 0).any()
    assert (on_gpu[1] == on_engine[1]).all()
    assert (on_gpu[2] == on_engine[2]).all()
