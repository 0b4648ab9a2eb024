"""End to end: Python, tensors on mps, a host in Objective-C++, a kernel in Metal, and back.

The example's files are what one would build on a Mac: ``cpp_extension.load`` builds them here unchanged.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("ziglang")
import torch
from software_mac import apple, mps
from software_mac.apple.builder import cache_root, fingerprint
from torch import Tensor
from torch.utils import cpp_extension

mps.install()

EXAMPLE = Path(__file__).parent / "apple" / "example"
SOURCE = (EXAMPLE / "example.metal").read_text()

Run = Callable[..., Tensor]


@pytest.fixture(scope="module")
def library() -> Path:
    """The example, built by PyTorch's own extension builder with our compiler as CXX."""
    files = [EXAMPLE / name for name in ("example.mm", "binding.cpp")]
    folder = cache_root() / "example" / fingerprint([*files, EXAMPLE / "example.h"], [apple.build_runtime()])
    folder.mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXX", str(apple.compiler()))
        cpp_extension.load(
            "software_mac_example",
            [str(file) for file in files],
            extra_ldflags=["-framework", "Metal", "-framework", "Foundation"],
            build_directory=str(folder),
            is_python_module=False,
        )
    return folder / "software_mac_example.so"


@pytest.fixture(scope="module")
def run(library: Path) -> Run:
    def run(a: Tensor, b: Tensor, kernel: str, source: str = SOURCE) -> Tensor:
        out: Tensor = torch.ops.software_mac_example.run(a, b, kernel, source)
        return out

    return run


class ExampleCall(ctypes.Structure):
    """example.h's struct."""

    _fields_ = [
        ("command_buffer", ctypes.c_void_p),
        ("queue", ctypes.c_void_p),
        ("source", ctypes.c_char_p),
        ("kernel", ctypes.c_char_p),
        ("a", ctypes.c_void_p),
        ("b", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("rows", ctypes.c_uint32),
        ("columns", ctypes.c_uint32),
        ("depth", ctypes.c_uint32),
        ("error", ctypes.c_char_p),
        ("error_capacity", ctypes.c_int64),
    ]


def matrices(rows: int = 32, depth: int = 24, columns: int = 48) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, depth, device="mps"), torch.randn(depth, columns, device="mps")


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual.cpu(), expected.cpu(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("storage", ["private", "shared"])
@pytest.mark.parametrize("seed", ["0", "7"])
def test_kernels_compute(run: Run, monkeypatch: pytest.MonkeyPatch, storage: str, seed: str) -> None:
    monkeypatch.setenv("SOFTWARE_MAC_STORAGE", storage)
    monkeypatch.setenv("SOFTWARE_MAC_SEED", seed)
    a, b = matrices()
    close(run(a, b, "matmul"), a.cpu() @ b.cpu())
    square = torch.randn(16, 16, device="mps")
    close(run(square, square.t().contiguous(), "vector_add"), square.cpu() + square.cpu().t())


def test_kernels_are_free_of_races(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTWARE_MAC_CHECKED", "1")
    a, b = matrices()
    source = f"// checked\n{SOURCE}"
    close(run(a, b, "matmul", source), a.cpu() @ b.cpu())


def test_a_missing_barrier_is_a_race(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTWARE_MAC_CHECKED", "1")
    a, b = matrices()
    out = run(a, b, "matmul", SOURCE.replace("    threadgroup_barrier(mem_flags::mem_threadgroup);\n", "", 1))
    with pytest.raises(RuntimeError, match="matmul"):
        out.cpu()
    torch.mps.synchronize()  # the error is raised once


def test_kernels_and_pytorch_run_in_order(run: Run) -> None:
    a, b = matrices(16, 16, 16)
    product = a.cpu() @ b.cpu()
    close(run(run(a, b, "matmul"), b, "matmul") + 1, product @ b.cpu() + 1)
    out = run(a, b, "matmul")
    a.zero_()  # after the kernel that reads it
    close(out, product)


def test_a_called_kernel_has_not_run_yet(run: Run) -> None:
    a, b = matrices()
    apple.reset_statistics()
    out = run(a, b, "matmul")
    assert apple.statistics().dispatches == 0
    torch.mps.synchronize()
    assert apple.statistics().dispatches == 1
    assert apple.statistics().threadgroups == 2 * 3
    del out


def test_inputs_may_be_freed_before_the_kernel_runs(run: Run) -> None:
    a, b = matrices()
    expected = a.cpu() @ b.cpu()
    out = run(a, b, "matmul")
    del a, b
    close(out, expected)


def test_by_ctypes(library: Path) -> None:
    plugin = ctypes.CDLL(str(library))
    a, b = matrices()
    out = torch.empty(32, 48, device="mps")
    error = ctypes.create_string_buffer(4096)
    call = ExampleCall(
        mps.command_buffer(),
        mps.dispatch_queue(),
        SOURCE.encode(),
        b"matmul",
        *(tensor.untyped_storage().data_ptr() for tensor in (a, b, out)),
        *(32, 48, 24),
        ctypes.cast(error, ctypes.c_char_p),
        len(error),
    )
    assert apple.call(plugin.example_run, ctypes.addressof(call)) == 0
    close(out, a.cpu() @ b.cpu())


def test_nothing_leaks_in_a_thousand_calls(run: Run) -> None:
    a, b = matrices(16, 8, 16)

    def calls(count: int) -> dict[str, int]:
        for _ in range(count):
            run(a, b, "matmul")
        torch.mps.synchronize()
        return apple.live_objects()

    before = calls(10)
    assert calls(1000) == before
    mps.reset_allocations()
    calls(10)
    assert mps.allocations().count == 10  # the outputs, and nothing else


def test_a_broken_rule_is_a_python_error_and_passes(run: Run) -> None:
    a, b = matrices()
    unbound = SOURCE.replace("constant Sizes& sizes [[buffer(3)]]", "constant Sizes& sizes [[buffer(4)]]")
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r'kernel "matmul": "sizes" \[\[buffer\(4\)\]\] is not bound'):
            run(a, b, "matmul", unbound)
    close(run(a, b, "matmul"), a.cpu() @ b.cpu())


def test_an_empty_grid_is_refused(run: Run) -> None:
    with pytest.raises(RuntimeError, match="a size of the grid or of the threadgroup is 0"):
        run(*matrices(8, 8, 16), "matmul")


def test_a_compile_error_has_its_line(run: Run) -> None:
    wrong = SOURCE.replace("simdgroup_load(rows,", "simdgroup_lod(rows,")
    line = wrong[: wrong.index("simdgroup_lod")].count("\n") + 1
    with pytest.raises(RuntimeError, match=rf"program_source:{line}: error: .*simdgroup_lod"):
        run(*matrices(), "matmul", wrong)
