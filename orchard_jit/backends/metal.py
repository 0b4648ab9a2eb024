"""Apple GPUs: families as archs, and what fits into a threadgroup."""

from __future__ import annotations

import ctypes
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass

from orchard_jit.backends.base import Backend
from orchard_jit.variant import Variant

FAMILIES = ("apple7", "apple8", "apple9", "apple10")
"""M1; M2; M3 and M4; M5 and later."""

_FAMILY_OF_GENERATION = {1: "apple7", 2: "apple8", 3: "apple9", 4: "apple9"}
_OLDEST_MACOS = 14
_SIMD = 32
_MAX_THREADS = 1024
_MAX_THREADGROUP_BYTES = 32 * 1024
_FLOAT2_BYTES = 8

# The kernels of each pass, by the prefix of their blocks.
_PREFIXES = {"forward": ("",), "backward": ("dq_", "dkv_")}


@dataclass(frozen=True)
class Grouping:
    """How one kernel shares out its work.

    Attributes:
        rows: Queries (in dK/dV: keys) that a simdgroup, or a team of them, owns; a multiple of 8.
        columns: Keys (in dK/dV: queries) that it meets at once; a multiple of 8.
        simdgroups: Simdgroups of a threadgroup.
        split: Simdgroups of a team, which share rows and hold a slice of the head dim each.

    """

    rows: int
    columns: int
    simdgroups: int
    split: int

    @property
    def threads(self) -> int:
        """Threads of a threadgroup."""
        return _SIMD * self.simdgroups

    @property
    def threadgroup_bytes(self) -> int:
        """Threadgroup memory: the scores' parts that a team adds up, twice, so that one barrier is enough."""
        if self.split == 1:
            return 0
        fragments = self.rows // 8 * (self.columns // 8)
        return 2 * self.simdgroups * fragments * _SIMD * _FLOAT2_BYTES


def groupings(variant: Variant) -> dict[str, Grouping]:
    """The groupings of a variant's kernels, by the prefix of their blocks."""
    blocks = dict(variant.blocks)
    names = ("rows", "columns", "simdgroups", "split")
    try:
        return {
            prefix: Grouping(**{name: blocks[prefix + name] for name in names})
            for prefix in _PREFIXES[variant.kernel]
        }
    except KeyError as error:
        raise ValueError(
            f"a metal {variant.kernel} needs a block {error}; got {', '.join(blocks) or 'none'}"
        ) from None


class MetalBackend(Backend):
    """The GPU of an Apple Silicon Mac, from M1 on."""

    name = "metal"
    dtypes = frozenset({"float32", "float16", "bfloat16"})

    def arch(self) -> str:
        """`ORCHARD_GPU_FAMILY`, else the family of this Mac's chip."""
        version = platform.mac_ver()[0]
        if version and int(version.split(".")[0]) < _OLDEST_MACOS:
            raise NotImplementedError(
                f"the Metal kernels need macOS {_OLDEST_MACOS} or later; this is {version}"
            )
        return os.environ.get("ORCHARD_GPU_FAMILY") or family_of_chip(_chip_name())

    def check(self, variant: Variant) -> None:
        if variant.arch not in FAMILIES:
            raise ValueError(f"a metal arch must be one of {', '.join(FAMILIES)}; got {variant.arch!r}")
        if variant.dtype not in self.dtypes:
            raise ValueError(
                f"Metal has no {variant.dtype}; use {', '.join(sorted(self.dtypes))}, or the cpu"
            )
        for prefix, grouping in groupings(variant).items():
            for name, most in (("rows", 64), ("columns", 128)):
                size = getattr(grouping, name)
                if size % 8 or size > most:
                    raise ValueError(f"block {prefix}{name} must be a multiple of 8 up to {most}, got {size}")
            if grouping.simdgroups % grouping.split:
                raise ValueError(
                    f"block {prefix}simdgroups must be a multiple of {prefix}split, "
                    f"got {grouping.simdgroups} and {grouping.split}"
                )
            if grouping.threads > _MAX_THREADS:
                raise ValueError(
                    f"block {prefix}simdgroups={grouping.simdgroups} makes {grouping.threads} threads; "
                    f"a threadgroup has {_MAX_THREADS} at most"
                )
            if grouping.threadgroup_bytes > _MAX_THREADGROUP_BYTES:
                raise ValueError(
                    f"blocks {prefix}rows={grouping.rows}, {prefix}columns={grouping.columns}, "
                    f"{prefix}simdgroups={grouping.simdgroups} need {grouping.threadgroup_bytes} bytes of "
                    f"threadgroup memory; there are {_MAX_THREADGROUP_BYTES}"
                )

    def templates(self, variant: Variant) -> tuple[str, ...]:
        # The host holds the Metal source as text; the file beside it is for people and their tools.
        return ("metal/host.mm.j2", f"metal/{variant.kernel}.metal.j2")

    def context(self, variant: Variant) -> Mapping[str, object]:
        return {}

    def machine(self, variant: Variant) -> str:
        return platform.machine().lower()

    def compile_flags(self, variant: Variant) -> tuple[str, ...]:
        return ("-O2", "-fvisibility=hidden")

    def link_flags(self, variant: Variant) -> tuple[str, ...]:
        return ("-framework", "Metal", "-framework", "Foundation")


def family_of_chip(chip: str) -> str:
    """The GPU family of a chip by its name, as "Apple M3 Max"; for one newer than the table, the latest."""
    generation = re.search(r"\bM(\d+)", chip)
    if generation is None:
        raise NotImplementedError(f"the Metal kernels are for Apple M1 and later; this chip is {chip!r}")
    return _FAMILY_OF_GENERATION.get(int(generation[1]), FAMILIES[-1])


def _chip_name() -> str:
    if platform.system() != "Darwin":
        return "Apple M3"  # somebody emulates a Mac, and says by ORCHARD_GPU_FAMILY if it is to be another
    system = ctypes.CDLL(None)
    buffer = ctypes.create_string_buffer(256)
    size = ctypes.c_size_t(len(buffer))
    system.sysctlbyname(b"machdep.cpu.brand_string", buffer, ctypes.byref(size), None, 0)
    return buffer.value.decode()
