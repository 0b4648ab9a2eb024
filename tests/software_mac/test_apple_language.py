"""Objective-C++ on Linux: classes, counted references, blocks, exceptions and the small Foundation."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

pytest.importorskip("ziglang")

from software_mac import apple

SOURCE = Path(__file__).parent / "apple" / "testing" / "language.mm"


@pytest.fixture(scope="module")
def plugin() -> ctypes.CDLL:
    return apple.load_plugin(SOURCE)


def said(plugin: ctypes.CDLL, function: str) -> str:
    return ctypes.string_at(apple.call(plugin[function])).decode()


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("inheritance", "animal/bird 2 4 wren 10"),
        ("lifetime", "construct kept dealloc destruct "),
        ("blocks", "5 11 11 construct dealloc destruct "),
        ("exception_through_block", "through a block and a queue"),
        ("once", "1"),
        ("messages_to_nil", "0 0.000000 nil"),
        ("collections", "one=1;half=0.5;yes=1; (a, 2) 2 a"),
        ("strings", " 3.14|ab  |0007|1099511627776|%|nested 8 1"),
        ("errors", "it broke Test 7"),
    ],
)
def test_language(plugin: ctypes.CDLL, function: str, expected: str) -> None:
    assert said(plugin, function) == expected


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("unrecognized_selector", r"-\[Animal UTF8String\]: unrecognized selector"),
        ("released_too_often", r"-\[Animal release\]: message to an object that was deallocated"),
        (
            "reentrant_dispatch_sync",
            'dispatch_sync on queue "stream", which this thread already runs: a deadlock',
        ),
    ],
)
def test_programming_errors(plugin: ctypes.CDLL, function: str, message: str) -> None:
    with pytest.raises(apple.MetalError, match=message):
        apple.call(plugin[function])


def test_logging(plugin: ctypes.CDLL, capfd: pytest.CaptureFixture[str]) -> None:
    apple.call(plugin.logging)
    assert capfd.readouterr().err == "NSLog on a Mac\nos_log of 7\n"


def test_nothing_stays_alive(plugin: ctypes.CDLL) -> None:
    functions = ["inheritance", "lifetime", "blocks", "collections", "strings", "errors", "system_version"]
    for function in functions:
        said(plugin, function)
    before = apple.live_objects()
    for _ in range(100):
        for function in functions:
            said(plugin, function)
    assert apple.live_objects() == before


@pytest.mark.parametrize(
    ("version", "expected"), [("14.4", "14.4 0"), ("15.2", "15.2 1"), ("26.0", "26.0 1")]
)
def test_system_version(
    plugin: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, version: str, expected: str
) -> None:
    monkeypatch.setenv("SOFTWARE_MAC_MACOS_VERSION", version)
    assert said(plugin, "system_version") == expected


def test_an_unknown_class_cannot_be_loaded(tmp_path: Path) -> None:
    source = tmp_path / "unknown.mm"
    source.write_text(
        "#import <Foundation/Foundation.h>\n@interface Missing : NSObject\n@end\n"
        'extern "C" id make() { return [[Missing alloc] init]; }\n'
    )
    with pytest.raises(OSError, match="__objc_class_name_Missing"):
        apple.load_plugin(source)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("[device newBufferWithLenght:4 options:0];", "newBufferWithLenght:options:"),
        ("[device newBufferWithLength:4 options:0 label:nil];", "newBufferWithLength:options:label:"),
        ("MTLStorageMode mode = 2; (void)mode;", "MTLStorageMode"),
        ("@try { } @catch (id e) { }", "@try"),
    ],
)
def test_what_does_not_compile(tmp_path: Path, statement: str, message: str) -> None:
    source = tmp_path / "wrong.mm"
    source.write_text(f"#import <Metal/Metal.h>\nvoid wrong(id<MTLDevice> device) {{ {statement} }}\n")
    with pytest.raises(RuntimeError, match=message):
        apple.load_plugin(source)
