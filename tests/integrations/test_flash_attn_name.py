"""Code that was written for flash-attn runs unchanged, as its users write it."""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from orchard_jit.integrations import flash_attn as shim

HEADS, DIM, LENGTH = 2, 8, 9
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture
def _installed():
    shim.install()
    yield
    shim.uninstall()


def reference(q, k, v, causal):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2)


@pytest.mark.usefixtures("_installed")
class TestAsItsUsersWriteIt:
    def test_the_import_of_a_model(self, device):
        try:
            from flash_attn import flash_attn_func, flash_attn_varlen_func  # noqa: F401
            from flash_attn.bert_padding import index_first_axis, pad_input, unpad_input  # noqa: F401

            available = True
        except ImportError:
            available = False
        assert available
        q, k, v = (torch.randn(2, LENGTH, HEADS, DIM) for _ in range(3))
        out = flash_attn_func(*(x.to(device) for x in (q, k, v)), causal=True)
        torch.testing.assert_close(out.cpu(), reference(q, k, v, True), **CLOSE)

    def test_an_interface_module(self):
        import flash_attn
        import flash_attn.flash_attn_interface as interface
        from flash_attn import flash_attn_interface

        assert flash_attn_interface is interface
        assert interface.flash_attn_func is flash_attn.flash_attn_func
        assert tuple(int(part) for part in flash_attn.__version__.split(".")[:2]) >= (2, 1)

    def test_who_asks_whether_it_is_there(self):
        assert importlib.util.find_spec("flash_attn") is not None
        assert importlib.import_module("flash_attn.bert_padding").pad_input

    def test_what_is_not_there_is_an_import_error(self):
        with pytest.raises(ImportError):
            from flash_attn.ops.fused_dense import FusedDense  # noqa: F401
        with pytest.raises(ImportError):
            from flash_attn.layers.rotary import apply_rotary_emb  # noqa: F401

    def test_a_module_on_packed_qkv(self):
        from flash_attn import flash_attn_qkvpacked_func

        class SelfAttention(nn.Module):
            def __init__(self):
                super().__init__()
                self.qkv = nn.Linear(HEADS * DIM, 3 * HEADS * DIM)
                self.out = nn.Linear(HEADS * DIM, HEADS * DIM)

            def forward(self, x, flash):
                qkv = self.qkv(x).view(*x.shape[:2], 3, HEADS, DIM)
                scale = 1 / math.sqrt(DIM)
                if flash:
                    out = flash_attn_qkvpacked_func(qkv, dropout_p=0.0, softmax_scale=scale, causal=True)
                else:
                    out = reference(*qkv.unbind(2), True)
                return self.out(out.flatten(2))

        model, x = SelfAttention(), torch.randn(2, LENGTH, HEADS * DIM)
        out, expected = model(x, flash=True), model(x, flash=False)
        torch.testing.assert_close(out, expected, **CLOSE)
        gradients = [torch.autograd.grad(y.square().sum(), model.qkv.weight) for y in (out, expected)]
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)

    def test_cross_attention_on_packed_kv(self):
        from flash_attn import flash_attn_kvpacked_func

        q, kv = torch.randn(2, 5, HEADS, DIM), torch.randn(2, LENGTH, 2, HEADS, DIM)
        out = flash_attn_kvpacked_func(q, kv)
        torch.testing.assert_close(out, reference(q, *kv.unbind(2), False), **CLOSE)

    def test_padding_taken_out_and_put_back(self):
        """The classic of BERT: unpad, attend, pad."""
        from flash_attn import flash_attn_varlen_func, flash_attn_varlen_kvpacked_func
        from flash_attn.bert_padding import index_first_axis, pad_input, unpad_input
        from flash_attn.flash_attn_interface import flash_attn_varlen_qkvpacked_func

        mask = torch.ones(3, LENGTH, dtype=torch.int64)
        mask[0, 4:] = mask[2, 7:] = 0
        qkv = torch.randn(3, LENGTH, 3, HEADS, DIM, requires_grad=True)
        packed, indices, cu_seqlens, longest, *_ = unpad_input(qkv, mask)
        assert longest == LENGTH
        assert torch.equal(packed, index_first_axis(qkv.flatten(0, 1), indices))
        q, k, v = packed.unbind(1)
        outputs = (
            flash_attn_varlen_func(q, k, v, cu_seqlens, cu_seqlens, longest, longest, causal=True),
            flash_attn_varlen_qkvpacked_func(packed, cu_seqlens, longest, causal=True),
            flash_attn_varlen_kvpacked_func(
                q, packed[:, 1:], cu_seqlens, cu_seqlens, longest, longest, 0.0, None, True
            ),
        )
        hidden = (mask == 0)[:, :, None, None]
        expected = reference(*qkv.unbind(2), True).masked_fill(hidden, 0.0)
        (wanted,) = torch.autograd.grad(expected.square().sum(), qkv)
        for out in outputs:
            padded = pad_input(out, indices, 3, LENGTH)
            torch.testing.assert_close(padded, expected, **CLOSE)
            (gradient,) = torch.autograd.grad(padded.square().sum(), qkv, retain_graph=True)
            torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-5)

    def test_unused_tokens_take_a_place(self):
        from flash_attn.bert_padding import unpad_input

        used = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0]])
        unused = torch.tensor([[0, 0, 1, 0], [0, 0, 0, 0]])
        x = torch.arange(8.0).view(2, 4, 1)
        tokens, indices, ends, longest, lengths = unpad_input(x, used, unused)
        assert indices.tolist() == tokens.flatten().tolist() == [0, 1, 2, 4]
        assert (ends.tolist(), longest, lengths.tolist()) == ([0, 3, 4], 3, [2, 1])
        assert ends.dtype == lengths.dtype == torch.int32

    def test_decoding_into_a_cache(self):
        from flash_attn import flash_attn_with_kvcache

        k_cache, v_cache = (torch.zeros(2, 16, HEADS, DIM) for _ in range(2))
        q, k, v = (torch.randn(2, LENGTH, HEADS, DIM) for _ in range(3))
        expected = reference(q, k, v, True)
        used = torch.zeros(2, dtype=torch.int32)
        for step in range(LENGTH):
            now = slice(step, step + 1)
            out = flash_attn_with_kvcache(
                q[:, now], k_cache, v_cache, k[:, now], v[:, now], cache_seqlens=used, causal=True
            )
            torch.testing.assert_close(out, expected[:, now], **CLOSE)
            used += 1


def test_nothing_is_there_before_and_after():
    assert importlib.util.find_spec("flash_attn") is None
    shim.install()
    shim.install()
    assert "flash_attn.bert_padding" in sys.modules
    shim.uninstall()
    shim.uninstall()
    assert importlib.util.find_spec("flash_attn") is None
    assert not [name for name in sys.modules if name.partition(".")[0] == "flash_attn"]


def test_a_flash_attn_that_is_installed_is_not_hidden(monkeypatch, tmp_path):
    (tmp_path / "flash_attn.py").write_text("__version__ = '2.0'\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match="a flash_attn is installed"):
        shim.install()
    theirs = ModuleType("flash_attn")
    monkeypatch.setitem(sys.modules, "flash_attn", theirs)
    with pytest.raises(ImportError, match="a flash_attn is installed"):
        shim.install()
    shim.uninstall()
    assert sys.modules["flash_attn"] is theirs
