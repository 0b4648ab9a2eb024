"""The tests' own compiler: it keeps the operators' objects, and nothing that was made of anything else."""

from __future__ import annotations

import shutil

import pytest

from .compilers import compile_once

COMPILER = shutil.which("c++")


@pytest.fixture
def compile_in(tmp_path, monkeypatch):
    """Compiles binding.cpp in one folder after the other, as caches do. Returns the object's bytes."""
    kept = tmp_path / "kept"
    kept.mkdir()

    def compiled(folder, header, *flags, compiler=COMPILER):
        source = tmp_path / folder / "src" / "binding.cpp"
        source.parent.mkdir(parents=True)
        source.with_name("binding.h").write_text(header)
        source.write_text('#include "binding.h"\n')
        output = source.with_suffix(".o")
        where = ["-MMD", "-MF", f"{output}.d", "-c", str(source), "-o", str(output)]
        assert compile_once(kept, compiler, *flags, *where) == 0
        assert output.with_suffix(".o.d").read_text().startswith(f"{output}:")
        return output.read_bytes()

    return compiled


def test_the_same_is_compiled_once(compile_in, monkeypatch):
    first = compile_in("first", "int answer() { return 42; }", "-DTORCH_EXTENSION_NAME=one")
    monkeypatch.setattr("subprocess.run", lambda *_, **__: pytest.fail("compiled again"))
    assert compile_in("second", "int answer() { return 42; }", "-DTORCH_EXTENSION_NAME=two") == first


def test_another_text_or_flag_is_compiled_anew(compile_in):
    first = compile_in("first", "int answer() { return 42; }")
    assert compile_in("second", "int answer() { return 43; }") != first
    assert compile_in("third", "int answer() { return 42; }", "-DNDEBUG", "-g") != first


def test_a_refusal_is_not_kept(tmp_path):
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "binding.cpp").write_text("int x = y;\n")
    arguments = ["-c", str(tmp_path / "src" / "binding.cpp"), "-o", str(tmp_path / "binding.o")]
    assert compile_once(tmp_path, COMPILER, *arguments) != 0
    assert not list(tmp_path.glob("*.o"))
