"""Calls of orchard_jit on the CPU that get ARM kernels, for as long as a test lasts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from orchard_jit import binding
from orchard_jit.backends.cpu import CpuBackend
from orchard_jit.jit import library
from orchard_jit.jit.recipe import Recipe
from orchard_jit.variant import Variant

from .plug_in import PlugIn, plug_in


@contextmanager
def arm_kernels() -> Iterator[Session]:
    """Meanwhile, calls on the CPU get ARM kernels; all above them is this machine's own."""
    session = Session()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CpuBackend, "arch", lambda _: "arm64")
        patch.setattr(library, "load_all", session.load_all)
        binding.forget_kernels()
        try:
            yield session
        finally:
            binding.forget_kernels()


class Session:
    """Whose kernels they are.

    Attributes:
        plug_ins: Those that calls have asked for, by what they are.
        flags: For the compiler, beside those of the recipes.

    """

    def __init__(self) -> None:
        self.plug_ins: dict[Variant, PlugIn] = {}
        self.flags: tuple[str, ...] = ()
        self._edits: list[tuple[str, str, str]] = []
        self._native = library.load_all

    def edit(self, file: str, text: str, replacement: str) -> None:
        """Break the kernels that are compiled from now on: in one of their files, in one place."""
        self._edits.append((file, text, replacement))
        binding.forget_kernels()

    def load_all(self, recipes: Sequence[Recipe]) -> list[Any]:
        """In place of `library.load_all`, which loads the operators."""
        return [self._load(recipe) for recipe in recipes]

    def _load(self, recipe: Recipe) -> Any:
        if "variant" not in recipe.spec:
            return self._native([recipe])[0]
        variant = Variant.from_json(recipe.spec["variant"])
        assert variant.arch == "arm64"
        files = dict(recipe.files)
        for name, text, replacement in self._edits:
            assert files[name].count(text) == 1, f"{name} holds {files[name].count(text)} of {text!r}"
            files[name] = files[name].replace(text, replacement)
        flags = (*recipe.compile_flags, *self.flags)
        self.plug_ins[variant] = plug_in(replace(recipe, files=files, compile_flags=flags))
        return self.plug_ins[variant]
