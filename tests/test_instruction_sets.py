"""The CPU kernels for every instruction set that this machine has. Those for ARM: test_arm_kernels.py."""

from __future__ import annotations

import platform

import pytest
import torch

from orchard_jit import binding
from orchard_jit.backends.cpu import CpuBackend
from orchard_jit.jit import recipe
from orchard_jit.selection import select

from .test_conformance import check, tensors

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


@pytest.mark.skipif(platform.machine() != "x86_64", reason="compiles for another machine")
def test_another_machines_kernels_are_not_compiled_here(empty_cache):
    from orchard_jit.errors import ToolchainError
    from orchard_jit.jit import library

    arm = select(backend="cpu", kernel="forward", dtype="float32", head_dim=64, head_dim_v=64, arch="arm64")
    with pytest.raises(
        ToolchainError, match="is for linux-aarch64; this machine compiles for linux-x86_64 alone"
    ):
        library.load(recipe.for_variant(arm))
