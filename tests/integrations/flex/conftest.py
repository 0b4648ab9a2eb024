"""What kernels are asked for."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from orchard_jit.integrations.flex import attention


@pytest.fixture
def kernels(monkeypatch):
    """What `flash_attention` is asked for, call by call."""
    calls = []

    def recorded(*tensors, **options):
        calls.append(SimpleNamespace(**options))
        return flash_attention(*tensors, **options)

    flash_attention = attention.flash_attention
    monkeypatch.setattr(attention, "flash_attention", recorded)
    return calls
