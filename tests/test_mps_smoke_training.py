"""A small model learns on `device="mps"`, with the gradients of PyTorch's own attention on the CPU."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

import orchard_jit

from .jit.test_library import finish, python

STEPS = 4


class Model(nn.Module):
    """Two heads of causal attention between two linear layers."""

    def __init__(self):
        super().__init__()
        self.qkv, self.projection = nn.Linear(32, 3 * 32), nn.Linear(32, 32)

    def forward(self, x, attend):
        query, key, value = self.qkv(x).unflatten(-1, (3, 2, 16)).permute(2, 0, 3, 1, 4)
        return self.projection(attend(query, key, value).transpose(1, 2).flatten(-2))


def attention(query, key, value):
    return orchard_jit.flash_attention(query, key, value, causal=True)


def pytorch_attention(query, key, value):
    return functional.scaled_dot_product_attention(query, key, value, is_causal=True)


def train(device, attend):
    """The losses, and the parameters' gradients of the first step."""
    torch.manual_seed(0)
    model, x = Model(), torch.randn(2, 40, 32)
    target = x.cumsum(1) / math.sqrt(40)  # of a row and those before it, which attention alone can see
    model, x, target = model.to(device), x.to(device), target.to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    losses, first = [], None
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = functional.mse_loss(model(x, attend), target)
        loss.backward()
        first = first or {name: p.grad.cpu() for name, p in model.named_parameters()}
        optimizer.step()
        losses.append(loss.item())
    return losses, first


@pytest.mark.skipif(not torch.backends.mps.is_available(), reason="needs Apple Silicon")
def test_flash_attention_backward(tmp_path):
    calls, results = tmp_path / "calls.log", tmp_path / "results"
    code = f"""
        import tests.conftest, torch
        from tests.test_mps_smoke_training import attention, train
        torch.save(train("mps", attention), {str(results)!r})
    """
    finish(python(code, ORCHARD_DEBUG_FLASH_ATN="1", ORCHARD_DEBUG_FLASH_ATN_LOG=str(calls)))

    losses, gradients = torch.load(results)
    expected_losses, expected = train("cpu", pytorch_attention)
    torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=1e-6)
    assert losses == pytest.approx(expected_losses, rel=1e-4)
    assert losses == sorted(losses, reverse=True)

    passes = [f"[flashattn.mm] {kind} call={step}" for step in range(1, STEPS + 1) for kind in ("FWD", "BWD")]
    assert calls.read_text().splitlines() == passes
