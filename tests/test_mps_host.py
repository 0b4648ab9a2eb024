"""The host of the Metal kernels as a citizen of its process: what it keeps, waits for, shares and refuses."""

from __future__ import annotations

import json
import platform
import re
import shutil
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import orchard_jit
from orchard_jit import backends, binding
from orchard_jit.backends import metal
from orchard_jit.call import Arguments
from orchard_jit.commands import checks
from orchard_jit.errors import CompileError, ToolchainError
from orchard_jit.jit import render
from orchard_jit.selection import select

from .jit.test_library import finish, python

pytestmark = pytest.mark.skipif(sys.platform == "darwin", reason="reads the counters of the software Mac")

if sys.platform != "darwin":
    from software_mac import apple, mps

# Head dims that no other test compiles, because this process would remember their kernels.
COUNTED, BROKEN, OLD_SYSTEM, NO_COMPILER, TOO_LARGE = 9, 10, 11, 12, 13


def inputs(head_dim=16, length=8):
    return [torch.randn(1, 1, length, head_dim, device="mps") for _ in range(4)]


def attend(query, key, value, grad_out):
    """Forward and backward, without autograd's thread, which lets go of tensors when it pleases."""
    out, lse = torch.ops.orchard_jit.forward(query, key, value)
    grads = torch.ops.orchard_jit.backward(grad_out, None, *Arguments(query, key, value), out, lse, False)[:3]
    return [out, *grads]


def living():
    torch.mps.synchronize()
    return apple.live_objects()


def test_nothing_leaks():
    tensors = inputs()
    attend(*tensors)
    before, bytes_before = living(), mps.allocations().bytes
    for step in range(1000):
        attend(*tensors)
        if step % 100 == 99:
            torch.mps.synchronize()
    assert living() == before
    assert mps.allocations().bytes == bytes_before


def test_pipelines_are_made_once_and_when_needed():
    before = living()
    tensors = inputs(COUNTED)
    first = attend(*tensors)
    made = Counter(living()) - Counter(before)
    assert made["SoftwareMacComputePipelineState"] == 4  # forward, prepare, dQ and dK/dV
    assert made["SoftwareMacLibrary"] == 2
    second = attend(*tensors)
    assert not {name for name in Counter(living()) - Counter(before) - made if name != "SoftwareMacBuffer"}
    assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(first, second, strict=True))


def test_a_call_neither_commits_nor_waits():
    tensors = inputs()
    attend(*tensors)
    torch.mps.synchronize()
    apple.reset_statistics()
    command_buffer = mps.command_buffer()
    results = attend(*tensors)
    assert mps.command_buffer() == command_buffer
    assert apple.statistics().dispatches == 0
    torch.mps.synchronize()
    assert apple.statistics().dispatches == 4
    assert all(x.isfinite().all() for x in results)


def test_memory_grows_with_the_length_and_not_with_its_square():
    """Encoded only: in 16384 x 16384 scores nobody waits for the software Mac."""
    code = """
        import os, tests.conftest, torch
        from tests.test_mps_host import attend, inputs, mps
        length, head_dim = 16384, 16
        attend(*inputs(head_dim))
        tensors = [torch.empty(1, 1, length, head_dim, device="mps") for _ in range(4)]
        mps.reset_allocations()
        before = mps.allocations().bytes
        results = attend(*tensors)
        print(mps.allocations().peak - before, flush=True)
        os._exit(0)
    """
    peak = int(finish(python(code))[0])
    length, head_dim = 16384, 16
    tensor = length * head_dim * 4
    lse, scratch = length * 4, length * 8
    assert peak == 4 * tensor + lse + scratch  # out and three gradients
    assert peak < length * length // 50


def test_two_threads_at_once():
    def repeat(seed):
        generator = torch.Generator().manual_seed(seed)
        tensors = [torch.randn(1, 2, 24, 16, generator=generator).to("mps") for _ in range(4)]
        return [[x.cpu() for x in attend(*tensors)] for _ in range(200)]

    expected = [repeat(seed)[0] for seed in range(2)]
    with ThreadPoolExecutor(2) as threads:
        for runs, wanted in zip(threads.map(repeat, range(2)), expected, strict=True):
            assert all(torch.equal(a, b) for run in runs for a, b in zip(run, wanted, strict=True))


@pytest.fixture
def templates(tmp_path, monkeypatch):
    """A copy of the templates, for changes."""
    folder = tmp_path / "templates"
    shutil.copytree(render.templates_directory(), folder)
    render._environment.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(render, "templates_directory", lambda: folder)
        yield folder
    render._environment.cache_clear()
    binding.forget_kernels()


@pytest.mark.parametrize("kernel", ["forward", "backward"])
def test_errors_of_the_metal_compiler_show_its_words_and_the_source(kernel, templates, tmp_path, monkeypatch):
    """The backward's too, which is compiled on a thread of autograd's."""
    mistaken = templates / "metal" / f"{kernel}.metal.j2"
    mistaken.write_text(mistaken.read_text() + "\nkernel void mistaken() { undeclared = 1; }\n")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    q = torch.randn(1, 1, 8, BROKEN, device="mps", requires_grad=True)
    with pytest.raises(CompileError, match=f"the Metal compiler refuses the {kernel} kernel") as caught:
        orchard_jit.flash_attention(q, q, q).sum().backward()
    source = Path(re.search(r"\(source: (.+?)\)", str(caught.value))[1])
    assert source.parent == tmp_path
    assert source.stat().st_mode & 0o777 == 0o600
    assert "undeclared = 1" in source.read_text()
    assert "undeclared" in str(caught.value).split("\n", 1)[1]


def test_a_kernel_that_the_gpu_cannot_run_is_as_if_it_did_not_compile(templates):
    source = templates / "metal" / "forward.metal.j2"
    source.write_text(source.read_text().replace("({{ 32 * block.simdgroups }})", "(32)"))
    q = torch.randn(1, 1, 8, TOO_LARGE, device="mps")
    with pytest.raises(CompileError, match="runs it with 32 at most: choose fewer simdgroups"):
        orchard_jit.flash_attention(q, q, q)


def selected(kernel="forward", dtype="float32"):
    return select(backend="metal", kernel=kernel, dtype=dtype, head_dim=128, head_dim_v=128)


@pytest.mark.parametrize(
    ("kernel", "blocks", "words"),
    [
        ("forward", {"simdgroups": 64}, "simdgroups=64 makes 2048 threads; a threadgroup has 1024 at most"),
        ("backward", {"dkv_simdgroups": 36}, "dkv_simdgroups=36 makes 1152 threads"),
        ("forward", {"rows": 64, "columns": 128}, "bytes of threadgroup memory; there are 32768"),
        ("forward", {"rows": 12}, "rows must be a multiple of 8 up to 64, got 12"),
        ("forward", {"simdgroups": 5}, "simdgroups must be a multiple of split, got 5 and 2"),
    ],
)
def test_blocks_that_do_not_fit_are_refused_when_they_are_chosen(
    kernel, blocks, words, tmp_path, monkeypatch
):
    variant = selected(kernel)
    with pytest.raises(ValueError, match=re.escape(words)):
        backends.get("metal").check(variant.with_blocks({**dict(variant.blocks), **blocks}))
    file = tmp_path / "blocks.json"
    entry = {"backend": "metal", "kernel": kernel, "head_dim": [128, 128], "blocks": blocks}
    file.write_text(json.dumps({"format": 1, "entries": [entry]}))
    monkeypatch.setenv("ORCHARD_JIT_BLOCKS", str(file))
    with pytest.raises(ValueError, match=re.escape(words)):
        selected(kernel)


def test_an_old_macos_is_refused(monkeypatch):
    monkeypatch.setattr(platform, "mac_ver", lambda: ("13.6.1", ("", "", ""), "arm64"))
    q = torch.randn(1, 1, 8, OLD_SYSTEM, device="mps")
    with pytest.raises(NotImplementedError, match=r"need macOS 14 or later; this is 13\.6\.1"):
        orchard_jit.flash_attention(q, q, q)


def test_without_a_compiler_the_remedy_is_named(empty_cache, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    q = torch.randn(1, 1, 8, NO_COMPILER, device="mps")
    with pytest.raises(ToolchainError, match=r"'no-such-compiler' is not on PATH.*orchard-jit prebuild"):
        orchard_jit.flash_attention(q, q, q)


def test_devices_do_not_mix():
    here, there = torch.randn(1, 1, 8, 16), torch.randn(1, 1, 8, 16, device="mps")
    with pytest.raises(ValueError, match="key is on cpu but query is on mps:0; they must be on one device"):
        orchard_jit.flash_attention(there, here, there)
    with pytest.raises(ValueError, match="value is on mps:0 but query is on cpu; they must be on one device"):
        orchard_jit.flash_attention(here, here, there)


def test_float64_does_not_exist():
    with pytest.raises(TypeError, match="float64"):
        torch.randn(1, 1, 8, 16, dtype=torch.float64).to("mps")
    with pytest.raises(ValueError, match=r"metal backend has kernels for .*; got float64"):
        selected(dtype="float64")


@pytest.mark.parametrize(
    ("check", "environment", "state", "words"),
    [
        ("mps", {"ORCHARD_GPU_FAMILY": "apple7"}, "ok", "kernels for apple7"),
        ("mps", {"CXX": "no-such-compiler"}, "warning", "0 kernels, and no compiler for more"),
        ("variables", {"ORCHARD_GPU_FAMILY": "m1"}, "problem", "apple7 or apple8 or apple9 or apple10"),
        ("variables", {"ORCHARD_STORAGE": "copy"}, "problem", "set ORCHARD_STORAGE to direct or clone"),
        ("variables", {"ORCHARD_STORAGE": "clone"}, "ok", "ORCHARD_STORAGE=clone"),
    ],
)
def test_doctor_says_the_fix(check, environment, state, words, empty_cache, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    answer = getattr(checks, check)()
    assert answer.state == state
    assert words in f"{answer.found} {answer.fix}"


@pytest.mark.parametrize(
    ("version", "available", "words"),
    [
        ("13.6.1", True, "need macOS 14 or later; this is 13.6.1"),
        ("13.6.1", False, "need macOS 14 or later; this is 13.6.1"),
        ("15.1", False, "finds no GPU"),
    ],
)
def test_doctor_on_a_mac_without_mps(version, available, words, monkeypatch):
    monkeypatch.setattr(platform, "mac_ver", lambda: (version, ("", "", ""), "arm64"))
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(metal, "chip_name", lambda: "Apple M3")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: available)
    answer = checks.mps()
    assert answer.state == "warning"
    assert words in answer.fix
