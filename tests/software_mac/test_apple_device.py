"""The Metal device: what it does for a host, and what it refuses, as Metal's validation layer would."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

pytest.importorskip("ziglang")

from software_mac import apple

TESTING = Path(__file__).parent / "apple" / "testing"


@pytest.fixture(scope="module")
def plugin() -> ctypes.CDLL:
    return apple.load_plugin(TESTING / "device.mm")


@pytest.fixture(scope="module")
def violations() -> ctypes.CDLL:
    return apple.load_plugin(TESTING / "violations.mm")


def said(plugin: ctypes.CDLL, function: str, *arguments: int | bytes | None) -> str:
    return ctypes.string_at(apple.call(plugin[function], *arguments)).decode()


VIOLATIONS = {
    "set_bytes_length": r"setBytes:length:atIndex:\]: length 4097 is more than 4096 bytes: use a buffer",
    "set_bytes_nothing": "there are no bytes",
    "buffer_index": r"index 31: a buffer index is 0 to 30",
    "offset_outside": "index 0: offset 64 is outside the buffer of 64 bytes",
    "offset_of_nothing": "index 5 holds no buffer",
    "not_a_buffer": "index 0: <SoftwareMacCommandQueue: .*> is no buffer",
    "threadgroup_multiple": "length 20 is no multiple of 16",
    "threadgroup_length": "length 32784 is more than 32768 bytes",
    "threadgroup_total": "32784 bytes of threadgroup memory in all: the device has 32768",
    "threadgroup_unbound": r'threadgroup memory "scratch" \[\[threadgroup\(0\)\]\] has no length',
    "unbound": r'kernel "scale": "x" \[\[buffer\(0\)\]\] is not bound',
    "short_reference": r'"by" \[\[buffer\(1\)\]\] is bound to 2 bytes and needs 4',
    "misaligned": r'"x" \[\[buffer\(0\)\]\]: offset 2 is no multiple of its alignment, 4',
    "written_bytes": r'may write to "x" \[\[buffer\(0\)\]\], which holds setBytes data',
    "too_many_threads": '1025 threads in a threadgroup: the pipeline "scale" takes 1024',
    "empty_grid": "a size of the grid or of the threadgroup is 0",
    "second_encoder": "another encoder is open: end its encoding first",
    "commit_while_open": "another encoder is open: end its encoding first",
    "use_after_end": r"-\[MTLComputeCommandEncoder dispatch.*the encoder was used after endEncoding",
    "end_twice": "the encoder was used after endEncoding",
    "no_pipeline": "no pipeline state is set",
    "encode_after_commit": r"-\[MTLCommandBuffer computeC.*the command buffer has been committed already",
    "commit_twice": "the command buffer has been committed already",
    "wait_before_commit": "the command buffer has not been committed",
    "private_bytes": "a private buffer cannot be filled by the CPU",
    "empty_buffer": r"-\[MTLDevice newBufferWithLength:options:\]: length is 0",
    "huge_buffer": "is more than maxBufferLength",
    "copy_outside": r"-\[MTLBlitCommandEncoder .*64 bytes at 32 are outside the source of 64 bytes",
    "copy_overlap": "the ranges overlap",
    "nil_function": "computeFunction is nil",
}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_violation(violations: ctypes.CDLL, name: str) -> None:
    with pytest.raises(apple.MetalError, match=VIOLATIONS[name]):
        apple.call(violations.violate, name.encode())


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("runs_late", "5 5 10 4"),
        ("handlers", "4"),
        ("private_buffers", "0 2 64 0 7"),
        ("buffers_outlive_their_owner", "1"),
        (
            "too_much_static_memory",
            "0 Threadgroup memory size (32784) exceeds the maximum threadgroup memory allowed (32768)",
        ),
        ("function_constants", "3 5 0 function constant factor has 4 bytes, the value given for it has 1"),
        (
            "functions",
            "(scale, specialised, copy_first, overrun) 0 Function missing was not found in the library",
        ),
    ],
)
def test_feature(plugin: ctypes.CDLL, function: str, expected: str) -> None:
    assert said(plugin, function) == expected


def test_an_overrun_becomes_the_command_buffers_error(
    plugin: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOFTWARE_MAC_CHECKED", "1")
    assert said(plugin, "overrun").startswith("5 ")
    assert "overrun" in said(plugin, "overrun")


def test_a_missing_barrier_of_a_concurrent_encoder_shows(
    plugin: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOFTWARE_MAC_SEED", "1")
    assert said(plugin, "concurrent", 1) == "2"
    assert said(plugin, "concurrent", 0) == "1"


@pytest.mark.parametrize(
    ("family", "system", "expected"),
    [
        ("apple7", "14.0", "Apple M1 (software) 1007 5001 32768"),
        ("apple9", "15.0", "Apple M3 (software) 1007 1008 1009 5001 32768"),
        ("apple10", "26.0", "Apple M5 (software) 1007 1008 1009 1010 5001 5002 32768"),
    ],
)
def test_device(
    plugin: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, family: str, system: str, expected: str
) -> None:
    monkeypatch.setenv("SOFTWARE_MAC_GPU_FAMILY", family)
    monkeypatch.setenv("SOFTWARE_MAC_MACOS_VERSION", system)
    assert said(plugin, "device") == expected


def test_an_unknown_family_is_refused(plugin: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTWARE_MAC_GPU_FAMILY", "apple6")
    with pytest.raises(apple.MetalError, match="accepted are apple7, apple8, apple9 and apple10"):
        said(plugin, "device")


@pytest.mark.parametrize("system", ["14.0", "15.0"])
def test_math_mode(plugin: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, system: str) -> None:
    monkeypatch.setenv("SOFTWARE_MAC_MACOS_VERSION", system)
    assert said(plugin, "math_mode") == "0"


KERNEL = """#include <metal_stdlib>
using namespace metal;
kernel void k(device {} * x [[buffer(0)]]) {{ x[0] = {}; }}
"""
VERSION_3_1, VERSION_4_0 = 196609, 262144


def compiled(
    plugin: ctypes.CDLL, source: str, version: int = 0, macro: tuple[bytes, bytes] | None = None
) -> str:
    name, value = macro or (None, None)
    return said(plugin, "compile", source.encode(), version, name, value)


def test_compile_error_names_file_and_line(plugin: ctypes.CDLL) -> None:
    error = compiled(plugin, KERNEL.format("float", "missing"))
    assert error.startswith("MTLLibraryErrorDomain 3: program_source:3:")
    assert "missing" in error


def test_macros_do_not_shift_lines(plugin: ctypes.CDLL) -> None:
    assert compiled(plugin, KERNEL.format("float", "VALUE"), macro=(b"VALUE", b"2.0f")) == ""
    assert "program_source:3:" in compiled(plugin, KERNEL.format("float", "VALUE"), macro=(b"OTHER", b"1"))


def test_language_version(plugin: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    source = KERNEL.format("bfloat", "bfloat(1.0f)")
    assert "set languageVersion to 3.1 or later" in compiled(plugin, source)
    assert compiled(plugin, source, VERSION_3_1) == ""
    monkeypatch.setenv("SOFTWARE_MAC_MACOS_VERSION", "13.6")
    assert "the language version needs macOS 14, this is macOS 13" in compiled(plugin, source, VERSION_3_1)
    monkeypatch.setenv("SOFTWARE_MAC_MACOS_VERSION", "15.0")
    assert "needs macOS 26" in compiled(plugin, source, VERSION_4_0)


def test_nothing_stays_alive(plugin: ctypes.CDLL) -> None:
    for function in ("runs_late", "private_buffers"):
        said(plugin, function)
    before = apple.live_objects()
    for function in ("runs_late", "private_buffers", "runs_late"):
        said(plugin, function)
    assert apple.live_objects() == before
