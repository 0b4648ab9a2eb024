"""What a backend has to know."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from orchard_jit.variant import Variant


class Backend(ABC):
    """One device's templates, compiler flags and limits."""

    name: ClassVar[str]
    dtypes: ClassVar[frozenset[str]]
    archs: ClassVar[tuple[str, ...]]
    tiles: ClassVar[Mapping[str, str]]
    """The blocks that are the queries ("block_q") or the keys ("block_k") of a tile."""

    @abstractmethod
    def arch(self) -> str:
        """The instruction set or GPU family of this machine."""

    def kernel_arch(self, arch: str, kernel: str, dtype: str) -> str:
        """The least demanding arch with the same kernel for a dtype."""
        return arch

    @abstractmethod
    def device(self) -> str:
        """The model of this machine's processor or GPU, as its maker calls it."""

    @abstractmethod
    def operand_bits(self, variant: Variant) -> int:
        """The width in which the kernel multiplies."""

    @abstractmethod
    def check(self, variant: Variant) -> None:
        """Raise ValueError, with the numbers, if the variant cannot work on its arch."""

    @abstractmethod
    def templates(self, variant: Variant) -> tuple[str, ...]:
        """Patterns, below the templates folder, of the files that make up the variant beside `params.h`.

        The first names the one file that the compiler is given.
        """

    @abstractmethod
    def context(self, variant: Variant) -> Mapping[str, object]:
        """JSON values that the backend's templates see beside the variant itself."""

    @abstractmethod
    def machine(self, variant: Variant) -> str:
        """The kind of processor that the library runs on, as `platform.machine` calls it."""

    @abstractmethod
    def compile_flags(self, variant: Variant) -> tuple[str, ...]:
        """Flags for the compiler, in order."""

    @abstractmethod
    def link_flags(self, variant: Variant) -> tuple[str, ...]:
        """Flags for the linker, in order."""
