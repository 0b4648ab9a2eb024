"""What differs by device. Everything else in the package asks here."""

from __future__ import annotations

from orchard_jit.backends.base import Backend
from orchard_jit.backends.cpu import CpuBackend
from orchard_jit.backends.metal import MetalBackend

_BACKENDS: dict[str, Backend] = {backend.name: backend for backend in (CpuBackend(), MetalBackend())}


def get(name: str) -> Backend:
    """The backend of that name ("cpu" or "metal")."""
    try:
        return _BACKENDS[name]
    except KeyError:
        raise ValueError(f"backend must be one of {', '.join(_BACKENDS)}; got {name!r}") from None


__all__ = ["Backend", "get"]
