"""A compiled library, from Python: the C interface of include/software_metal.h through ctypes."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np  # slow to import, and a process that only compiles needs none of it

BUFFERS = 31


class Status(IntEnum):
    OK = 0
    BAD_LAUNCH = 1
    DIVERGENCE = 2
    DEADLOCK = 3
    FAULT = 4
    RACE = 5
    BOUNDS = 6
    UNINITIALISED = 7
    UNDEFINED = 8


class DispatchError(Exception):
    """A dispatch that a Mac would have refused, or run wrongly. ``status`` says of which kind."""

    def __init__(self, status: Status, message: str) -> None:
        self.status = status
        super().__init__(f"{status.name.lower()}: {message}")


@dataclass(frozen=True)
class Argument:
    name: str
    attribute: str
    kind: str  # "buffer", "threadgroup" or "builtin"
    index: int
    pointee_bytes: int
    is_constant: bool
    is_reference: bool
    is_read_only: bool
    is_optional: bool


@dataclass(frozen=True)
class KernelRecord:
    name: str
    arguments: tuple[Argument, ...]
    static_threadgroup_bytes: int
    max_total_threads_per_threadgroup: int


@dataclass(frozen=True)
class Statistics:
    threadgroups: int
    threadgroup_barriers: int
    simdgroup_operations: int
    device_bytes_read: int
    device_bytes_written: int
    threadgroup_bytes_read: int
    threadgroup_bytes_written: int


@dataclass(frozen=True)
class Traffic:
    """What a dispatch asks of a GPU, summed over its simdgroups; software_metal.h says what each counts."""

    device_requests: int
    device_bytes_read: int
    device_bytes_written: int
    sectors_read: int
    sectors_written: int
    threadgroup_requests: int
    threadgroup_bytes: int
    bank_conflicts: int
    matrix_products: int
    exponentials: int


class _Argument(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p), ("attribute", ctypes.c_char_p),
        ("kind", ctypes.c_uint32), ("index", ctypes.c_uint32),
        ("pointee_bytes", ctypes.c_uint32), ("pointee_alignment", ctypes.c_uint32),
        ("is_constant", ctypes.c_uint8), ("is_reference", ctypes.c_uint8),
        ("is_read_only", ctypes.c_uint8), ("is_optional", ctypes.c_uint8),
    ]  # fmt: skip


class _Kernel(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("arguments", ctypes.POINTER(_Argument)), ("argument_count", ctypes.c_uint32),
        ("static_threadgroup_bytes", ctypes.c_uint32), ("max_total_threads_per_threadgroup", ctypes.c_uint32),
    ]  # fmt: skip


class _FunctionConstant(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("index", ctypes.c_uint32), ("bytes", ctypes.c_uint32)]


class _ConstantValue(ctypes.Structure):
    _fields_ = [("index", ctypes.c_uint32), ("bytes", ctypes.c_uint32), ("value", ctypes.c_void_p)]


class _Binding(ctypes.Structure):
    _fields_ = [("pointer", ctypes.c_void_p), ("length", ctypes.c_uint64)]


class _Traffic(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in Traffic.__dataclass_fields__]


class _Launch(ctypes.Structure):
    _fields_ = [
        ("threads_per_grid", ctypes.c_uint32 * 3), ("threads_per_threadgroup", ctypes.c_uint32 * 3),
        ("buffers", _Binding * BUFFERS), ("threadgroup_lengths", ctypes.c_uint32 * BUFFERS),
        ("constants", ctypes.POINTER(_ConstantValue)), ("constant_count", ctypes.c_uint32),
        ("seed", ctypes.c_uint64), ("traffic", ctypes.POINTER(_Traffic)),
    ]  # fmt: skip


class _Statistics(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in Statistics.__dataclass_fields__]


_Dispatch = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.POINTER(_Kernel), ctypes.POINTER(_Launch), ctypes.POINTER(_Statistics),
    ctypes.c_char_p, ctypes.c_size_t,
)  # fmt: skip


class _Library(ctypes.Structure):
    _fields_ = [
        ("checked", ctypes.c_uint32), ("kernel_count", ctypes.c_uint32), ("kernels", ctypes.POINTER(_Kernel)),
        ("function_constant_count", ctypes.c_uint32),
        ("function_constants", ctypes.POINTER(_FunctionConstant)),
        ("dispatch", _Dispatch),
    ]  # fmt: skip


class Library:
    """The kernels of a compiled file, ready to run."""

    def __init__(self, path: Path) -> None:
        opened = ctypes.CDLL(str(path))
        opened.software_metal_library_v1.restype = ctypes.POINTER(_Library)
        self._record: _Library = opened.software_metal_library_v1().contents
        self._kernels = {
            self._record.kernels[i].name.decode(): self._record.kernels[i]
            for i in range(self._record.kernel_count)
        }
        constants = (self._record.function_constants[i] for i in range(self._record.function_constant_count))
        self._constants = {c.name.decode(): (c.index, c.bytes) for c in constants}
        self.is_checked = bool(self._record.checked)

    @property
    def kernels(self) -> dict[str, KernelRecord]:
        return {name: _kernel_record(record) for name, record in self._kernels.items()}

    def dispatch(
        self,
        kernel: str,
        threads_per_grid: int | Sequence[int],
        threads_per_threadgroup: int | Sequence[int],
        buffers: Mapping[int, np.ndarray[Any, Any] | bytes],
        threadgroup_lengths: Mapping[int, int] | None = None,
        constants: Mapping[str, np.generic | bool] | None = None,
        seed: int = 0,
    ) -> Statistics:
        """Runs a kernel on arrays, which it reads and writes in place, or on bytes, which it reads."""
        return self._run(kernel, _Launch(seed=seed), threads_per_grid, threads_per_threadgroup, buffers,
                         threadgroup_lengths, constants)  # fmt: skip

    def count(
        self,
        kernel: str,
        threads_per_grid: int | Sequence[int],
        threads_per_threadgroup: int | Sequence[int],
        buffers: Mapping[int, np.ndarray[Any, Any] | bytes],
        threadgroup_lengths: Mapping[int, int] | None = None,
        constants: Mapping[str, np.generic | bool] | None = None,
    ) -> tuple[Statistics, Traffic]:
        """As dispatch, of a checked library; and says what the kernel asked of the GPU."""
        if not self.is_checked:
            raise ValueError("only the kernels of a checked library are counted")
        counts = _Traffic()
        launch = _Launch(traffic=ctypes.pointer(counts))
        statistics = self._run(kernel, launch, threads_per_grid, threads_per_threadgroup, buffers,
                               threadgroup_lengths, constants)  # fmt: skip
        return statistics, Traffic(*(getattr(counts, name) for name in Traffic.__dataclass_fields__))

    def _run(
        self,
        kernel: str,
        launch: _Launch,
        threads_per_grid: int | Sequence[int],
        threads_per_threadgroup: int | Sequence[int],
        buffers: Mapping[int, np.ndarray[Any, Any] | bytes],
        threadgroup_lengths: Mapping[int, int] | None,
        constants: Mapping[str, np.generic | bool] | None,
    ) -> Statistics:
        if kernel not in self._kernels:
            raise KeyError(f"no kernel is named '{kernel}'; there are {', '.join(self._kernels)}")
        launch.threads_per_grid[:] = _three(threads_per_grid)
        launch.threads_per_threadgroup[:] = _three(threads_per_threadgroup)
        arrays = {index: _array(value) for index, value in buffers.items()}
        for index, array in arrays.items():
            launch.buffers[index] = _Binding(array.ctypes.data, array.nbytes)
        for index, length in (threadgroup_lengths or {}).items():
            launch.threadgroup_lengths[index] = length
        values = self._constant_values(constants or {})
        launch.constants, launch.constant_count = values, len(values)
        statistics = _Statistics()
        message = ctypes.create_string_buffer(8192)
        status = self._record.dispatch(self._kernels[kernel], launch, statistics, message, len(message))
        if status != Status.OK:
            raise DispatchError(Status(status), message.value.decode(errors="replace"))
        return Statistics(*(getattr(statistics, name) for name in Statistics.__dataclass_fields__))

    def _constant_values(self, constants: Mapping[str, np.generic | bool]) -> ctypes.Array[_ConstantValue]:
        import numpy as np

        values = (_ConstantValue * len(constants))()
        for slot, (name, value) in zip(values, constants.items(), strict=True):
            if name not in self._constants:
                raise KeyError(
                    f"no function constant is named '{name}'; there are: {', '.join(self._constants)}"
                )
            raw = np.asarray(value).tobytes()
            slot.index, slot.bytes = self._constants[name][0], len(raw)
            slot.value = ctypes.cast(ctypes.create_string_buffer(raw, len(raw)), ctypes.c_void_p)
            slot.keep = raw
        return values


def _kernel_record(kernel: _Kernel) -> KernelRecord:
    kinds = ("buffer", "threadgroup", "builtin")
    arguments = tuple(
        Argument(a.name.decode(), a.attribute.decode(), kinds[a.kind], a.index, a.pointee_bytes,
                 bool(a.is_constant), bool(a.is_reference), bool(a.is_read_only), bool(a.is_optional))
        for a in (kernel.arguments[i] for i in range(kernel.argument_count))
    )  # fmt: skip
    return KernelRecord(
        kernel.name.decode(),
        arguments,
        kernel.static_threadgroup_bytes,
        kernel.max_total_threads_per_threadgroup,
    )


def _three(size: int | Sequence[int]) -> tuple[int, int, int]:
    sizes = (size,) if isinstance(size, int) else tuple(size)
    x, y, z = (*sizes, 1, 1, 1)[:3]
    return x, y, z


def _array(value: np.ndarray[Any, Any] | bytes) -> np.ndarray[Any, Any]:
    if isinstance(value, bytes):
        import numpy as np

        return np.frombuffer(bytearray(value), dtype=np.uint8)
    if not value.flags.c_contiguous:
        raise ValueError("a buffer must be a contiguous array: a kernel sees memory, not strides")
    return value
