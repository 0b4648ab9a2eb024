"""Metal Shading Language on Linux: checked, linted, compiled and run lane by lane. See README.md."""

from .compiler import check, compile_library, compile_source
from .diagnostics import Diagnostic, MetalCompileError
from .library import Argument, DispatchError, KernelRecord, Library, Statistics, Status, Traffic

__all__ = [
    "Argument",
    "Diagnostic",
    "DispatchError",
    "KernelRecord",
    "Library",
    "MetalCompileError",
    "Statistics",
    "Status",
    "Traffic",
    "check",
    "compile_library",
    "compile_source",
]
