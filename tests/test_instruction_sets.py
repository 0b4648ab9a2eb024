"""The CPU kernels for every instruction set that this machine has. Those for ARM: test_arm_kernels.py."""

from __future__ import annotations

import platform

import pytest
import torch
from software_arm.compiler import MAC, Unit

from orchard_jit import ScoreMod, binding
from orchard_jit.backends.cpu import CpuBackend
from orchard_jit.jit import recipe
from orchard_jit.selection import select

from .test_conformance import check, tensors

SCORE = ScoreMod("5 * tanh(score / 5) + (q - kv) / 10", mask="(q + kv) % 3 != 1")

LEVELS = ("x86-64", "x86-64-v3", "x86-64-v4", "x86-64-v4-bf16")


def available():
    here = CpuBackend().arch()
    return LEVELS[: LEVELS.index(here) + 1] if here in LEVELS else (here,)


@pytest.fixture(params=available())
def arch(request, monkeypatch):
    """Calls of this test get kernels for that level."""
    monkeypatch.setattr(CpuBackend, "arch", lambda self: request.param)
    binding.forget_kernels()
    yield request.param
    binding.forget_kernels()


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16, torch.float64), ids=str)
@pytest.mark.parametrize("head_dim", (40, 67))
def test_forward_and_gradients(arch, head_dim, dtype):
    for causal in ("none", "lower_right"):
        check(*tensors((1, 4, 77, head_dim), (1, 2, 130, head_dim), dtype, "cpu"), causal=causal)


@pytest.mark.parametrize(
    ("kernel", "dtype", "features"),
    [
        ("forward", "float32", ("causal", "mask", "bias", "sinks", "dropout", "lengths")),
        ("backward", "bfloat16", ("window", "mask", "bias_f32", "bias_grad", "dropout", "varlen")),
        ("decode", "float16", ("causal", "window", "sinks", "lengths")),
    ],
)
def test_arm_kernels_compile_for_a_mac(kernel, dtype, features):
    """Whose int64_t is another type than that of Linux. Warnings are errors."""
    variant = select(
        **{"backend": "cpu", "arch": "arm64", "kernel": kernel, "dtype": dtype, "features": features},
        **{"head_dim": 64, "head_dim_v": 40, "score": SCORE.spec},
    )
    made = recipe.for_variant(variant)
    assert made.shelf.split("-")[1] in ("aarch64", "arm64")
    (source,) = made.sources
    assert Unit(made.files, source, made.compile_flags, MAC).object.exists()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="compiles for another machine")
def test_another_machines_kernels_are_not_compiled_here(empty_cache):
    from orchard_jit.errors import ToolchainError
    from orchard_jit.jit import library

    arm = select(backend="cpu", kernel="forward", dtype="float32", head_dim=64, head_dim_v=64, arch="arm64")
    with pytest.raises(
        ToolchainError, match="is for linux-aarch64; this machine compiles for linux-x86_64 alone"
    ):
        library.load(recipe.for_variant(arm))
