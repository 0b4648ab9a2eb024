"""The CPU: instruction sets as portable levels, so that a cache may move between machines of one level."""

from __future__ import annotations

import platform
from collections.abc import Mapping

from orchard_jit.backends.base import Backend
from orchard_jit.variant import DTYPES, Variant

_VECTOR_BYTES = {"x86-64-v4": 64, "x86-64-v3": 32, "x86-64": 16, "arm64": 16}
_MACHINE_FLAGS = {
    "x86-64-v4": ("-march=x86-64-v4", "-mprefer-vector-width=512"),
    "x86-64-v3": ("-march=x86-64-v3",),
    "x86-64": ("-march=x86-64",),
    "arm64": (),
}
_X86_LEVELS = {"AVX512": "x86-64-v4", "AVX2": "x86-64-v3"}


class CpuBackend(Backend):
    """x86-64 with SSE2, AVX2 or AVX-512, and 64-bit ARM with NEON."""

    name = "cpu"
    dtypes = frozenset(DTYPES)

    def arch(self) -> str:
        machine = platform.machine().lower()
        if machine in ("arm64", "aarch64"):
            return "arm64"
        if machine in ("x86_64", "amd64"):
            import torch  # PyTorch already knows what this processor and its operating system can do

            return _X86_LEVELS.get(torch.backends.cpu.get_cpu_capability(), "x86-64")
        raise NotImplementedError(
            f"orchard_jit has kernels for x86-64 and arm64 processors, not for {machine}"
        )

    def check(self, variant: Variant) -> None:
        if variant.arch not in _VECTOR_BYTES:
            raise ValueError(f"arch must be one of {', '.join(_VECTOR_BYTES)}; got {variant.arch!r}")

    def blocks(self, variant: Variant) -> Mapping[str, int]:
        wide = max(variant.head_dim, variant.head_dim_v) > 128
        if variant.kernel == "forward":
            return {"q": 128 if wide else 256, "k": 96}
        return {"q": 64 if wide else 128, "k": 96}

    def templates(self, variant: Variant) -> tuple[str, ...]:
        return (f"cpu/{variant.kernel}.cpp.j2", "cpu/*.h*", "params.h.j2")

    def context(self, variant: Variant) -> Mapping[str, object]:
        return {"vector_bytes": _VECTOR_BYTES[variant.arch]}

    def compile_flags(self, variant: Variant) -> tuple[str, ...]:
        return ("-std=c++17", "-O3", "-fvisibility=hidden", *_MACHINE_FLAGS[variant.arch])

    def link_flags(self, variant: Variant) -> tuple[str, ...]:
        return ()
