"""The CPU: instruction sets as portable levels, so that a cache may move between machines of one level."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from orchard_jit.backends.base import Backend
from orchard_jit.backends.chip import chip_name
from orchard_jit.variant import DTYPES, Variant

_OF_PAIRS = "x86-64-v4-bf16"
"""AVX-512 with an instruction that multiplies pairs of bfloat16 and adds them up in float32."""
_OF_TILES = "x86-64-v4-amx"
"""That, and AMX, which multiplies tiles of such pairs."""


class _Vectors(NamedTuple):
    bytes: int
    registers: int


_AVX_512 = _Vectors(64, 32)
_VECTORS = {
    _OF_TILES: _AVX_512,
    _OF_PAIRS: _AVX_512,
    "x86-64-v4": _AVX_512,
    "x86-64-v3": _Vectors(32, 16),
    "x86-64": _Vectors(16, 16),
    "arm64": _Vectors(16, 32),
}
_MACHINE_FLAGS = {
    _OF_TILES: ("-march=x86-64-v4", "-mavx512bf16", "-mamx-tile", "-mamx-bf16", "-mprefer-vector-width=512"),
    _OF_PAIRS: ("-march=x86-64-v4", "-mavx512bf16", "-mprefer-vector-width=512"),
    "x86-64-v4": ("-march=x86-64-v4", "-mprefer-vector-width=512"),
    "x86-64-v3": ("-march=x86-64-v3",),
    "x86-64": ("-march=x86-64",),
    "arm64": (),
}
_ARM = ("arm64", "aarch64")
_X86_LEVELS = {"AVX512": "x86-64-v4", "AVX2": "x86-64-v3"}


class CpuBackend(Backend):
    """x86-64 with SSE2, AVX2 or AVX-512, and 64-bit ARM with NEON."""

    name = "cpu"
    dtypes = frozenset(DTYPES)
    archs = tuple(_VECTORS)
    tiles: ClassVar = {"q": "block_q", "k": "block_k"}

    def arch(self) -> str:
        machine = platform.machine().lower()
        if machine in _ARM:
            return "arm64"
        if machine in ("x86_64", "amd64"):
            import torch  # PyTorch already knows what this processor and its operating system can do

            level = _X86_LEVELS.get(torch.backends.cpu.get_cpu_capability(), "x86-64")
            if level == "x86-64-v4" and torch.cpu._is_avx512_bf16_supported():
                return _OF_TILES if _grants_tiles() else _OF_PAIRS if _pairs_pay() else level
            return level
        raise NotImplementedError(
            f"orchard_jit has kernels for x86-64 and arm64 processors, not for {machine}"
        )

    def kernel_arch(self, arch: str, kernel: str, dtype: str) -> str:
        fills_no_tile = arch == _OF_TILES and kernel == "decode"
        if arch in (_OF_PAIRS, _OF_TILES) and (dtype != "bfloat16" or fills_no_tile):
            return "x86-64-v4"
        return arch

    def device(self) -> str:
        if platform.system() == "Darwin":
            return chip_name()
        try:
            with Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
                names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
                return next(names, platform.machine())
        except OSError:
            return platform.machine()

    def operand_bits(self, variant: Variant) -> int:
        return 64 if variant.dtype == "float64" else 32

    def check(self, variant: Variant) -> None:
        if variant.arch not in _VECTORS:
            raise ValueError(f"arch must be one of {', '.join(_VECTORS)}; got {variant.arch!r}")
        blocks = dict(variant.blocks)
        if set(blocks) != {"q", "k"}:
            raise ValueError(f"a cpu kernel has the blocks q and k; got {', '.join(blocks) or 'none'}")
        if blocks["q"] % 64 or blocks["q"] > 1024:
            raise ValueError(f"block q must be a multiple of 64 up to 1024, got {blocks['q']}")
        if blocks["k"] > 1024:
            raise ValueError(f"block k must be 1 to 1024, got {blocks['k']}")

    def templates(self, variant: Variant) -> tuple[str, ...]:
        return (f"cpu/{variant.kernel}.cpp.j2", "cpu/*.h*")

    def context(self, variant: Variant) -> Mapping[str, object]:
        vectors = _VECTORS[variant.arch]
        return {
            "vector_bytes": vectors.bytes,
            "vector_registers": vectors.registers,
            "multiplies_pairs": variant.arch in (_OF_PAIRS, _OF_TILES),
            "multiplies_tiles": variant.arch == _OF_TILES,
        }

    def machine(self, variant: Variant) -> str:
        here = platform.machine().lower()
        if variant.arch != "arm64":
            return "x86_64"
        return here if here in _ARM else "aarch64"

    def compile_flags(self, variant: Variant) -> tuple[str, ...]:
        return ("-std=c++17", "-O3", "-fvisibility=hidden", *_MACHINE_FLAGS[variant.arch])

    def link_flags(self, variant: Variant) -> tuple[str, ...]:
        return ()


def _grants_tiles() -> bool:
    """Whether there is AMX, and the system lets this process use it, which it has to be asked for."""
    import torch

    # Releases before 2.6 don't have all of these.
    supported = getattr(torch.cpu, "_is_amx_tile_supported", None)
    initialise = getattr(torch.cpu, "_init_amx", None)
    return bool(supported and initialise and supported() and initialise())


def _pairs_pay() -> bool:
    """Intel's processors multiply by pairs half as fast as in float32, AMD's twice as fast."""
    import torch

    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return "Intel" not in capabilities.get("cpu_name", "")
