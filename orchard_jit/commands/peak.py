"""How much a processor or GPU can compute at all, measured: what a kernel's speed is a share of."""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from orchard_jit import backends
from orchard_jit.jit import library
from orchard_jit.jit.recipe import Recipe, platform_tag
from orchard_jit.jit.render import Rendering
from orchard_jit.selection import select
from orchard_jit.timing import Stopwatch

_SECONDS = 0.001
_TRIALS = 200
"""Many and short, so that on a shared machine some run undisturbed."""
_SECONDS_OF_GPU, _TRIALS_OF_GPU = 0.02, 10
_MATRIX = 2048


@dataclass(frozen=True)
class Peak:
    """Floating-point operations a second, and how they were counted."""

    flops: float
    method: str

    def __str__(self) -> str:
        return f"{self.flops / 1e9:.0f} GFLOP/s, {self.method}"


def measure(device: str, dtype: str, threads: int) -> Peak:
    """The most of some trials.

    Raises:
        OrchardError: The kernel that measures it can't be built.

    """
    return _of_gpu(dtype) if device == "mps" else _of_cpu(dtype, threads)


def _of_cpu(dtype: str, threads: int) -> Peak:
    """Of what the kernels for a dtype compute with: float32 for most inputs of 16 bits."""
    recipe = _recipe(dtype)
    function = library.load(recipe).orchard_peak
    function.argtypes, function.restype = (ctypes.c_double,), ctypes.c_double
    with ThreadPoolExecutor(max_workers=threads) as pool:
        trials = [sum(pool.map(function, [_SECONDS] * threads)) for _ in range(_TRIALS)]
    return Peak(max(trials), f"by multiply-adds of {recipe.spec['peak']['operands']} in registers")


def _of_gpu(dtype: str) -> Peak:
    a, b = (torch.ones(_MATRIX, _MATRIX, dtype=getattr(torch, dtype), device="mps") for _ in range(2))
    stopwatch = Stopwatch("mps")
    repeats = stopwatch.repeats([lambda: a @ b], _SECONDS_OF_GPU)
    fastest = min(stopwatch.seconds(lambda: a @ b, repeats) for _ in range(_TRIALS_OF_GPU))
    return Peak(2 * _MATRIX**3 / fastest, f"by PyTorch's {dtype} product of {_MATRIX} x {_MATRIX} matrices")


def _recipe(dtype: str) -> Recipe:
    backend = backends.get("cpu")
    # What is compiled for this machine is compiled as this.
    variant = select(backend="cpu", kernel="forward", dtype=dtype, head_dim=64, head_dim_v=64)
    context = backend.context(variant)
    machine = backend.machine(variant)
    real = "double" if dtype == "float64" else "float"
    kind = "tiles" if context["multiplies_tiles"] else "pairs"
    operands = f"bfloat16 {kind}" if context["multiplies_pairs"] else f"float{64 if real == 'double' else 32}"
    files = Rendering(
        "bench/peak.cpp.j2",
        "cpu/amx.h",
        real=real,
        machine=machine,
        **context,
    )
    return Recipe(
        title=f"peak of {variant.arch} in {operands}",
        spec={"peak": {"arch": variant.arch, "operands": operands}},
        shelf=platform_tag(machine),
        origin=files.origin,
        files=files,
        sources=("peak.cpp",),
        compile_flags=backend.compile_flags(variant),
        link_flags=(),
    )
