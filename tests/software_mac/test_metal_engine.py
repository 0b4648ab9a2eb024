# ruff: noqa: E501  (Metal sources and tables of cases read best unwrapped)
"""The engine finds what a GPU would only sometimes show: divergence, deadlock, races, overruns, stale memory."""

from __future__ import annotations

import re
import threading

import numpy as np
import pytest
from software_mac.metal import DispatchError, Library, Status, compile_source

PREFIX = "#include <metal_stdlib>\nusing namespace metal;\n"
LANES = "uint i [[thread_position_in_threadgroup]], uint lane [[thread_index_in_simdgroup]], uint sg [[simdgroup_index_in_threadgroup]]"


def library(body: str, checked: bool = False, parameters: str = "device float* x [[buffer(0)]]") -> Library:
    source = f"{PREFIX}kernel void k({parameters}, {LANES}) {{\n{body}\n}}\n"
    return Library(compile_source(source, "k", checked=checked))


def failure(
    lib: Library, threads: int = 64, size: int = 64, grid: int | None = None, seed: int = 0
) -> DispatchError:
    with pytest.raises(DispatchError) as caught:
        lib.dispatch("k", grid or threads, threads, {0: np.zeros(size, np.float32)}, seed=seed)
    return caught.value


def runs(lib: Library, threads: int = 64, size: int = 64, seed: int = 0) -> np.ndarray:
    x = np.zeros(size, np.float32)
    lib.dispatch("k", threads, threads, {0: x}, seed=seed)
    return x


# Divergence and deadlock


def test_lanes_at_different_simd_operations() -> None:
    error = failure(library("if (lane < 16) x[i] = simd_sum(1.0f);\nelse x[i] = simd_max(2.0f);"))
    assert error.status is Status.DIVERGENCE
    assert "kernel 'k'" in str(error)
    assert "lanes 0-15" in str(error)
    assert "k.metal:4" in str(error)
    assert "k.metal:5" in str(error)


def test_a_simd_operation_that_some_lanes_miss() -> None:
    error = failure(library("if (lane < 8) return;\nx[i] = simd_sum(1.0f);"))
    assert error.status is Status.DIVERGENCE
    assert "lanes 0-7 returned" in str(error)
    assert "lanes 8-31: waiting at the simd operation at k.metal:5" in str(error)


def test_a_barrier_that_some_lanes_miss() -> None:
    error = failure(library("if (sg == 1 && lane == 3) return;\nthreadgroup_barrier(mem_flags::mem_none);"))
    assert error.status is Status.DEADLOCK
    assert "lane 3 returned" in str(error)
    assert "simdgroup 0: all 32 lanes: waiting at the barrier at k.metal:5" in str(error)


def test_lanes_at_different_barriers() -> None:
    body = "if (sg == 0)\nthreadgroup_barrier(mem_flags::mem_none);\nelse\nthreadgroup_barrier(mem_flags::mem_none);"
    error = failure(library(body))
    assert error.status is Status.DIVERGENCE
    assert "k.metal:5" in str(error)
    assert "k.metal:7" in str(error)


def test_the_message_names_the_way_through_functions() -> None:
    source = PREFIX + (
        "float total(float v) {\n  return simd_sum(v);\n}\n"
        "kernel void k(device float* x [[buffer(0)]], uint i [[thread_position_in_grid]]) {\n"
        "  if (i < 4) x[i] = total(x[i]);\n}\n"
    )
    error = failure(Library(compile_source(source, "k")), threads=32)
    assert "k.metal:4 in 'total', called from k.metal:7 in 'k'" in str(error)


def test_the_library_works_after_an_error() -> None:
    body = "if (x[0] == 1.0f && lane == 0) return;\nx[i] = simd_sum(1.0f);"
    lib = library(body)
    for _ in range(3):
        with pytest.raises(DispatchError):
            lib.dispatch("k", 64, 64, {0: np.ones(64, np.float32)})
        assert (runs(lib) == 32).all()


def test_dispatches_from_several_threads() -> None:
    lib = library("x[i] = simd_sum(float(lane));")
    results: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: results.append(runs(lib))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert all((r == 496).all() for r in results)


# Launches that Metal refuses


def test_bad_launches() -> None:
    lib = library(
        "t[i] = x[i];", parameters="device float* x [[buffer(0)]], threadgroup float* t [[threadgroup(0)]]"
    )
    x = np.zeros(64, np.float32)
    cases: list[tuple[int, dict[int, np.ndarray], dict[int, int], str]] = [
        (2048, {0: x}, {0: 256}, "1 to 1024"),
        (64, {}, {0: 256}, "nothing is bound to buffer(0) 'x'"),
        (64, {0: x}, {}, "threadgroup(0) 't' is 0"),
        (64, {0: x}, {0: 40}, "multiple of 16"),
        (64, {0: x}, {0: 32784}, "there are 32768"),
    ]
    for threads, buffers, lengths, expected in cases:
        with pytest.raises(DispatchError, match=re.escape(expected)) as caught:
            lib.dispatch("k", threads, threads, buffers, lengths)
        assert caught.value.status is Status.BAD_LAUNCH
    lib.dispatch("k", 64, 64, {0: x}, {0: 256})


def test_a_matrix_needs_a_full_simdgroup() -> None:
    error = failure(library("simdgroup_float8x8 m;\nsimdgroup_load(m, x);"), threads=16)
    assert "needs 32 lanes; this simdgroup has 16" in str(error)


def test_a_reference_needs_a_whole_object() -> None:
    parameters = "constant float4& p [[buffer(1)]], device float* x [[buffer(0)]]"
    lib = library("x[i] = p.w;", parameters=parameters)
    with pytest.raises(DispatchError, match=re.escape("buffer(1) 'p' has 8 bytes; its type has 16")):
        lib.dispatch("k", 32, 32, {0: np.zeros(32, np.float32), 1: np.zeros(2, np.float32)})


# Races


TILED = [
    "threadgroup float tile[64];",
    "threadgroup float total[2];",
    "tile[i] = x[i];",
    "threadgroup_barrier(mem_flags::mem_threadgroup);",
    "float v = tile[63 - i];",
    "threadgroup_barrier(mem_flags::mem_threadgroup);",
    "tile[i] = v * 2.0f;",
    "simdgroup_barrier(mem_flags::mem_threadgroup);",
    "v = tile[i ^ 1u];",
    "if (lane == 0) total[sg] = v;",
    "threadgroup_barrier(mem_flags::mem_threadgroup);",
    "x[i] = total[0] + total[1] + v;",
    "threadgroup_barrier(mem_flags::mem_device);",
    "float w = x[(i + 32u) & 63u];",
    "threadgroup_barrier(mem_flags::mem_device);",
    "x[i] = w;",
]
BARRIERS = [n for n, line in enumerate(TILED) if "barrier" in line]


def test_the_tiled_kernel_has_no_race() -> None:
    lib = library("\n".join(TILED), checked=True)
    results = [runs(lib, seed=seed) for seed in (0, 1, 7)]
    assert all((r == results[0]).all() for r in results)


@pytest.mark.parametrize("deleted", BARRIERS)
def test_each_barrier_is_missed(deleted: int) -> None:
    lines = [line if n != deleted else "" for n, line in enumerate(TILED)]
    error = failure(library("\n".join(lines), checked=True))
    assert error.status in (Status.RACE, Status.UNINITIALISED)
    assert "k.metal:" in str(error)


@pytest.mark.parametrize("weakened", BARRIERS)
def test_a_barrier_orders_only_the_memory_of_its_flag(weakened: int) -> None:
    line = re.sub(r"mem_flags::\w+", "mem_flags::mem_none", TILED[weakened])
    lines = [line if n == weakened else other for n, other in enumerate(TILED)]
    assert failure(library("\n".join(lines), checked=True)).status is Status.RACE


def test_a_race_between_threadgroups() -> None:
    parameters = "device float* x [[buffer(0)]], uint group [[threadgroup_position_in_grid]]"
    lib = library("if (i == 0) x[group / 2] = 1.0f;", checked=True, parameters=parameters)
    error = failure(lib, threads=32, grid=64)
    assert error.status is Status.RACE
    assert "threadgroup number 0" in str(error)
    assert "wrote" in str(error)


def test_atomics_do_not_race() -> None:
    parameters = "device atomic_uint* x [[buffer(0)]]"
    lib = library(
        "atomic_fetch_add_explicit(x, lane, memory_order_relaxed);", checked=True, parameters=parameters
    )
    x = np.zeros(1, np.uint32)
    lib.dispatch("k", 128, 64, {0: x})
    assert x[0] == 4 * 496


# Bounds, initialisation, alignment


def test_a_read_after_the_end_of_a_buffer() -> None:
    error = failure(
        library("float v = x[i + 1];\nthreadgroup_barrier(mem_flags::mem_device);\nx[i] = v;", checked=True),
        32,
        32,
    )
    assert error.status is Status.BOUNDS
    assert (
        "lane 31 of simdgroup 0 reads 4 bytes at k.metal:4 in 'k' at byte 128 of buffer(0) 'x', which has 128 bytes"
        in str(error)
    )


def test_a_write_before_the_start_of_a_buffer() -> None:
    error = failure(library("x[int(i) - 1] = 0.0f;", checked=True))
    assert error.status is Status.BOUNDS
    assert "writes 4 bytes" in str(error)
    assert "at byte -4 of" in str(error)


def test_a_threadgroup_variable_overrun_through_a_pointer() -> None:
    body = "threadgroup float a[64];\nthreadgroup float b[64];\nb[i] = 0.0f;\nthreadgroup float* p = a;\np[i + 1] = 1.0f;\nx[i] = b[i];"
    error = failure(library(body, checked=True))
    assert error.status is Status.BOUNDS
    assert "'a', which has 256 bytes" in str(error)


def test_an_index_beyond_an_array() -> None:
    body = "threadgroup float a[8][8];\na[i / 8][i % 8 + 1] = x[i];"
    error = failure(library(body, checked=True))
    assert error.status is Status.BOUNDS
    assert "index 8 beyond the end of an array at k.metal:5" in str(error)


def test_threadgroup_memory_starts_as_nan() -> None:
    body = "threadgroup float a[64];\nif (x[0] == 5.0f) a[i] = 1.0f;\nx[i] = a[i];"
    assert np.isnan(runs(library(body))).all()
    error = failure(library(body, checked=True))
    assert error.status is Status.UNINITIALISED
    assert "'a', which no lane has written" in str(error)


def test_threadgroup_memory_does_not_outlive_its_threadgroup() -> None:
    parameters = "device float* x [[buffer(0)]], uint group [[threadgroup_position_in_grid]]"
    body = "threadgroup float a[32];\nif (group == 0) a[i] = 1.0f;\nx[group * 32 + i] = a[i];"
    assert (
        failure(library(body, checked=True, parameters=parameters), threads=32, grid=64).status
        is Status.UNINITIALISED
    )


def test_a_misaligned_access() -> None:
    error = failure(library("x[i] = ((device float4*)(x + 1))[0].x;", checked=True))
    assert error.status is Status.UNDEFINED
    assert "not aligned to 16" in str(error)


def test_a_division_by_zero() -> None:
    lib = library("x[i] = float(int(i) / int(x[i]));", checked=True)
    assert failure(lib).status is Status.UNDEFINED


def test_a_shuffle_from_nowhere() -> None:
    assert failure(library("x[i] = simd_shuffle(x[i], ushort(lane + 1));")).status is Status.UNDEFINED


def test_a_wild_access_does_not_end_the_process() -> None:
    error = failure(library("x[ulong(i + 1) << 44] = 1.0f;"))
    assert error.status is Status.FAULT
    assert "wild access" in str(error)


# Order


def test_the_seed_shuffles_the_lanes() -> None:
    lib = library(
        "x[i] = float(atomic_fetch_add_explicit((device atomic_uint*)(x + 64), 1u, memory_order_relaxed));"
    )
    orders = {tuple(runs(lib, size=65, seed=seed)[:64]) for seed in range(4)}
    assert len(orders) == 4
    assert all(sorted(order) == list(range(64)) for order in orders)


def test_statistics() -> None:
    lib = library("threadgroup_barrier(mem_flags::mem_device);\nx[i] = simd_sum(x[i]);", checked=True)
    statistics = lib.dispatch("k", 64, 64, {0: np.zeros(64, np.float32)})
    assert (statistics.threadgroups, statistics.threadgroup_barriers, statistics.simdgroup_operations) == (
        1,
        1,
        2,
    )
    assert (statistics.device_bytes_read, statistics.device_bytes_written) == (256, 256)
