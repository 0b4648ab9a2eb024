"""The Metal device, as Python sees it: counters, living objects, and calls that may be refused."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

from software_mac.apple.toolchain import build_runtime


class MetalError(RuntimeError):
    """What Metal's validation layer would abort the process for."""


class Statistics(ctypes.Structure):
    """What the engine has done since the last reset; the bytes are counted by checked kernels only."""

    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            "dispatches",
            "threadgroups",
            "threadgroup_barriers",
            "simdgroup_operations",
            "device_bytes_read",
            "device_bytes_written",
            "threadgroup_bytes_read",
            "threadgroup_bytes_written",
        )
    ]


@cache
def library() -> ctypes.CDLL:
    """``libsoftware_mac.so``, built if need be, its symbols open to libraries that are loaded later."""
    loaded = ctypes.CDLL(str(build_runtime()), ctypes.RTLD_GLOBAL)
    loaded.software_mac_live_objects.restype = ctypes.c_long
    loaded.software_mac_new_buffer.restype = ctypes.c_void_p
    loaded.software_mac_new_buffer.argtypes = [ctypes.c_size_t, ctypes.c_int]
    loaded.software_mac_buffer_bytes.restype = ctypes.c_void_p
    loaded.software_mac_buffer_bytes.argtypes = [ctypes.c_void_p]
    loaded.software_mac_release.argtypes = [ctypes.c_void_p]
    return loaded


def live_objects() -> dict[str, int]:
    """How many instances of each Objective-C class are alive."""
    capacity = library().software_mac_live_objects(None, 0) + 1024
    text = ctypes.create_string_buffer(capacity)
    library().software_mac_live_objects(text, capacity)
    return {name: int(count) for name, count in (line.split() for line in text.value.decode().splitlines())}


def statistics() -> Statistics:
    """A copy of the engine's counters."""
    counters = Statistics()
    library().software_mac_read_statistics(ctypes.byref(counters))
    return counters


def reset_statistics() -> None:
    library().software_mac_reset_statistics()


def call(function: Callable[..., Any], *arguments: int | bytes | None) -> int:
    """Calls a C function with up to six integers, pointers or texts. MetalError: where Metal would abort."""
    if len(arguments) > 6:
        raise TypeError(f"call takes up to 6 arguments, got {len(arguments)}")
    words = (ctypes.c_int64 * 6)(*map(_word, arguments))
    result = ctypes.c_int64()
    error = ctypes.create_string_buffer(4096)
    if library().software_mac_call(function, words, ctypes.byref(result), error, len(error)):
        raise MetalError(error.value.decode())
    return result.value


def _word(argument: int | bytes | None) -> int:
    if isinstance(argument, bytes):  # its caller holds it for as long as the call takes
        return ctypes.cast(ctypes.c_char_p(argument), ctypes.c_void_p).value or 0
    return argument or 0
