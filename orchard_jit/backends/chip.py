"""Which Mac this is."""

from __future__ import annotations

import ctypes
import platform


def chip_name() -> str:
    """As "Apple M3 Max"."""
    if platform.system() != "Darwin":
        return "Apple M3"  # somebody emulates a Mac, and says by ORCHARD_GPU_FAMILY if it is to be another
    system = ctypes.CDLL(None)
    buffer = ctypes.create_string_buffer(256)
    size = ctypes.c_size_t(len(buffer))
    system.sysctlbyname(b"machdep.cpu.brand_string", buffer, ctypes.byref(size), None, 0)
    return buffer.value.decode()
