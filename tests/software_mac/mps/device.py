"""Builds the device library, loads it into PyTorch, and reads its counters."""

from __future__ import annotations

import atexit
import ctypes
import importlib.metadata
import importlib.util
import os
from functools import cache
from pathlib import Path

from software_mac.apple.builder import Unit, build_library
from software_mac.apple.device import library as metal_library
from software_mac.apple.toolchain import build_runtime, objective_cxx

FOLDER = Path(__file__).parent
METAL_DEVICE = FOLDER.parent / "apple" / "device"


class Allocations(ctypes.Structure):
    """What mps tensors have allocated: how often and at most since the last reset, and bytes alive now."""

    _fields_ = [("count", ctypes.c_int64), ("bytes", ctypes.c_int64), ("peak", ctypes.c_int64)]


def _torch_folder() -> Path:
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        raise RuntimeError("PyTorch is not installed")
    return Path(found.origin).parent


@cache
def build_device() -> Path:
    """``libsoftware_mac_mps.so``: the tensors' memory, the operators and the hooks of device ``mps``."""
    torch = _torch_folder()
    version = importlib.metadata.version("torch")  # named in the command, so that another torch builds anew
    include = [torch / "include", torch / "include/torch/csrc/api/include"]
    cxx = ["g++", "-std=c++20", "-O1", "-fPIC", *(f"-isystem{path}" for path in include), f"-I{METAL_DEVICE}"]
    cxx.append("-DAT_PER_OPERATOR_HEADERS")  # else PyTorch's headers declare every operator there is
    units = [Unit(source, [*cxx, f'-DTORCH_VERSION="{version}"']) for source in sorted(FOLDER.glob("*.cpp"))]
    units += [Unit(source, objective_cxx()) for source in sorted(FOLDER.glob("*.mm"))]
    headers = [*FOLDER.glob("*.h"), *METAL_DEVICE.glob("*.h")]
    runtime = build_runtime()
    link = [str(runtime), f"-L{torch / 'lib'}", "-ltorch_cpu", "-lc10"]
    link += [f"-Wl,-rpath,{runtime.parent}", f"-Wl,-rpath,{torch / 'lib'}"]
    return build_library("libsoftware_mac_mps.so", units, headers, link)


@cache
def _loaded() -> ctypes.CDLL:
    metal_library()
    return ctypes.CDLL(str(build_device()), ctypes.RTLD_GLOBAL)


def install() -> None:
    """Makes ``device="mps"`` work in this process. PyTorch looks for the device's hooks once,
    when it is first asked about mps: to be called before that, best before torch is imported."""
    _loaded()
    import torch

    if not torch._C._mps_is_available():
        raise RuntimeError(
            "software_mac.mps.install() came too late: PyTorch has already looked for an mps device"
        )
    torch._C._has_mps = True  # a constant of the build, which Python code asks
    atexit.register(_let_autograd_finish, os.getpid())


def _let_autograd_finish(process: int) -> None:
    """Waits until autograd's thread of the device has dropped the graph of the last backward. PyTorch 2.13
    gives each graph a Python object, and a thread that drops one while the interpreter is going aborts the
    process. This graph has none, and is done after all others. A fork has no such thread to wait for."""
    import torch

    if os.getpid() == process:
        x = torch.zeros((), device="mps", requires_grad=True)
        run_backward = torch.autograd.Variable._execution_engine.run_backward
        run_backward((x * 1,), (torch.ones_like(x),), False, False, accumulate_grad=True)


def command_buffer() -> int:
    """``torch::mps::get_command_buffer()``: the id<MTLCommandBuffer> that PyTorch is filling."""
    return _torch_function("_ZN5torch3mps18get_command_bufferEv")


def dispatch_queue() -> int:
    """``torch::mps::get_dispatch_queue()``: the dispatch_queue_t that guards it."""
    return _torch_function("_ZN5torch3mps18get_dispatch_queueEv")


def _torch_function(symbol: str) -> int:
    function = ctypes.CDLL(str(_torch_folder() / "lib" / "libtorch_cpu.so"))[symbol]
    function.restype = ctypes.c_void_p
    return int(function())


def allocations() -> Allocations:
    """A copy of the counters."""
    counters = Allocations()
    _loaded().software_mac_mps_allocations(ctypes.byref(counters))
    return counters


def reset_allocations() -> None:
    _loaded().software_mac_mps_reset_allocations()
