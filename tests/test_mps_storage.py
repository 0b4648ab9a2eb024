"""Where the Metal kernels read and write: the tensors' own buffers, or, if so chosen, clones of them."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from torch.nn import functional

import orchard_jit
from orchard_jit.call import Arguments

from .jit.test_library import finish, python

pytestmark = pytest.mark.skipif(sys.platform == "darwin", reason="reads the counters of the software Mac")

BATCH, HEADS, LENGTH, HEAD_DIM = 2, 3, 21, 16
FLOAT_BYTES = 4

ROWS = BATCH * HEADS * LENGTH
TENSOR_BYTES = ROWS * HEAD_DIM * FLOAT_BYTES
LSE_BYTES = ROWS * FLOAT_BYTES
# Two floats a row, and an even number of rows a head.
SCRATCH_BYTES = BATCH * HEADS * (LENGTH + 1) * 2 * FLOAT_BYTES


def dense(**options):
    return [torch.randn(BATCH, HEADS, LENGTH, HEAD_DIM, **options) for _ in range(3)]


def inside_a_storage(**options):
    return [torch.randn(5 + ROWS * HEAD_DIM, **options)[5:].view_as(x) for x in dense(**options)]


def slices_of_packed_qkv(**options):
    packed = torch.randn(BATCH, LENGTH, 3, HEADS, HEAD_DIM, **options)
    return list(packed.permute(2, 0, 3, 1, 4).unbind())


def expanded(**options):
    return [x[:, :1].expand(-1, HEADS, -1, -1) for x in dense(**options)]


LAYOUTS = {
    layout.__name__.replace("_", " "): layout
    for layout in (dense, inside_a_storage, slices_of_packed_qkv, expanded)
}
CASES = [(name, dtype) for name in LAYOUTS for dtype in (torch.float32, torch.float16)]


def inputs(layout, dtype=torch.float32):
    """Query, key, value and the gradient of the output, on mps, laid out there as they are on the CPU."""
    torch.manual_seed(0)
    tensors = LAYOUTS[layout](dtype=dtype)
    storages = {}
    for x in tensors:
        if x.untyped_storage().data_ptr() not in storages:
            flat = torch.empty(0, dtype=dtype).set_(x.untyped_storage())
            storages[x.untyped_storage().data_ptr()] = flat.to("mps")
    on_mps = [
        storages[x.untyped_storage().data_ptr()].as_strided(x.shape, x.stride(), x.storage_offset())
        for x in tensors
    ]
    grad_out = torch.randn(BATCH, HEADS, LENGTH, HEAD_DIM, dtype=dtype).to("mps")
    return on_mps, grad_out


class Counters:
    """What was allocated since they were made: by tensors (how often, bytes) and by anybody (buffers)."""

    def __init__(self):
        torch.mps.synchronize()
        self._mps, self._apple = _software_mac()
        self._mps.reset_allocations()
        self._before = self._now()

    def _now(self):
        return self._mps.allocations().peak, self._apple.live_objects()["SoftwareMacBuffer"]

    def __call__(self):
        bytes_, buffers = (now - before for now, before in zip(self._now(), self._before, strict=True))
        return {"count": self._mps.allocations().count, "bytes": bytes_, "buffers": buffers}


def _software_mac():
    from software_mac import apple, mps

    return mps, apple


def results(layout, dtype):
    """Output, log-sum-exp and gradients, and what each pass allocated until it had run."""
    qkv, grad_out = inputs(layout, dtype)
    counters = Counters()
    out, lse = torch.ops.orchard_jit.forward(*qkv)
    forward = counters()
    counters = Counters()
    # Not through autograd, whose thread lets go of the tensors when it pleases.
    grads = torch.ops.orchard_jit.backward(grad_out, None, *Arguments(*qkv), out, lse, False)[:3]
    backward = counters()
    torch.mps.synchronize()
    after = counters()
    tensors = [x.cpu() for x in (out, lse, *grads)]
    return tensors, {"forward": forward, "backward": backward, "after": after}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", ("private", "shared"))
def test_any_storage_mode(mode, layout, monkeypatch):
    monkeypatch.setenv("SOFTWARE_MAC_STORAGE", mode)
    qkv, grad_out = inputs(layout)
    leaves = [x.requires_grad_() for x in qkv]
    out = orchard_jit.flash_attention(*leaves)
    grads = torch.autograd.grad(out, leaves, grad_out)

    on_cpu = [x.detach().cpu().requires_grad_() for x in leaves]
    expected = functional.scaled_dot_product_attention(*on_cpu)
    torch.testing.assert_close(out.cpu(), expected, rtol=1e-5, atol=1e-5)
    for actual, wanted in zip(grads, torch.autograd.grad(expected, on_cpu, grad_out.cpu()), strict=True):
        torch.testing.assert_close(actual.cpu(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_is_copied(layout):
    """The tensors that a pass returns, backward's scratch, and not one buffer more."""
    _, allocated = results(layout, torch.float32)
    assert allocated["forward"] == {"count": 2, "bytes": TENSOR_BYTES + LSE_BYTES, "buffers": 2}
    assert allocated["backward"] == {"count": 4, "bytes": 3 * TENSOR_BYTES + SCRATCH_BYTES, "buffers": 4}
    assert allocated["after"]["buffers"] == 3  # the scratch was the command buffer's alone


@pytest.mark.parametrize("mode", ("private", "shared"))
def test_clones(mode, tmp_path, monkeypatch):
    """The same bits, by way of a shared buffer for each private tensor, gone when the GPU is done."""
    monkeypatch.setenv("SOFTWARE_MAC_STORAGE", mode)
    path = tmp_path / "results"
    code = f"""
        import tests.conftest, json, torch
        from tests import test_mps_storage as these
        tensors, allocated = zip(*(these.results(*case) for case in these.CASES))
        torch.save(tensors, {str(path)!r})
        print(json.dumps(allocated))
    """
    allocated = json.loads(finish(python(code, ORCHARD_STORAGE="clone"))[0])
    forward_clones, backward_clones = (5, 9) if mode == "private" else (0, 0)
    for case, tensors, counts in zip(CASES, torch.load(path), allocated, strict=True):
        for actual, wanted in zip(tensors, results(*case)[0], strict=True):
            assert torch.equal(actual, wanted), case
        assert counts["forward"]["buffers"] == 2 + forward_clones
        assert counts["backward"]["buffers"] == 4 + backward_clones
        assert counts["after"]["buffers"] == 3


def test_other_storage_modes_are_refused():
    code = """
        import tests.conftest, torch, orchard_jit
        q = torch.randn(1, 1, 8, 16, device="mps")
        try:
            orchard_jit.flash_attention(q, q, q)
        except RuntimeError as error:
            print(error)
    """
    out, _ = finish(python(code, ORCHARD_STORAGE="copy"))
    assert out.endswith("ORCHARD_STORAGE must be 'direct' or 'clone', got 'copy'")
