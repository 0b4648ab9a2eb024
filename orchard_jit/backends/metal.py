"""Apple GPUs: families as archs, and what fits into a threadgroup."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from orchard_jit.backends.base import Backend
from orchard_jit.backends.chip import chip_name
from orchard_jit.variant import Variant

FAMILIES = ("apple7", "apple8", "apple9", "apple10")
"""M1; M2; M3 and M4; M5 and later."""

_FAMILY_OF_GENERATION = {1: "apple7", 2: "apple8", 3: "apple9", 4: "apple9"}
_OLDEST_MACOS = 14
_SIMD = 32
_MAX_THREADS = 1024
_MAX_THREADGROUP_BYTES = 32 * 1024
_FLOAT2_BYTES = 8

_KERNELS: dict[str, dict[str, str | None]] = {
    "forward": {"forward": ""},
    "backward": {
        "prepare": None,
        "subtract_grad_lse": None,
        "grad_query": "dq_",
        "grad_key_value": "dkv_",
        "grad_bias": None,
    },
    "decode": {"decode": "", "combine": None},
}
"""The kernels of each pass, with the prefix of their blocks; None for those without."""
_FEATURE_OF_KERNEL = {"grad_bias": "bias_grad"}
"""Kernels that not all variants have."""


@dataclass(frozen=True)
class Grouping:
    """How one kernel shares out its work.

    Attributes:
        rows: Queries (in dK/dV: keys) that a simdgroup, or a team of them, owns; a multiple of 8.
        columns: Keys (in dK/dV: queries) that it meets at once; a multiple of 8.
        simdgroups: Simdgroups of a threadgroup.
        split: Simdgroups of a team, which share rows and hold a slice of the head dim each.
        shares_columns: Whether the teams of a threadgroup share the columns out, and not the rows.

    """

    rows: int
    columns: int
    simdgroups: int
    split: int
    shares_columns: bool = False

    @property
    def threads(self) -> int:
        """Threads of a threadgroup."""
        return _SIMD * self.simdgroups

    @property
    def finished(self) -> int:
        """Rows that a threadgroup finishes."""
        return self.rows * (1 if self.shares_columns else self.simdgroups // self.split)

    @property
    def threadgroup_bytes(self) -> int:
        """Threadgroup memory: the scores' parts that a team adds up, twice, so that one barrier is enough."""
        if self.split == 1:
            return 0
        fragments = self.rows // 8 * (self.columns // 8)
        return 2 * self.simdgroups * fragments * _SIMD * _FLOAT2_BYTES


_WITHOUT_BLOCKS = {
    "prepare": Grouping(8, 8, 4, 1),
    "subtract_grad_lse": Grouping(32, 8, 4, 1),  # a thread has a row
    "grad_bias": Grouping(16, 32, 1, 1),
    "combine": Grouping(1, 8, 4, 1, shares_columns=True),
}
_ROWS_OF_DECODE = 8
"""A lane then has one row, wherever that lies in memory."""


def groupings(variant: Variant) -> dict[str, Grouping]:
    """The groupings of a variant's kernels, in the order in which they are launched."""
    blocks = dict(variant.blocks)
    shares_columns = variant.kernel == "decode"
    if shares_columns:
        blocks["rows"] = _ROWS_OF_DECODE

    def chosen(prefix: str) -> Grouping:
        names = (prefix + name for name in ("rows", "columns", "simdgroups", "split"))
        rows, columns, simdgroups, split = (blocks[name] for name in names)
        return Grouping(rows, columns, simdgroups, split, shares_columns)

    try:
        return {
            kernel: _WITHOUT_BLOCKS[kernel] if prefix is None else chosen(prefix)
            for kernel, prefix in _KERNELS[variant.kernel].items()
            if _FEATURE_OF_KERNEL.get(kernel) in (None, *variant.features)
        }
    except KeyError as error:
        raise ValueError(
            f"a metal {variant.kernel} needs a block {error}; got {', '.join(blocks) or 'none'}"
        ) from None


class MetalBackend(Backend):
    """The GPU of an Apple Silicon Mac, from M1 on."""

    name = "metal"
    dtypes = frozenset({"float32", "float16", "bfloat16"})
    archs = FAMILIES
    tiles: ClassVar = {
        "rows": "block_q",
        "columns": "block_k",
        "dq_rows": "block_q",
        "dq_columns": "block_k",
        "dkv_rows": "block_k",
        "dkv_columns": "block_q",
    }

    def arch(self) -> str:
        """`ORCHARD_GPU_FAMILY`, else the family of this Mac's chip."""
        version = platform.mac_ver()[0]
        if version and int(version.split(".")[0]) < _OLDEST_MACOS:
            raise NotImplementedError(
                f"the Metal kernels need macOS {_OLDEST_MACOS} or later; this is {version}"
            )
        return os.environ.get("ORCHARD_GPU_FAMILY") or family_of_chip(chip_name())

    def device(self) -> str:
        return chip_name()

    def operand_bits(self, variant: Variant) -> int:
        # The two oldest families multiply bfloat16 as float32.
        as_float32 = variant.dtype == "bfloat16" and variant.arch in ("apple7", "apple8")
        return 32 if variant.dtype == "float32" or as_float32 else 16

    def check(self, variant: Variant) -> None:
        if variant.arch not in FAMILIES:
            raise ValueError(f"a metal arch must be one of {', '.join(FAMILIES)}; got {variant.arch!r}")
        if variant.dtype not in self.dtypes:
            raise ValueError(
                f"Metal has no {variant.dtype}; use {', '.join(sorted(self.dtypes))}, or the cpu"
            )
        for kernel, grouping in groupings(variant).items():
            prefix = _KERNELS[variant.kernel][kernel]
            if prefix is None:
                continue
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
        return {
            "kernels": {
                kernel: {"threads": grouping.threads, "rows": grouping.finished, "columns": grouping.columns}
                for kernel, grouping in groupings(variant).items()
            }
        }

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
