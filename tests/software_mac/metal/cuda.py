"""Running translated kernels on an NVIDIA GPU, through the CUDA driver alone.

This is for real parallel races, for large shapes, and for times.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_COMPUTE_CAPABILITY = (75, 76)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
_MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES


class CudaError(Exception):
    """The CUDA driver is absent or refused a call."""


class _Driver:
    """The driver, with a context on the first GPU."""

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise CudaError("there is no CUDA driver (libcuda.so.1)") from error
        self("cuInit", 0)
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self("cuDeviceGet", ctypes.byref(device), 0)
        self("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self("cuCtxSetCurrent", context)
        major, minor = ctypes.c_int(), ctypes.c_int()
        for number, attribute in zip((major, minor), _COMPUTE_CAPABILITY, strict=True):
            self("cuDeviceGetAttribute", ctypes.byref(number), attribute, device)
        self.architecture = f"sm_{major.value}{minor.value}"

    def __call__(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            raise CudaError(f"{name} failed with status {status}")


@dataclass(frozen=True)
class _Copy:
    array: np.ndarray[Any, Any]
    address: ctypes.c_uint64


class CudaModule:
    """The kernels of a PTX text from to_ptx, ready to launch."""

    def __init__(self, ptx: str) -> None:
        self._driver = _Driver()
        self._module = ctypes.c_void_p()
        self._by_value = set(re.findall(r"\.b8 (\w+_param_\d+)\[", ptx))
        self._driver("cuModuleLoadData", ctypes.byref(self._module), ptx.encode() + b"\0")

    def launch(
        self,
        kernel: str,
        threadgroups: Sequence[int],
        threads_per_threadgroup: Sequence[int],
        buffers: Mapping[int, np.ndarray[Any, Any]],
        threadgroup_lengths: Mapping[int, int] | None = None,
        repeat: int = 0,
    ) -> list[float]:
        """Runs a kernel on copies of the arrays, which are copied back.

        buffers must hold every buffer argument of the kernel; one that it does not read may be small.
        Returns the milliseconds of repeat further runs.
        """
        function = ctypes.c_void_p()
        self._driver("cuModuleGetFunction", ctypes.byref(function), self._module, kernel.encode())
        copies = [self._upload(buffers[index]) for index in sorted(buffers)]
        offsets, dynamic = _offsets(threadgroup_lengths or {})
        self._driver("cuFuncSetAttribute", function, _MAX_DYNAMIC_SHARED, dynamic)
        values = [*(copy.address for copy in copies), *offsets]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        for number, copy in enumerate(copies):
            if f"{kernel}_param_{number}" in self._by_value:
                pointers[number] = copy.array.ctypes.data
        shape = [*_three(threadgroups), *_three(threads_per_threadgroup)]

        def run() -> None:
            self._driver("cuLaunchKernel", function, *shape, dynamic, None, pointers, None)

        run()
        self._driver("cuCtxSynchronize")
        for copy in copies:
            self._driver(
                "cuMemcpyDtoH_v2",
                ctypes.c_void_p(copy.array.ctypes.data),
                copy.address,
                ctypes.c_size_t(copy.array.nbytes),
            )
        times = [self._time(run) for _ in range(repeat)]
        for copy in copies:
            self._driver("cuMemFree_v2", copy.address)
        return times

    def _upload(self, array: np.ndarray[Any, Any]) -> _Copy:
        address = ctypes.c_uint64()
        self._driver("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(array.nbytes, 16)))
        self._driver(
            "cuMemcpyHtoD_v2", address, ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)
        )
        return _Copy(array, address)

    def _time(self, run: Any) -> float:
        events = (ctypes.c_void_p(), ctypes.c_void_p())
        for event in events:
            self._driver("cuEventCreate", ctypes.byref(event), 0)
        self._driver("cuEventRecord", events[0], None)
        run()
        self._driver("cuEventRecord", events[1], None)
        self._driver("cuEventSynchronize", events[1])
        milliseconds = ctypes.c_float()
        self._driver("cuEventElapsedTime", ctypes.byref(milliseconds), *events)
        for event in events:
            self._driver("cuEventDestroy_v2", event)
        return milliseconds.value


def _offsets(lengths: Mapping[int, int]) -> tuple[list[ctypes.c_uint32], int]:
    """Where each threadgroup argument lies in dynamic shared memory, and how much there is."""
    offsets, end = [], 0
    for index in sorted(lengths):
        offsets.append(ctypes.c_uint32(end))
        end += (lengths[index] + 127) // 128 * 128
    return offsets, end


def _three(size: Sequence[int]) -> list[int]:
    return [*size, 1, 1, 1][:3]
