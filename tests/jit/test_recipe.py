"""What is in a key, and what is not."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys

import pytest
import torch

from orchard_jit.errors import CacheError
from orchard_jit.jit import recipe, render
from orchard_jit.selection import select


def variant(**changes):
    wish = {"backend": "cpu", "kernel": "forward", "dtype": "float32", "head_dim": 64, "head_dim_v": 64}
    return select(**{**wish, **changes})


BASE = recipe.for_variant(variant())


def test_keys_are_stable_between_processes():
    code = "from tests.jit.test_recipe import BASE; print(BASE.key)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == BASE.key
    assert len(BASE.key) == 20


@pytest.mark.parametrize(
    "other",
    [
        variant(kernel="backward"),
        variant(dtype="bfloat16"),
        variant(head_dim=65),
        variant(head_dim_v=32),
        variant(features=["causal"]),
        variant(arch="x86-64"),
        variant().with_blocks({"q": 64, "k": 32}),
    ],
    ids=str,
)
def test_every_field_of_a_variant_is_in_the_key(other):
    assert recipe.for_variant(other).key != BASE.key


def test_texts_flags_and_the_compiler_that_was_chosen_are_in_the_key(monkeypatch):
    changed = {**BASE.origin["templates"], "cpu": "0" * 64}
    assert dataclasses.replace(BASE, origin={**BASE.origin, "templates": changed}).key != BASE.key
    assert dataclasses.replace(BASE, compile_flags=tuple(reversed(BASE.compile_flags))).key != BASE.key
    monkeypatch.setenv("CXX", "clang++")
    assert recipe.for_variant(variant()).key != BASE.key
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("ORCHARD_JIT_CXXFLAGS", "-g '-DX=a b'")
    assert recipe.for_variant(variant()).compile_flags[-2:] == ("-g", "-DX=a b")
    assert recipe.for_variant(variant()).key != BASE.key


@pytest.mark.parametrize("variable", ["ORCHARD_JIT_CXXFLAGS", "CXX"])
def test_the_processor_is_in_the_key_where_the_compiler_looks_at_it(variable, monkeypatch):
    monkeypatch.setenv(variable, "-O2 -march=native" if variable != "CXX" else "c++ -march=native")
    here = recipe.for_variant(variant()).key
    monkeypatch.setattr(recipe, "_processor", lambda: "an older one, which would end at an instruction")
    assert recipe.for_variant(variant()).key != here
    monkeypatch.delenv(variable)
    assert recipe.for_variant(variant()).key_inputs == BASE.key_inputs


def test_torch_is_in_the_key_of_the_operators_alone(monkeypatch):
    operators = recipe.for_binding()
    monkeypatch.setattr(torch, "__version__", "2.99.0")
    assert recipe.for_binding().key != operators.key
    assert recipe.for_binding().shelf.startswith("torch2.99.0-")
    assert recipe.for_variant(variant()).key == BASE.key


def test_plug_ins_include_no_torch():
    """So that a cache of kernels outlives an upgrade of torch."""
    includes = {
        line.split()[1]
        for text in BASE.files.values()
        for line in text.splitlines()
        if line.startswith("#include")
    }
    assert '"params.h"' in includes
    assert not [name for name in includes if name.strip('"<').startswith(("torch", "ATen", "c10"))]


def test_a_file_without_jinja_may_hold_braces(tmp_path, monkeypatch):
    (tmp_path / "plain.h").write_text("int a[1][1] = {{0}};")
    monkeypatch.setattr(render, "templates_directory", lambda: tmp_path)
    assert dict(render.Rendering("*")) == {"plain.h": "int a[1][1] = {{0}};"}


def test_a_key_needs_no_rendering(monkeypatch):
    monkeypatch.setattr(render, "_environment", None)
    assert recipe.for_variant(variant()).key == BASE.key


@pytest.fixture
def templates(tmp_path, monkeypatch):
    """A copy of all templates, to be edited."""
    folder = tmp_path / "templates"
    shutil.copytree(render.templates_directory(), folder)
    monkeypatch.setattr(render, "templates_directory", lambda: folder)
    return folder


@pytest.mark.parametrize(
    ("backend", "others"), [("cpu", {"metal", "binding", "bench"}), ("metal", {"cpu", "binding", "bench"})]
)
def test_every_file_that_a_template_may_include_is_in_the_key(templates, backend, others):
    """A process notices what is edited with the next variant that it asks for."""
    wanted = variant(backend=backend, **({"arch": "apple9"} if backend == "metal" else {}))
    before = recipe.for_variant(wanted).key
    for path in sorted(path for path in templates.rglob("*") if path.is_file()):
        text = path.read_text()
        path.write_text(f"{text[:-2]}{text[:-3:-1]}")  # of the same length, a moment later
        after = recipe.for_variant(wanted).key
        assert (after == before) == (path.parent.name in others), path
        before = after


def test_nothing_is_compiled_of_templates_that_change_in_between(templates):
    """A library of the new text would lie under the key of the old one, also when that comes back."""
    wanted = recipe.for_variant(variant())
    (templates / "cpu" / "exp2.h").write_text("#error edited")
    with pytest.raises(CacheError, match="have changed since the key was made"):
        dict(wanted.files)
    assert "#error edited" in recipe.for_variant(variant()).files["exp2.h"]


@pytest.mark.parametrize("change", ["renamed", "added", "removed", "moved"])
def test_names_and_borders_of_files_are_in_the_key(templates, change):
    first, second = templates / "cpu" / "exp2.h", templates / "cpu" / "expression.h"
    before = recipe.for_variant(variant()).key
    if change == "renamed":
        first.rename(first.with_name("exp3.h"))
    elif change == "added":
        first.with_name("nothing.h").touch()
    elif change == "removed":
        first.unlink()
    else:
        first.write_text(first.read_text()[:-1])
        second.write_text(f"\n{second.read_text()}")
    assert recipe.for_variant(variant()).key != before
