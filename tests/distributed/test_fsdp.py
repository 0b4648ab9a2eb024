"""`fully_shard`, with the sequence spread over the same processes: right, and compiled once on a node."""

from __future__ import annotations

import shutil

import pytest
import reference
import torch
from torch.distributed import fsdp

import orchard_jit
from orchard_jit.jit import library, recipe

from .cases import CHUNK
from .conftest import start
from .model import HEAD_DIM, Model, gradients, tokens

SIZE = 2


@pytest.fixture
def only_operators(tmp_path, monkeypatch):
    """An empty cache, and the operators, which are not what this is about, if they have been built."""
    operators = library.find(recipe.for_binding())
    if operators is not None:
        prebuilt = tmp_path / "prebuilt"
        shutil.copytree(operators.directory, prebuilt / "v1" / operators.shelf / operators.key)
        monkeypatch.setenv("ORCHARD_JIT_PREBUILT_DIRS", str(prebuilt))
    cache = tmp_path / "cache"
    cache.mkdir(mode=0o700)
    monkeypatch.setenv("ORCHARD_JIT_CACHE_DIR", str(cache))


@pytest.mark.usefixtures("only_operators")
def test_processes_that_share_parameters_and_sequence(tmp_path):
    if not hasattr(fsdp, "fully_shard"):
        pytest.skip("of PyTorch 2.6")
    said = start("tests.distributed.fsdp_job", SIZE, tmp_path)

    torch.manual_seed(0)
    model, length = Model(), 2 * CHUNK * SIZE
    model(
        tokens(length),
        torch.arange(length),
        lambda *qkv: orchard_jit.flash_attention(*qkv, causal=True),
    ).backward()
    for rank in range(SIZE):
        of_rank = torch.load(tmp_path / f"gradients-{rank}.pt")
        for name, gradient in gradients(model).items():
            assert reference.error(of_rank[name], gradient.double()) < 1e-6, name
    compiled = [line.split()[2] for line in said.splitlines() if "orchard_jit: compiled" in line]
    kernels = [name for name in compiled if f"-f32-d{HEAD_DIM}" in name]
    # Forward and backward, on the diagonal and off it.
    assert len(kernels) == len(set(kernels)) == 4, compiled
