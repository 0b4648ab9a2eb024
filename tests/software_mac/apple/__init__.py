"""Apple's side of the software Mac: Objective-C++, Foundation and a Metal device, on Linux."""

from software_mac.apple.device import (
    MetalError,
    Statistics,
    call,
    library,
    live_objects,
    reset_statistics,
    statistics,
)
from software_mac.apple.plugin import load_plugin
from software_mac.apple.toolchain import build_runtime, compile_for_mac, compiler

__all__ = [
    "MetalError",
    "Statistics",
    "build_runtime",
    "call",
    "compile_for_mac",
    "compiler",
    "library",
    "live_objects",
    "load_plugin",
    "reset_statistics",
    "statistics",
]
