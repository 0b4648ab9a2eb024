"""ARM kernels on any machine: compiled for ARM by clang, and run in an emulator. See README.md."""

from .code import innermost_loops
from .memory import Guarded
from .session import arm_kernels

__all__ = ["Guarded", "arm_kernels", "innermost_loops"]
