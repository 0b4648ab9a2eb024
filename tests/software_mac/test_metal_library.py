# ruff: noqa: E501  (Metal sources and tables of cases read best unwrapped)
"""The Metal library of the software Mac against NumPy and PyTorch: each operation, with its edge cases."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from software_mac.metal import Library, compile_source

SOURCE = """
#include <metal_stdlib>
#include <metal_simdgroup_matrix>
using namespace metal;

#define LANES uint i [[thread_position_in_grid]], ushort lane [[thread_index_in_simdgroup]]
#define FLOATS kernel void

FLOATS shuffles(device float* x [[buffer(0)]], device float4* out [[buffer(1)]], LANES) {
  out[2 * i] = float4(simd_shuffle(x[i], ushort(31 - lane)), simd_shuffle_xor(x[i], 8), simd_broadcast(x[i], 5),
                      simd_broadcast_first(x[i]));
  out[2 * i + 1] = float4(simd_shuffle_up(x[i], 3), simd_shuffle_down(x[i], 3), simd_shuffle_rotate_down(x[i], 3),
                          simd_shuffle_and_fill_up(x[i], -x[i], 3));
}
FLOATS reductions(device float* x [[buffer(0)]], device float4* out [[buffer(1)]], LANES) {
  out[2 * i] = float4(simd_sum(x[i]), simd_product(x[i]), simd_max(x[i]), simd_min(x[i]));
  out[2 * i + 1] = float4(simd_prefix_inclusive_sum(x[i]), simd_prefix_exclusive_sum(x[i]),
                          float(simd_and(uint(x[i]))), float(simd_or(1u << (lane & 3))));
}
FLOATS votes(device float* x [[buffer(0)]], device uint4* out [[buffer(1)]], LANES) {
  bool v = x[i] > 0.0f;
  out[i] = uint4(simd_any(v), simd_all(v), uint(ulong(simd_ballot(v))), simd_is_first());
}

// One kernel per pair of element types: d = a * b + c, and the elements that each lane holds.
template <typename A, typename D>
[[kernel]] void matrix(device A* a [[buffer(0)]], device A* b [[buffer(1)]], device D* c [[buffer(2)]],
                       device D* d [[buffer(3)]], device float2* held [[buffer(4)]], LANES) {
  simdgroup_matrix<A, 8, 8> ma, mb;
  simdgroup_matrix<D, 8, 8> mc;
  simdgroup_load(ma, a);
  simdgroup_load(mb, b, 12, ulong2(2, 1));
  simdgroup_load(mc, c, 8, ulong2(0, 0), true);
  held[lane] = float2(float(ma.thread_elements()[0]), float(ma.thread_elements()[1]));
  simdgroup_multiply_accumulate(mc, ma, mb, mc);
  simdgroup_store(mc, d);
}
template [[host_name("matrix_ff")]] [[kernel]] decltype(matrix<float, float>) matrix<float, float>;
template [[host_name("matrix_hf")]] [[kernel]] decltype(matrix<half, float>) matrix<half, float>;
template [[host_name("matrix_hh")]] [[kernel]] decltype(matrix<half, half>) matrix<half, half>;

FLOATS diagonals(device float* out [[buffer(0)]], LANES) {
  threadgroup float tile[64];
  simdgroup_float8x8 eye(2.0f), ones = make_filled_simdgroup_matrix<float, 8, 8>(1.0f), product;
  simdgroup_multiply(product, eye, ones);
  simdgroup_store(product, tile);
  simdgroup_barrier(mem_flags::mem_threadgroup);
  out[i] = tile[i];
  out[i + 32] = tile[i + 32];
}

FLOATS to_half(device float* x [[buffer(0)]], device half* out [[buffer(1)]], LANES) { out[i] = half(x[i]); }
FLOATS to_half4(device float4* x [[buffer(0)]], device half4* out [[buffer(1)]], LANES) { out[i] = half4(x[i]); }
FLOATS to_bfloat(device float* x [[buffer(0)]], device bfloat* out [[buffer(1)]], LANES) { out[i] = bfloat(x[i]); }
FLOATS to_bfloat2(device float2* x [[buffer(0)]], device bfloat2* out [[buffer(1)]], LANES) { out[i] = bfloat2(x[i]); }
FLOATS from_half(device half* x [[buffer(0)]], device float* out [[buffer(1)]], LANES) { out[i] = float(x[i]); }
FLOATS from_bfloat(device bfloat* x [[buffer(0)]], device float* out [[buffer(1)]], LANES) { out[i] = float(x[i]); }
FLOATS half_products(device half* x [[buffer(0)]], device half* out [[buffer(1)]], LANES) {
  out[i] = x[i] * 3.0h + x[i] * x[i];
}
FLOATS bfloat_products(device bfloat* x [[buffer(0)]], device bfloat* out [[buffer(1)]], LANES) {
  out[i] = x[i] * 3.0bf + x[i] * x[i];
}

#define UNARY(f) \\
  kernel void f##_of(device float* x [[buffer(0)]], device float* out [[buffer(1)]], LANES) { \\
    float4 v = f(float4(x[i])); \\
    out[i] = v.z == f(x[i]) || isnan(v.z) ? precise::f(x[i]) : 12345.0f; \\
  }
UNARY(exp) UNARY(exp2) UNARY(log) UNARY(log2) UNARY(sqrt) UNARY(rsqrt) UNARY(sin) UNARY(cos) UNARY(tanh)
UNARY(floor) UNARY(ceil) UNARY(rint) UNARY(trunc) UNARY(fabs) UNARY(fract) UNARY(sign)

FLOATS extremes(device float* x [[buffer(0)]], device float4* out [[buffer(1)]], LANES) {
  float y = x[31 - i];
  out[2 * i] = float4(max(x[i], y), min(x[i], y), fmax(x[i], NAN), fmin(NAN, y));
  out[2 * i + 1] = float4(clamp(x[i], -1.0f, 1.0f), abs(x[i]), fma(x[i], y, 1.0f), select(x[i], y, x[i] < y));
}
FLOATS vectors(device float4* out [[buffer(0)]], LANES) {
  float4 v = float4(float2(1.0f, 2.0f), 3.0f, 4.0f);
  half4 h = half4(v);
  v.xw = v.wx;
  out[0] = v;
  out[1] = float4(h) + vec<float, 4>(0.5f);
  out[2] = float4(dot(v, v), float(any(v > 3.5f)), float(all(v > 3.5f)), float(as_type<uint>(1.0f) == 0x3f800000u));
  out[3] = float4(float4(uint4(7u)).xyzw.x);
}
FLOATS limits(device float* out [[buffer(0)]], LANES) {
  out[0] = numeric_limits<float>::max();
  out[1] = numeric_limits<float>::lowest();
  out[2] = -INFINITY;
  out[3] = float(numeric_limits<half>::max());
  out[4] = float(numeric_limits<bfloat>::max());
  out[5] = numeric_limits<float>::epsilon();
  out[6] = float(numeric_limits<half>::epsilon());
  out[7] = float(numeric_limits<int>::min());
  out[8] = float(numeric_limits<ushort>::max());
}
FLOATS integers(device uint* out [[buffer(0)]], LANES) {
  out[0] = popcount(0xf0f0u);
  out[1] = clz(1u);
  out[2] = ctz(8u);
  out[3] = mulhi(0x80000000u, 6u);
  out[4] = extract_bits(0xabcdu, 4, 8);
  out[5] = rotate(0x80000001u, 4u);
  out[6] = clz(0u);
  out[7] = uint(max(-3, 2)) + uint(abs(-5));
}
kernel void places(device uint* out [[buffer(0)]], uint3 in_grid [[thread_position_in_grid]],
                   ushort3 in_group [[thread_position_in_threadgroup]], uint2 group [[threadgroup_position_in_grid]],
                   uint index [[thread_index_in_threadgroup]], ushort lane [[thread_index_in_simdgroup]],
                   uint sg [[simdgroup_index_in_threadgroup]], uint2 size [[threads_per_threadgroup]],
                   uint3 groups [[threadgroups_per_grid]], uint2 grid [[threads_per_grid]],
                   uint width [[threads_per_simdgroup]], uint sgs [[simdgroups_per_threadgroup]]) {
  uint at = (in_grid.y * grid.x + in_grid.x) * 16;
  uint all[16] = {in_grid.x, in_grid.y, in_group.x, in_group.y, group.x, group.y, index, lane,
                  sg, size.x, size.y, groups.x, groups.y, grid.y, width, sgs};
  for (uint n = 0; n < 16; ++n) out[at + n] = all[n];
}
constant uint factor [[function_constant(3)]];
constant uint derived = is_function_constant_defined(factor) ? factor * 10 : 7;
FLOATS constants(device uint* out [[buffer(0)]], device uint* maybe [[buffer(1), function_constant(factor)]], LANES) {
  out[0] = derived;
}
"""

RNG = np.random.default_rng(0)
Array = np.ndarray[Any, Any]


@cache
def library(checked: bool = False) -> Library:
    return Library(compile_source(SOURCE, "library", checked=checked))


def run(kernel: str, x: Array, out: Array, threads: int = 32) -> Array:
    library().dispatch(kernel, threads, min(threads, 256), {0: x, 1: out})
    return out


def fill(kernel: str, out: Array, threads: int = 1, **more: Any) -> Array:
    library().dispatch(kernel, threads, threads, {0: out}, **more)
    return out


# Simd operations


def test_shuffles() -> None:
    x = RNG.standard_normal(32).astype(np.float32)
    out = run("shuffles", x, np.zeros((32, 8), np.float32))
    lanes = np.arange(32)
    expected = [
        x[31 - lanes], x[lanes ^ 8], np.full(32, x[5]), np.full(32, x[0]),
        np.where(lanes >= 3, x[lanes - 3], x), np.where(lanes < 29, x[(lanes + 3) % 32], x), x[(lanes + 3) % 32],
        np.where(lanes >= 3, x[lanes - 3], -x[lanes - 3]),
    ]  # fmt: skip
    assert (out == np.stack(expected, axis=1)).all()


def test_reductions() -> None:
    x = RNG.integers(1, 3, 32).astype(np.float32)
    out = run("reductions", x, np.zeros((32, 8), np.float32))
    expected = [
        x.sum(),
        x.prod(),
        x.max(),
        x.min(),
        x.cumsum(),
        x.cumsum() - x,
        np.bitwise_and.reduce(x.astype(int)),
        15,
    ]
    assert (out == np.stack([np.broadcast_to(e, 32) for e in expected], axis=1)).all()


def test_a_sum_is_the_same_tree_in_every_lane() -> None:
    x = RNG.standard_normal(32).astype(np.float32)
    tree = x.copy()
    while len(tree) > 1:
        tree = tree[: len(tree) // 2] + tree[len(tree) // 2 :]
    assert (run("reductions", x, np.zeros((32, 8), np.float32))[:, 0] == tree[0]).all()


def test_votes() -> None:
    x = RNG.standard_normal(32).astype(np.float32)
    out = run("votes", x, np.zeros((32, 4), np.uint32))
    ballot = sum(1 << lane for lane in range(32) if x[lane] > 0)
    assert (out[:, :3] == (1, 0, ballot)).all()
    assert (out[:, 3] == (np.arange(32) == 0)).all()


# Matrices


@pytest.mark.parametrize("kernel, a_type, d_type", [
    ("matrix_ff", np.float32, np.float32), ("matrix_hf", np.float16, np.float32), ("matrix_hh", np.float16, np.float16),
])  # fmt: skip
def test_matrix_product(kernel: str, a_type: type, d_type: type) -> None:
    a, c = RNG.integers(-4, 5, (8, 8)).astype(a_type), RNG.integers(-4, 5, (8, 8)).astype(d_type)
    b = RNG.integers(-4, 5, (9, 12)).astype(a_type)
    d, held = np.zeros((8, 8), d_type), np.zeros((32, 2), np.float32)
    library().dispatch(kernel, 32, 32, {0: a, 1: b, 2: c, 3: d, 4: held})
    assert (d == a.astype(np.float32) @ b[1:9, 2:10].astype(np.float32) + c.T).all()
    for lane in range(32):
        quarter = lane // 4
        row, column = (quarter & 4) + (lane // 2) % 4, (quarter & 2) * 2 + (lane % 2) * 2
        assert (held[lane] == a[row, column : column + 2]).all()


def test_diagonal_and_filled_matrices() -> None:
    assert (fill("diagonals", np.zeros(64, np.float32), 32) == 2).all()


# Conversions


def edge_floats() -> Array:
    """Every sign and exponent, with mantissas at and around the ties of half and bfloat."""
    mantissas = [
        0,
        1,
        0x0FFF,
        0x1000,
        0x1001,
        0x2FFF,
        0x3000,
        0x3001,
        0x7FFF,
        0x8000,
        0x8001,
        0x17FFF,
        0x18000,
        0x18001,
    ]
    mantissas += [0x7FFFFF, 0x7FF000, 0x7FEFFF, 0x7F8000, 0x7F7FFF, 0x400000]
    bits = [sign << 31 | exponent << 23 | m for sign in (0, 1) for exponent in range(256) for m in mantissas]
    return np.array(bits, np.uint32).view(np.float32)


def same(got: Array, expected: Array) -> bool:
    """Equal bits, where one NaN is as good as another."""
    both_nan = np.isnan(got.astype(np.float32)) & np.isnan(expected.astype(np.float32))
    return bool((both_nan | (got.view(np.uint16) == expected.view(np.uint16))).all())


def test_float_to_half() -> None:
    x = edge_floats()
    with np.errstate(over="ignore", invalid="ignore"):
        expected = x.astype(np.float16)
    assert same(run("to_half", x, np.zeros(len(x), np.float16), len(x)), expected)
    assert same(run("to_half4", x, np.zeros(len(x), np.float16), len(x) // 4), expected)


def test_float_to_bfloat() -> None:
    x = edge_floats()
    expected = torch.from_numpy(x).to(torch.bfloat16)
    for kernel, width in (("to_bfloat", 1), ("to_bfloat2", 2)):
        got = torch.from_numpy(run(kernel, x, np.zeros(len(x), np.int16), len(x) // width)).view(
            torch.bfloat16
        )
        equal = got.view(torch.int16) == expected.view(torch.int16)
        assert bool((equal | (got.isnan() & expected.isnan())).all())


@pytest.mark.parametrize("kernel, dtype", [("from_half", torch.float16), ("from_bfloat", torch.bfloat16)])
def test_every_sixteen_bit_float_widens(kernel: str, dtype: torch.dtype) -> None:
    bits = np.arange(65536, dtype=np.uint16)
    expected = torch.from_numpy(bits.view(np.int16)).view(dtype).float()
    got = torch.from_numpy(run(kernel, bits, np.zeros(65536, np.float32), 65536))
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    "kernel, dtype", [("half_products", torch.float16), ("bfloat_products", torch.bfloat16)]
)
def test_sixteen_bit_arithmetic_rounds_after_each_operation(kernel: str, dtype: torch.dtype) -> None:
    x = torch.randn(4096, dtype=dtype, generator=torch.Generator().manual_seed(0))
    rounded = x * 3 + x * x
    fused = torch.addcmul(x.double() * 3, x.double(), x.double()).to(dtype)
    raw = x.view(torch.int16).numpy().copy()
    got = torch.from_numpy(run(kernel, raw, np.zeros_like(raw), len(raw))).view(dtype)
    assert torch.equal(got, rounded)
    assert not torch.equal(got, fused)


# Mathematics

UNARY: dict[str, Callable[[Array], Array]] = {
    "exp": np.exp, "exp2": np.exp2, "log": np.log, "log2": np.log2, "sqrt": np.sqrt, "rsqrt": lambda x: 1 / np.sqrt(x),
    "sin": np.sin, "cos": np.cos, "tanh": np.tanh, "floor": np.floor, "ceil": np.ceil, "rint": np.rint,
    "trunc": np.trunc, "fabs": np.fabs, "fract": lambda x: x - np.floor(x), "sign": np.sign,
}  # fmt: skip


@pytest.mark.parametrize("name", UNARY)
def test_unary_mathematics(name: str) -> None:
    x = np.concatenate([RNG.standard_normal(250) * 4, [0.0, 0.5, -0.5, 1.5, np.inf, -np.inf]]).astype(
        np.float32
    )
    got = run(f"{name}_of", x, np.zeros_like(x), len(x))
    with np.errstate(all="ignore"):
        expected = UNARY[name](x.astype(np.float64)).astype(np.float32)
    defined = np.isfinite(x) if name == "fract" else slice(None)
    np.testing.assert_allclose(got[defined], expected[defined], rtol=3e-7, atol=1e-30)


def test_extremes() -> None:
    x = RNG.standard_normal(32).astype(np.float32)
    x[3] = np.nan
    y = x[::-1]
    out = run("extremes", x, np.zeros((32, 8), np.float32))
    expected = [
        np.fmax(x, y),
        np.fmin(x, y),
        x,
        y,
        np.fmax(np.fmin(x, 1), -1),
        np.abs(x),
        x * y + 1,
        np.where(x < y, y, x),
    ]
    np.testing.assert_allclose(
        out[:, [0, 1, 2, 3, 5, 6, 7]], np.stack([e for n, e in enumerate(expected) if n != 4], 1), rtol=1e-6
    )
    defined = ~np.isnan(x)
    assert (out[defined, 4] == expected[4][defined]).all()


def test_vectors() -> None:
    out = fill("vectors", np.zeros((4, 4), np.float32))
    assert (out == [[4, 2, 3, 1], [1.5, 2.5, 3.5, 4.5], [30, 1, 0, 1], [7, 7, 7, 7]]).all()


def test_limits() -> None:
    f, h, b = torch.finfo(torch.float32), torch.finfo(torch.float16), torch.finfo(torch.bfloat16)
    expected = [f.max, f.min, -np.inf, h.max, b.max, f.eps, h.eps, -(2.0**31), 65535]
    assert (fill("limits", np.zeros(9, np.float32)) == np.array(expected, np.float32)).all()


def test_integers() -> None:
    assert list(fill("integers", np.zeros(8, np.uint32))) == [8, 31, 3, 3, 0xBC, 0x18, 32, 7]


# Places and constants


def test_places_in_a_grid_that_is_no_multiple() -> None:
    out = np.zeros((10, 20, 16), np.uint32)
    library().dispatch("places", (20, 10), (8, 4), {0: out})
    for y in range(10):
        for x in range(20):
            group, within = (x // 8, y // 4), (x % 8, y % 4)
            size = (min(8, 20 - group[0] * 8), min(4, 10 - group[1] * 4))
            index = within[1] * size[0] + within[0]
            assert list(out[y, x]) == [
                x, y, *within, *group, index, index % 32, index // 32, *size, 3, 3, 10, 32, -(-size[0] * size[1] // 32),
            ]  # fmt: skip


def test_function_constants() -> None:
    out = np.zeros(1, np.uint32)
    assert fill("constants", out)[0] == 7
    assert fill("constants", out, constants={"factor": np.uint32(5)})[0] == 50
    assert fill("constants", out, constants={"factor": np.uint32(6)})[0] == 60


def test_kernel_records() -> None:
    record = library().kernels["matrix_hf"]
    assert [(a.name, a.kind, a.index, a.pointee_bytes) for a in record.arguments] == [
        ("a", "buffer", 0, 2), ("b", "buffer", 1, 2), ("c", "buffer", 2, 4), ("d", "buffer", 3, 4), ("held", "buffer", 4, 8),
        ("i", "builtin", 0, 4), ("lane", "builtin", 0, 2),
    ]  # fmt: skip
    assert library().kernels["diagonals"].static_threadgroup_bytes == 256
    assert library().kernels["constants"].arguments[1].is_optional


def test_the_checked_library_agrees() -> None:
    x = RNG.standard_normal(32).astype(np.float32)
    out, checked_out = np.zeros((32, 8), np.float32), np.zeros((32, 8), np.float32)
    run("reductions", x, out)
    library(checked=True).dispatch("reductions", 32, 32, {0: x, 1: checked_out}, seed=3)
    assert (out == checked_out).all()
