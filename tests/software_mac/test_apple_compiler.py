"""The compiler for ``CXX``: Objective-C++ goes to clang, the rest to g++, and frameworks to our runtime."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("ziglang")

from software_mac import apple
from software_mac.apple import builder, driver

HOST = '#import <Metal/Metal.h>\nextern "C" int is_here() { return MTLCreateSystemDefaultDevice() != nil; }\n'


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [str(apple.compiler()), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_compile_and_link(tmp_path: Path) -> None:
    source, compiled, plugin = tmp_path / "host.mm", tmp_path / "host.o", tmp_path / "host.so"
    source.write_text(HOST)
    made = run("-MMD", "-MF", f"{compiled}.d", "-fPIC", "-std=c++20", "-c", source, "-o", compiled)
    assert made.returncode == 0, made.stderr
    assert "Metal/Metal.h" in Path(f"{compiled}.d").read_text()
    linked = run(compiled, "-shared", "-framework", "Metal", "-framework", "Foundation", "-o", plugin)
    assert linked.returncode == 0, linked.stderr
    assert apple.call(ctypes.CDLL(str(plugin)).is_here) & 0xFF == 1


def test_the_first_includes_are_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "first.mm", tmp_path / "second.mm"
    first.write_text(HOST)
    second.write_text("// Another.\n" + HOST.replace("is_here", "is_there"))

    def header_of(source: Path) -> list[str]:
        arguments = ["-std=c++20", "-MMD", "-MF", f"{source}.d", "-c", str(source), "-o", f"{source}.o"]
        return driver.precompiled(source, arguments)

    header = header_of(first)
    monkeypatch.setattr(builder, "_run", lambda command: pytest.fail("compiled again"))
    assert header_of(second) == header


def test_what_a_host_does_not_include_is_not_there(tmp_path: Path) -> None:
    source = tmp_path / "host.mm"
    source.write_text("#include <vector>\nint x;\n#include <string>\n" + HOST)
    assert driver.prefix(source.read_text()) == "#include <vector>"
    source.write_text("int x = NSNotFound;\n")
    refused = run("-c", source, "-o", tmp_path / "host.o")
    assert refused.returncode != 0
    assert "host.mm:1:9: error: use of undeclared identifier 'NSNotFound'" in refused.stderr


def test_a_host_compiles_for_a_real_mac(tmp_path: Path) -> None:
    compiled = tmp_path / "example.o"
    apple.compile_for_mac(Path(__file__).parent / "apple" / "example" / "example.mm", compiled)
    assert compiled.read_bytes()[:8] == bytes.fromhex("cffaedfe0c000001")  # Mach-O, 64 bits, arm64


def test_an_unknown_framework_is_refused() -> None:
    refused = run("x.o", "-shared", "-framework", "CoreML", "-o", "x.so")
    assert refused.returncode != 0
    assert "-framework CoreML: the software Mac has Foundation and Metal" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "first"),
    [
        (["-c", "a.cpp", "-o", "a.o"], "g++"),
        (["a.o", "-shared", "-o", "a.so"], "g++"),
        (["-dumpversion"], "g++"),
    ],
)
def test_everything_else_is_for_the_host_compiler(arguments: list[str], first: str) -> None:
    assert driver.command(arguments) == [first, *arguments]


def test_libraries_are_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTWARE_MAC_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "one.cpp"
    source.write_text('extern "C" int one() { return 1; }\n')
    unit = builder.Unit(source, ["g++", "-fPIC"])
    first = builder.build_library("one.so", [unit], [], [])
    monkeypatch.setattr(builder, "_run", lambda command: pytest.fail("compiled again"))
    assert builder.build_library("one.so", [unit], [], []) == first


def test_a_changed_header_builds_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTWARE_MAC_CACHE", str(tmp_path / "cache"))
    source, header = tmp_path / "one.cpp", tmp_path / "one.h"
    source.write_text('#include "one.h"\nextern "C" int one() { return ONE; }\n')
    unit = builder.Unit(source, ["g++", "-fPIC"])
    built = []
    for value in (1, 2):
        header.write_text(f"#define ONE {value}\n")
        built.append(builder.build_library("one.so", [unit], [header], []))
    assert [ctypes.CDLL(str(library)).one() for library in built] == [1, 2]


def test_a_failed_build_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTWARE_MAC_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "bad.cpp"
    source.write_text("int x = y;\n")
    with pytest.raises(
        RuntimeError, match=r"‘y’ was not declared|use of undeclared identifier 'y'|'y' was not declared"
    ):
        builder.build_library("bad.so", [builder.Unit(source, ["g++"])], [], [])
