"""A distributed job: every rank makes the same first call, and one of them compiles."""

from __future__ import annotations

import shutil

import pytest

from orchard_jit import binding
from orchard_jit.jit import library, recipe
from orchard_jit.jit.store import LAYOUT

from ..jit.tiny import finish, python

RANKS = 4
JOB = """
    import os, sys, tempfile, torch, orchard_jit
    from torch import distributed

    torch.set_num_threads(1)
    store, ranks = tempfile.mktemp(), 4

    def train(rank):
        distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
        torch.manual_seed(0)
        layer = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(11, 3 * 11))
        x = torch.full((1, 2, 6, 11), float(rank))
        q, k, v = layer(x).chunk(3, dim=-1)
        orchard_jit.flash_attention(q, k, v, causal=True).square().sum().backward()
        gradient = layer.module.weight.grad
        mean = gradient.clone()
        distributed.all_reduce(mean)
        assert gradient.isfinite().all() and torch.allclose(mean / ranks, gradient)
        os.write(1, f"rank {rank} is right\\n".encode())  # in one piece, which print is not
        distributed.destroy_process_group()

    children = []
    for rank in range(ranks):
        child = os.fork()
        if child == 0:
            try:
                train(rank)
            finally:
                sys.stdout.flush()
                os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
"""


@pytest.fixture
def operators(tmp_path):
    """A prebuilt folder of the operators, which are not what this is about."""
    binding.load()
    entry = library.find(recipe.for_binding())
    shutil.copytree(entry.directory, tmp_path / "prebuilt" / LAYOUT / entry.shelf / entry.key)
    return tmp_path / "prebuilt"


def test_four_ranks_compile_once(operators, empty_cache):
    out, err = finish(python(JOB, ORCHARD_JIT_PREBUILT_DIRS=str(operators)))
    assert sorted(out.splitlines()) == [f"rank {rank} is right" for rank in range(RANKS)]
    compiled = [line for line in err.splitlines() if "orchard_jit: compiled" in line]
    assert len(compiled) == 2, compiled
    for kernel in ("forward", "backward"):
        assert sum(f"-{kernel}-f32-d11" in line for line in compiled) == 1, compiled
