"""CPU kernels for instructions that this machine may not have, in software: bfloat16 by pairs, and by AMX.

The kernels' text is theirs but for two headers, `pairs.h` and `amx.h`: each a few instructions, which the
ones here spell out after Intel's manual. Of all other vectors the compiler makes what any x86-64 processor
has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchard_jit import binding
from orchard_jit.backends.cpu import CpuBackend
from orchard_jit.jit import library
from orchard_jit.jit.recipe import Recipe
from orchard_jit.variant import Variant

PAIRS, TILES = ARCHS = ("x86-64-v4-bf16", "x86-64-v4-amx")
_HEADERS = {path.name: path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("*.h")}
_FLAGS = ("-std=c++17", "-O0", "-fvisibility=hidden", "-march=x86-64", "-Wno-psabi")


@contextmanager
def kernels_for(arch: str, *, software: bool = True) -> Iterator[list[Variant]]:
    """Meanwhile, calls in bfloat16 on the CPU get kernels for `arch`. Yields those that are asked for."""
    asked: list[Variant] = []
    native = library.load_all

    def load_all(recipes: Sequence[Recipe]) -> list[Any]:
        return native([_in_software(recipe, asked) if software else recipe for recipe in recipes])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CpuBackend, "arch", lambda _: arch)
        patch.setattr(library, "load_all", load_all)
        binding.forget_kernels()
        try:
            yield asked
        finally:
            binding.forget_kernels()


def _in_software(recipe: Recipe, asked: list[Variant]) -> Recipe:
    if "variant" not in recipe.spec:
        return recipe
    variant = Variant.from_json(recipe.spec["variant"])
    asked.append(variant)
    assert variant.dtype == "bfloat16", "float32 needs no software"
    origin = {**recipe.origin, "software": _HEADERS}
    return replace(recipe, files={**recipe.files, **_HEADERS}, origin=origin, compile_flags=_FLAGS)
