"""``device="mps"`` for PyTorch on Linux, on the Metal device of ``software_mac.apple``."""

from software_mac.mps.device import (
    Allocations,
    allocations,
    build_device,
    command_buffer,
    dispatch_queue,
    install,
    reset_allocations,
)

__all__ = [
    "Allocations",
    "allocations",
    "build_device",
    "command_buffer",
    "dispatch_queue",
    "install",
    "reset_allocations",
]
