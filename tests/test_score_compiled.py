"""Score functions as kernels compute them, against PyTorch: on the CPU's instruction sets and on the software Mac."""

from __future__ import annotations

import numpy as np
import pytest
import score_expressions
import score_kernels
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from score_expressions import VALUES, World

from orchard_jit.backends.cpu import CpuBackend
from orchard_jit.score import ScoreMod, alibi, softcap

LEVELS = ("x86-64", "x86-64-v3", "x86-64-v4")
BATCH = 16
"""Expressions of one compilation."""


def archs():
    here = CpuBackend().arch()
    return LEVELS[: LEVELS.index(here) + 1] if here in LEVELS else (here,)


ON_CPU = [("cpu", dtype, arch) for arch in archs() for dtype in ("float32", "float64")]
TARGETS = [*ON_CPU, ("metal", "float32", "apple9")]
few = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],  # an example is a compilation
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(params=TARGETS, ids="-".join)
def run(request, tmp_path_factory):
    """Calls score functions at points."""
    backend, dtype, arch = request.param

    def run(mods, at):
        if backend == "metal":
            return score_kernels.metal(mods, dtype, at)
        return score_kernels.cpu(mods, dtype, arch, at, tmp_path_factory.mktemp("score"))

    run.dtype = getattr(torch, dtype)
    return run


def mod_of(score="score", mask=None):
    """Of expressions over VALUES, those that they use."""
    used = {name: value for name, value in VALUES.items() if name in f"{score} {mask}"}
    return ScoreMod(score, mask=mask, **used)


@few
@given(st.lists(score_expressions.booleans(3), min_size=BATCH, max_size=BATCH), st.integers(0, 99))
def test_random_masks(run, expressions, seed):
    at = score_kernels.points(seed, heads_differ=seed % 2 == 1)
    results = run([mod_of(mask=expression.text) for expression in expressions], at)
    world = World(at.tensors(), VALUES)
    for expression, result in zip(expressions, results, strict=True):
        expected = expression.value(world).expand(at.score.shape).numpy()
        np.testing.assert_array_equal(result.visible, expected, err_msg=expression.text)


@few
@given(st.lists(score_expressions.floats(3), min_size=BATCH, max_size=BATCH), st.integers(0, 99))
def test_random_scores_and_their_derivatives(run, expressions, seed):
    at = score_kernels.points(seed, heads_differ=seed % 2 == 1)
    results = run([mod_of(expression.text) for expression in expressions], at)
    for expression, result in zip(expressions, results, strict=True):
        is_score = torch.isfinite(bounds(expression, at, run.dtype, "modified")[0])
        for name, got in (("modified", result.modified), ("slope", result.slope)):
            expected, slack = bounds(expression, at, run.dtype, name)
            checked = is_score & torch.isfinite(expected) & (slack < 0.1 * (1 + expected.abs()))  # no chaos
            wrong = checked & ~((torch.tensor(got) - expected).abs() <= slack)
            assert not wrong.any(), (expression, name, got[wrong], expected[wrong], at.score[wrong])


def bounds(expression, at, dtype, name):
    """What PyTorch makes of an expression, and how far a result may be from it."""
    noise = 1e-5 if dtype == torch.float32 else 1e-12

    def evaluate(dtype, noise=0.0):
        names = at.tensors()
        names["score"] = score = names["score"].to(dtype).requires_grad_()
        value = expression.value(World(names, VALUES, dtype, noise)).to(dtype).expand(score.shape)
        if name == "modified":
            return value.detach().double()
        if not value.requires_grad:
            return torch.zeros_like(score).double()
        return torch.autograd.grad(value.sum(), score)[0].double()

    expected = evaluate(torch.float64)
    noisy = torch.stack([evaluate(torch.float64, noise) for _ in range(8)])
    slack = 4 * (noisy - expected).abs().max(0).values + noise * (1 + expected.abs())
    if dtype == torch.float32:  # whose range is smaller
        slack = torch.where(torch.isfinite(evaluate(dtype)), slack, torch.inf)
    return expected, slack
