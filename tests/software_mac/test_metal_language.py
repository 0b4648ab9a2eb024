# ruff: noqa: E501  (Metal sources and tables of cases read best unwrapped)
"""The strict check and the lint: what Apple's compiler rejects is rejected, with the line; what it accepts is accepted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from software_mac.metal import Diagnostic, MetalCompileError, check

PREFIX = "#include <metal_stdlib>\nusing namespace metal;\n"
PARAMETERS = (
    "device float* x [[buffer(0)]], constant float4& c [[buffer(1)]], uint i [[thread_position_in_grid]]"
)


def diagnose(
    tmp_path: Path, body: str = "", program: str = "", parameters: str = PARAMETERS
) -> list[Diagnostic]:
    """The errors of a kernel with this body; else its warnings. program goes before the kernel, on line 3."""
    path = tmp_path / "k.metal"
    path.write_text(f"{PREFIX}{program}\nkernel void k({parameters}) {{\n{body}\n}}\n")
    try:
        return check(path)
    except MetalCompileError as error:
        return list(error.diagnostics)


REJECTED_IN_A_BODY = {
    "device to threadgroup": ("threadgroup float* p = x;", "threadgroup float *"),
    "device to thread": ("thread float* p = x;", "float *"),
    "thread to device": ("float v = 0.0f; device float* p = &v;", "device float *"),
    "constant to device": ("device float4* p = &c;", "device float4 *"),
    "write to constant": ("c.x = 1.0f;", "const"),
    "vector conversion": ("float4 v = half4(1.0h);", "float4"),
    "components": ("float4 v = float4(1.0f, float2(2.0f)); x[i] = v.x;", "width of the vector"),
    "mixed max": ("x[i] = max(1, x[i]);", "max"),
    "bfloat mathematics": ("x[i] = float(exp2(bfloat(1.0f)));", "exp2"),
    "cast between spaces": ("threadgroup float* p = (threadgroup float*)x; x[i] = p[0];", "a cast from device to threadgroup"),
    "cast to thread": ("thread float* p = (thread float*)x; x[i] = p[0];", "a cast from device to thread"),
    "reinterpret between spaces": ("constant float* p = (constant float*)x; x[i] = p[0];", "a cast from device to constant"),
    "double": ("double d = x[i]; x[i] = d;", "no double"),
    "cast to double": ("x[i] = (double)x[i] > 1.0f;", "a cast to double"),
    "long double": ("x[i] = 1.0L;", "long double"),
    "static": ("static int n = 0; x[i] = n++;", "'n' is a static variable"),
    "missing space": ("float v = 0.0f; float* p = &v; x[i] = *p;", "'p' is a pointer or reference without an address space"),
    "missing space of a reference": ("float v = 0.0f; float& r = v; x[i] = r;", "'r' is a pointer or reference"),
    "goto": ("again: if (x[i] < 0.0f) goto again;", "goto"),
    "new": ("thread float* p = new float; x[i] = *p;", "operator new"),
    "throw": ("if (x[i] < 0.0f) throw 1;", "exceptions"),
    "lambda": ("auto f = [](float v) { return v; }; x[i] = f(1.0f);", "lambda"),
    "assembly": ('__asm("nop");', "inline assembly"),
    "vector cast": ("float4 v = float4(x[0]); uint4 u = (uint4)v; x[i] = float(u.x);", "a cast between vectors"),
    "vector comparison": ("int4 m = int4(float4(x[i]) > 1.0f); x[i] = float(m.x);", "a comparison of vectors"),
    "threadgroup initialiser": ("threadgroup float t[2] = {1.0f, 2.0f}; x[i] = t[0];", "cannot have an initialiser"),
    "threadgroup matrix of 16": ("simdgroup_matrix<float, 16, 16> m;", "8x8 only"),
    "matrix of another type": ("simdgroup_float8x8 m; simdgroup_load(m, (device half*)x);", "simdgroup_load"),
    "unknown name": ("x[i] = frobnicate(x[i]);", "frobnicate"),
    "standard library": ("x[i] = std::max(1.0f, x[i]);", "std"),
    "thread local": ("thread_local float v = 0.0f; x[i] = v;", "thread_local"),
}  # fmt: skip


@pytest.mark.parametrize("case", REJECTED_IN_A_BODY)
def test_rejected_in_a_body(case: str, tmp_path: Path) -> None:
    body, expected = REJECTED_IN_A_BODY[case]
    found = diagnose(tmp_path, body)
    assert any(d.severity == "error" and expected in str(d) and d.line == 5 for d in found), found


REJECTED_IN_A_PROGRAM = {
    "recursion": ("int f(int n) { return n < 2 ? 1 : n * f(n - 1); }", "'f' can call itself"),
    "mutual recursion": ("int g(int n); int f(int n) { return g(n); } int g(int n) { return n ? f(n - 1) : 0; }", "can call itself"),
    "virtual": ("struct S { virtual float f() { return 1.0f; } };", "virtual"),
    "function pointer": ("float one() { return 1.0f; } float f() { float (*p)() = one; return p(); }", "pointer to a function"),
    "program variable": ("float v = 1.0f;", "must be in the constant address space"),
    "static member": ("struct S { static constexpr int n = 4; };", "must be in the constant address space"),
    "double parameter": ("float f(double d) { return d; }", "no double"),
    "double member": ("struct S { double d; };", "no double"),
    "pointer parameter": ("float f(const float* p) { return *p; }", "'p' is a pointer or reference"),
    "reference result": ("float& f(thread float& r) { return r; }", "the result of 'f'"),
    "pointer member": ("struct S { float* p; };", "'p' is a pointer or reference"),
    "template parameter": ("template <class T> T f(T& v) { return v; }", "'v' is a pointer or reference"),
    "varargs": ("float f(int n, ...) { return n; }", "variable arguments"),
    "64-bit atomics": ("float f(device atomic<ulong>* p) { return sizeof(*p); }", "32 bits"),
    "threadgroup variable of a function": ("float f() { threadgroup float t[4]; return t[0]; }", "in the body of a kernel only"),
    "missing return": ("float f(float v) { if (v > 0.0f) return 1.0f; }", "non-void function"),
}  # fmt: skip


@pytest.mark.parametrize("case", REJECTED_IN_A_PROGRAM)
def test_rejected_in_a_program(case: str, tmp_path: Path) -> None:
    program, expected = REJECTED_IN_A_PROGRAM[case]
    found = diagnose(tmp_path, program=program)
    assert any(d.severity == "error" and expected in str(d) and d.line == 3 for d in found), found


REJECTED_PARAMETERS = {
    "no attribute": ("device float* x", "has no attribute"),
    "too many buffers": ("device float* x [[buffer(31)]]", "is not from 0 to 30"),
    "one index twice": ("device float* x [[buffer(0)]], device float* y [[buffer(0)]]", "two parameters"),
    "by value": ("float x [[buffer(0)]]", "a kernel parameter is"),
    "no address space": ("float* x [[buffer(0)]]", "a kernel parameter is"),
    "a builtin of float": (
        "device float* x [[buffer(0)]], float i [[thread_position_in_grid]]",
        "a kernel parameter is",
    ),
}


@pytest.mark.parametrize("case", REJECTED_PARAMETERS)
def test_rejected_parameters(case: str, tmp_path: Path) -> None:
    parameters, expected = REJECTED_PARAMETERS[case]
    found = diagnose(tmp_path, parameters=parameters)
    assert any(d.severity == "error" and expected in str(d) for d in found), found


ACCEPTED = """
constant constexpr float table[4] = {1.0f, 2.0f, 3.0f, 4.0f};
constant int rows [[function_constant(0)]];
constant int twice_rows = is_function_constant_defined(rows) ? 2 * rows : 8;
struct Shape {
  static constant constexpr int n = 4;
  int rows, columns;
};
template <typename T, int N>
struct Tile {
  T values[N];
  Tile() = default;
  thread T& operator[](int i) { return values[i]; }
  void fill(const device T* from, int stride) thread {
#pragma clang loop unroll(full)
    for (int i = 0; i < N; ++i) values[i] = from[i * stride];
  }
};
template <typename T>
METAL_FUNC T twice(const thread T& v) { return v + v; }
template <typename T>
METAL_FUNC void add(threadgroup T* to, const threadgroup T* from, uint i) { to[i] += from[i]; }
#define INSTANTIATE(name, type) \\
  template [[host_name(name)]] [[kernel]] decltype(all<type>) all<type>;
template <typename T>
[[kernel]] void all(const device T* in [[buffer(0)]], device T* out [[buffer(1)]], constant Shape& shape [[buffer(2)]],
                    threadgroup T* shared [[threadgroup(0)]], uint3 group [[threadgroup_position_in_grid]],
                    ushort lane [[thread_index_in_simdgroup]], uint i [[thread_index_in_threadgroup]]) {
  threadgroup T tile[32], other[32];
  Tile<T, Shape::n> registers;
  registers.fill(in, shape.columns);
  tile[i] = other[i] = shared[i] = registers[i & 3];
  threadgroup_barrier(mem_flags::mem_threadgroup | mem_flags::mem_device);
  add(tile, other, i);
  const device packed_float4* packed = reinterpret_cast<const device packed_float4*>(in);
  float4 v = float4(packed[0]) + float4(half4(1.0h)) + vec<float, 4>(float2(0.5f), 1.0f, 2.0f);
  uint bits = as_type<uint>(v.x) + uint(table[i & 3]) + group.x + lane;
  simdgroup_matrix<T, 8, 8> m(T(1));
  thread auto& elements = m.thread_elements();
  elements[0] = simd_sum(elements[0]) + T(fast::exp2(v.y)) + T(precise::log2(v.z)) + T(bits);
  out[i] = twice(elements[0]) + tile[i] + T(rows + twice_rows) + T(INFINITY) * T(0) + numeric_limits<T>::max();
}
INSTANTIATE("all_f32", float)
INSTANTIATE("all_f16", half)
kernel void plain(device atomic_uint* n [[buffer(3)]]) {
  atomic_fetch_add_explicit(n, 1u, memory_order_relaxed);
}
"""


def test_accepted(tmp_path: Path) -> None:
    path = tmp_path / "accepted.metal"
    path.write_text(PREFIX + ACCEPTED)
    assert check(path) == []


def test_literals_without_a_suffix_are_a_warning(tmp_path: Path) -> None:
    (warning,) = diagnose(tmp_path, "x[i] = 0.5;")
    assert (
        str(warning)
        == f"{tmp_path}/k.metal:5: warning: 0.5 has no suffix; Metal reads it as float: write 0.5f (kernel 'k')"
    )


def test_metal_stdlib_must_be_included(tmp_path: Path) -> None:
    path = tmp_path / "bare.metal"
    path.write_text("kernel void k() {}\n")
    with pytest.raises(MetalCompileError, match="does not include <metal_stdlib>"):
        check(path)


def test_the_preprocessor_speaks_of_the_users_line(tmp_path: Path) -> None:
    found = diagnose(tmp_path, program="#error no")
    assert [(d.line, d.message) for d in found] == [(3, "no")]


def test_an_error_in_the_library_is_told_at_the_users_line(tmp_path: Path) -> None:
    found = diagnose(tmp_path, "\n\nx[i] = float4(1.0f, 2.0f).x;")
    assert {d.line for d in found} == {7}


def test_the_command_line(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.metal", tmp_path / "bad.metal"
    good.write_text(PREFIX + "kernel void k(device float* x [[buffer(0)]]) { x[0] = 1.0f; }\n")
    bad.write_text(PREFIX + "kernel void k(device float* x [[buffer(0)]]) { x[0] = y; }\n")
    tests = Path(__file__).parent.parent

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "software_mac.metal", *arguments],
            cwd=tests,
            capture_output=True,
            text=True,
        )

    library = tmp_path / "good.so"
    assert command("compile", str(good), "-o", str(library)).returncode == 0
    assert library.exists()
    failed = command("compile", str(bad))
    assert failed.returncode == 1
    assert f"{bad}:3: error: use of undeclared identifier 'y' (kernel 'k')" in failed.stderr
