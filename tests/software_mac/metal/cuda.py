"""Running translated kernels on an NVIDIA GPU, through the CUDA driver alone.

This is for real parallel races, for large shapes, and for times.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

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
class Launch:
    """A kernel and what it runs on.

    buffers holds every buffer argument, by index; one that the kernel does not read may be small. Launches
    that are given the same array share its memory on the GPU.
    """

    kernel: str
    threadgroups: Sequence[int]
    threads_per_threadgroup: Sequence[int]
    buffers: Mapping[int, Array]
    threadgroup_lengths: Mapping[int, int] = field(default_factory=dict)


class CudaModule:
    """The kernels of a PTX text from to_ptx, ready to launch."""

    def __init__(self, ptx: str) -> None:
        self._driver = _Driver()
        self._module = ctypes.c_void_p()
        self._by_value = set(re.findall(r"\.b8 (\w+_param_\d+)\[", ptx))
        self._driver("cuModuleLoadData", ctypes.byref(self._module), ptx.encode() + b"\0")

    def run(self, launches: Sequence[Launch], repeat: int = 0) -> list[float]:
        """Runs kernels one after the other on copies of their arrays, which are copied back.

        Returns the milliseconds of `repeat` further runs of them all. They are one graph, as a command buffer
        of Metal's: the GPU waits for no host between two kernels.
        """
        copies = _Copies(self._driver)
        runs = [self._prepared(launch, copies) for launch in launches]
        for run in runs:
            run(None)
        self._driver("cuCtxSynchronize")
        copies.download()
        times = _times(self._driver, runs, repeat)
        copies.free()
        return times

    def _prepared(self, launch: Launch, copies: _Copies) -> Callable[[ctypes.c_void_p | None], None]:
        """What puts the launch into a stream."""
        function = ctypes.c_void_p()
        self._driver("cuModuleGetFunction", ctypes.byref(function), self._module, launch.kernel.encode())
        arrays = [launch.buffers[index] for index in sorted(launch.buffers)]
        offsets, dynamic = _offsets(launch.threadgroup_lengths)
        self._driver("cuFuncSetAttribute", function, _MAX_DYNAMIC_SHARED, dynamic)
        values = [*(copies.address(array) for array in arrays), *offsets]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        for number, array in enumerate(arrays):
            if f"{launch.kernel}_param_{number}" in self._by_value:
                pointers[number] = array.ctypes.data
        shape = [*_three(launch.threadgroups), *_three(launch.threads_per_threadgroup)]

        def run(stream: ctypes.c_void_p | None, _kept: object = (values, arrays)) -> None:
            self._driver("cuLaunchKernel", function, *shape, dynamic, stream, pointers, None)

        return run


def copy_speed(array_bytes: int, repeat: int = 11) -> float:
    """Bytes a second that a copy of so many reads and writes on the GPU; the fastest of the repetitions."""
    driver = _Driver()
    ends = ctypes.c_uint64(), ctypes.c_uint64()
    for end in ends:
        driver("cuMemAlloc_v2", ctypes.byref(end), ctypes.c_size_t(array_bytes))

    def run(stream: ctypes.c_void_p | None) -> None:
        driver("cuMemcpyDtoDAsync_v2", *ends, ctypes.c_size_t(array_bytes), stream)

    times = _times(driver, [run], repeat)
    for end in ends:
        driver("cuMemFree_v2", end)
    return 2 * array_bytes / min(times) * 1e3


class _Copies:
    """Arrays' memory on the GPU."""

    def __init__(self, driver: _Driver) -> None:
        self._driver = driver
        self._copies: dict[int, tuple[Array, ctypes.c_uint64]] = {}

    def address(self, array: Array) -> ctypes.c_uint64:
        if id(array) not in self._copies:
            address = ctypes.c_uint64()
            self._driver("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(array.nbytes, 16)))
            there, here = address, ctypes.c_void_p(array.ctypes.data)
            self._driver("cuMemcpyHtoD_v2", there, here, ctypes.c_size_t(array.nbytes))
            self._copies[id(array)] = array, address
        return self._copies[id(array)][1]

    def download(self) -> None:
        for array, address in self._copies.values():
            here = ctypes.c_void_p(array.ctypes.data)
            self._driver("cuMemcpyDtoH_v2", here, address, ctypes.c_size_t(array.nbytes))

    def free(self) -> None:
        for _, address in self._copies.values():
            self._driver("cuMemFree_v2", address)


def _times(driver: _Driver, runs: Sequence[Callable[[ctypes.c_void_p], None]], repeat: int) -> list[float]:
    """Milliseconds from the first run's begin to the last one's end, `repeat` times."""
    if repeat == 0:
        return []
    stream, graph, instance = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
    driver("cuStreamCreate", ctypes.byref(stream), 1)  # CU_STREAM_NON_BLOCKING
    driver("cuStreamBeginCapture_v2", stream, 1)  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
    for run in runs:
        run(stream)
    driver("cuStreamEndCapture", stream, ctypes.byref(graph))
    driver("cuGraphInstantiateWithFlags", ctypes.byref(instance), graph, ctypes.c_uint64(0))
    events = (ctypes.c_void_p(), ctypes.c_void_p())
    for event in events:
        driver("cuEventCreate", ctypes.byref(event), 0)
    times = []
    for _ in range(repeat):
        driver("cuEventRecord", events[0], stream)
        driver("cuGraphLaunch", instance, stream)
        driver("cuEventRecord", events[1], stream)
        driver("cuEventSynchronize", events[1])
        milliseconds = ctypes.c_float()
        driver("cuEventElapsedTime", ctypes.byref(milliseconds), *events)
        times.append(milliseconds.value)
    for event in events:
        driver("cuEventDestroy_v2", event)
    driver("cuGraphExecDestroy", instance)
    driver("cuGraphDestroy", graph)
    driver("cuStreamDestroy_v2", stream)
    return times


def _offsets(lengths: Mapping[int, int]) -> tuple[list[ctypes.c_uint32], int]:
    """Where each threadgroup argument lies in dynamic shared memory, and how much there is."""
    offsets, end = [], 0
    for index in sorted(lengths):
        offsets.append(ctypes.c_uint32(end))
        end += (lengths[index] + 127) // 128 * 128
    return offsets, end


def _three(size: Sequence[int]) -> list[int]:
    return [*size, 1, 1, 1][:3]
