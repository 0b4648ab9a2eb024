"""A plug-in that was compiled for ARM, with the functions that the binding calls."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

from orchard_jit.jit.recipe import ENTRY_POINTS, Recipe, entry_point

from . import mathematics
from .compiler import Unit, link
from .machine import Machine
from .memory import Block
from .program import Program

_HOST = Path(__file__).parent / "host.cpp"
_WORKSPACE_BYTES = 16 << 20
_SCRATCH = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)
_RUN = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p)
_STORAGE = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
_IN_HOST_MEMORY = ctypes.create_string_buffer(b"host")


def plug_in(recipe: Recipe) -> PlugIn:
    """The recipe's, from the very texts and with the very flags that an ARM machine would compile."""
    (source,) = recipe.sources
    host = {"host.cpp": _HOST.read_text(encoding="utf-8"), "params.h": recipe.files["params.h"]}
    path = link(
        Unit(recipe.files, source, recipe.compile_flags),
        Unit(
            host, "host.cpp", ("-std=c++17", "-O3", "-ffreestanding", f"-DORCHARD_RUN={entry_point('run')}")
        ),
        Unit({"mathematics.S": mathematics.stubs()}, "mathematics.S", ()),
    )
    return _loaded(path)


@cache
def _loaded(path: Path) -> PlugIn:
    return PlugIn(Program(path))


class PlugIn:
    """In place of the `ctypes.CDLL` that a library of this machine would be.

    Attributes:
        program: What was compiled.
        workers: How many ran at once in the last call.

    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self._machine = Machine(program)
        self._workspaces = Block(_WORKSPACE_BYTES)
        self.workers = 0
        functions = (_SCRATCH(self._scratch), _RUN(self._run), _STORAGE(self._storage))
        for name, function in zip(ENTRY_POINTS, functions, strict=True):
            setattr(self, entry_point(name), function)

    def _scratch(self, call: int) -> int:
        return self._machine.call(entry_point("scratch"), call)

    def _run(self, call: int) -> int:
        try:
            code = self._machine.call(
                "software_arm_run", call, self._workspaces.address, self._workspaces.size
            )
            self.workers = self._machine.call("software_arm_workers")
        except Exception as error:  # none gets through the C++ that has called us
            reason = ctypes.create_string_buffer(f"{type(error).__name__}: {error}".encode())
            return self._machine.call("software_arm_fail", call, ctypes.addressof(reason))
        return code

    def _storage(self, buffer: int) -> int:
        assert self._machine.text(self._machine.call(entry_point("storage"), buffer)) == _IN_HOST_MEMORY.value
        return ctypes.addressof(_IN_HOST_MEMORY)
