"""The C library's mathematical functions, which emulated programs borrow from this process."""

from __future__ import annotations

import ctypes
import ctypes.util
from collections.abc import Callable
from functools import cache

NAMES = tuple(
    name + suffix
    for name in ("exp", "exp2", "log", "log2", "tanh", "sin", "cos", "floor", "sqrt", "pow", "fmod")
    for suffix in ("", "f")
)


def stubs() -> str:
    """Assembly that defines them: each asks the system, by its place in `NAMES`."""
    return "".join(f".globl {name}\n{name}: svc #{place}\nret\n" for place, name in enumerate(NAMES))


@cache
def function(place: int) -> tuple[Callable[..., float], type]:
    """The one of that place, and the type of its two numbers. Who wants one ignores the second."""
    name = NAMES[place]
    number = ctypes.c_float if name.endswith("f") else ctypes.c_double
    found = ctypes.CDLL(ctypes.util.find_library("m"))[name]
    found.restype, found.argtypes = number, (number, number)
    return found, number
