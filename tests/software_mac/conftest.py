"""The software Mac's own tests compile as it does for everybody."""

import pytest


@pytest.fixture(autouse=True)
def _optimised(monkeypatch):
    monkeypatch.delenv("SOFTWARE_MAC_OPTIMISATION", raising=False)
