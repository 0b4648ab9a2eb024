"""What a kernel asks of a GPU's memory, counted request by request."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from software_mac.metal import Library, Traffic, compile_source

KERNEL = """#include <metal_stdlib>
using namespace metal;
kernel void k(device float* x [[buffer(0)]], constant uint& stride [[buffer(1)]],
              uint i [[thread_index_in_threadgroup]]) {{
  {body}
}}
"""


def count(body: str, stride: int = 1, threads: int = 32) -> Traffic:
    library = Library(compile_source(KERNEL.format(body=body), "k", checked=True))
    buffers = {0: np.zeros(4096, np.float32), 1: np.uint32(stride).tobytes()}
    return library.count("k", threads, threads, buffers)[1]


@pytest.mark.parametrize(
    ("stride", "sectors"),
    [(1, 4), (2, 8), (8, 32), (32, 32)],
    ids=["adjacent", "every other", "a sector each", "a line each"],
)
def test_sectors_of_a_request(stride: int, sectors: int) -> None:
    traffic = count("x[i * stride] += 1;", stride)
    assert traffic.device_requests == 2
    assert traffic.sectors_read == sectors
    assert traffic.device_bytes_read == traffic.device_bytes_written == 128
    assert traffic.threadgroup_requests == 0


def test_a_word_that_all_lanes_read_is_one_sector() -> None:
    traffic = count("x[32 + i] = x[0];")
    assert (traffic.sectors_read, traffic.device_bytes_read) == (1, 128)


def test_every_simdgroup_makes_its_own_requests() -> None:
    traffic = count("x[i] = 1;", threads=96)
    assert (traffic.device_requests, traffic.sectors_written) == (3, 12)


def test_loops_and_branches_keep_requests_apart() -> None:
    traffic = count("for (uint n = 0; n < 3 + i % 2; ++n) x[32 * n + i] = n;")
    assert traffic.device_requests == 4
    assert traffic.sectors_written == 16
    assert traffic.device_bytes_written == 4 * (3 * 32 + 16)


@pytest.mark.parametrize(("stride", "conflicts"), [(1, 0), (2, 1), (3, 0), (32, 31), (33, 0)])
def test_bank_conflicts(stride: int, conflicts: int) -> None:
    """What lanes read of 32 banks of 4 bytes; the words are written in their order, without conflicts."""
    traffic = count(
        """threadgroup float t[1056];
  for (uint n = i; n < 1056; n += 32) t[n] = n;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  x[i] = t[i * stride];""",
        stride,
    )
    assert traffic.threadgroup_requests == 33 + 1
    assert traffic.threadgroup_bytes == 34 * 128
    assert traffic.bank_conflicts == conflicts


def test_wide_accesses_need_several_turns_and_that_is_no_conflict() -> None:
    traffic = count(
        """threadgroup float4 t[32];
  t[i] = float4(i);
  simdgroup_barrier(mem_flags::mem_threadgroup);
  *(device float4*)(x + 4 * i) = t[31 - i];"""
    )
    assert traffic.threadgroup_bytes == 1024
    assert traffic.bank_conflicts == 0


def test_products_and_exponentials() -> None:
    traffic = count(
        """simdgroup_matrix<float, 8, 8> a, b, c(0);
  for (int n = 0; n < 5; ++n) simdgroup_multiply_accumulate(c, a, b, c);
  x[i] = exp2(x[i]) + c.thread_elements()[0];""",
        threads=64,
    )
    assert (traffic.matrix_products, traffic.exponentials) == (10, 64)


def test_only_checked_libraries_count(tmp_path: Path) -> None:
    library = Library(compile_source(KERNEL.format(body="x[i] = stride;"), "k"))
    with pytest.raises(ValueError, match="checked library"):
        library.count("k", 32, 32, {0: np.zeros(32, np.float32), 1: np.uint32(1).tobytes()})
