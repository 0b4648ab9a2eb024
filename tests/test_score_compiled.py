"""Score functions as kernels compute them, against PyTorch: each instruction set, and the software Mac."""

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

LEVELS = ("x86-64", "x86-64-v3", "x86-64-v4", "x86-64-v4-bf16")
BATCH = 16
"""Expressions of one compilation."""


def archs():
    here = CpuBackend().arch()
    return LEVELS[: LEVELS.index(here) + 1] if here in LEVELS else (here,)


ON_CPU = [("cpu", dtype, arch) for arch in archs() for dtype in ("float32", "float64")]
TARGETS = [*ON_CPU, ("metal", "float32", "apple9")]
few = settings(
    max_examples=2,
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


def test_kinks_have_the_gradients_of_pytorch(run):
    kinks = {
        "abs(score)": torch.abs,
        "max(score, 0)": lambda x: torch.maximum(x, torch.zeros_like(x)),
        "min(2 * score, score)": lambda x: torch.minimum(2 * x, x),
        "where(score > 0, score, 3 * score)": lambda x: torch.where(x > 0, x, 3 * x),
        "floor(score) * score": lambda x: torch.floor(x) * x,
        "1.0": lambda x: x * 0 + 1,
    }
    at = score_kernels.points_with([-1.0, 0.0, 1.0])
    for function, result in zip(kinks.values(), run([ScoreMod(text) for text in kinks], at), strict=True):
        score = torch.tensor(at.score, requires_grad=True)
        function(score).sum().backward()
        np.testing.assert_array_equal(result.slope, score.grad.numpy())


def test_nan_is_never_hidden(run):
    texts = ("max(score, 0)", "max(0, score)", "min(score, 0)", "min(0, score)", "exp(score)", "abs(score)")
    for result in run([*map(ScoreMod, texts), softcap(2.0)], score_kernels.points_with([np.nan])):
        assert np.isnan(result.modified).all()


def test_division_by_zero_and_overflow_are_defined(run):
    masks = ["q // (kv - kv) == 0", "q % (kv - kv) == q", "-7 // 2 == -4 and -7 % 2 == 1 and 7 % -2 == -1"]
    if run.dtype == torch.float32:
        masks += [
            "2147483647 + abs(q) + 1 < 0",
            "(-2147483647 - 1) // (kv - kv - 1) < 0",
            "65536 * 65536 == 0",
        ]
    for mask, result in zip(
        masks, run([ScoreMod(mask=mask) for mask in masks], score_kernels.points(0)), strict=True
    ):
        assert result.visible.all(), mask


def test_scalars_keep_their_types(run):
    floats = ScoreMod("score + half", half=2.5)
    ints = ScoreMod("score + q // n", n=-(2**24))
    bools = ScoreMod("where(flag, score, 0.0)", flag=False)
    at = score_kernels.points(0)
    float_, int_, bool_ = run([floats, ints, bools], at)
    np.testing.assert_allclose(float_.modified, at.score + 2.5, rtol=1e-6)
    np.testing.assert_allclose(int_.modified, at.score - (at.q > 0), rtol=1e-6)
    assert (bool_.modified == 0).all()


def test_softcap_then_alibi_then_a_function_with_its_own_derivative(run):
    slopes = torch.tensor([[0.5, 1.0, 2.0, 4.0]] * 3)
    own = ScoreMod("2 * score", derivative="score * 0 + 7", mask="kv <= q")
    at = score_kernels.points(3)
    mod = softcap(3.0).then(alibi(slopes)).then(own)
    (result,) = run([mod], at)
    capped = 3 * np.tanh(at.score / 3)
    distance = np.abs(at.q + at.kv_len - at.q_len - at.kv)
    expected = 2 * (capped - slopes.numpy()[at.b, at.h] * distance)
    np.testing.assert_allclose(result.modified, expected, rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(result.slope, 7 * (1 - (capped / 3) ** 2), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(result.visible, at.kv <= at.q)


ULPS = {"exp": 3, "exp2": 3, "log": 1.5, "log2": 2.5, "tanh": 2.5, "sigmoid": 4, "sqrt": 0.51, "sin": 1.5}


@pytest.mark.parametrize("arch", archs())
def test_functions_in_float32_are_accurate(arch, tmp_path):
    """On Metal they are those of the system, of which the software Mac knows nothing."""
    random = np.random.default_rng(0)
    near, far = random.uniform(-2, 2, 5000), random.uniform(-80, 80, 5000)
    small = np.exp(random.uniform(-80, 0, 5000))
    scores = np.concatenate([near, far, small, -small]).astype(np.float32).astype(float)
    at = score_kernels.points_with(scores)
    mods = [ScoreMod(f"{name}(score)") for name in ULPS]
    for name, result in zip(ULPS, score_kernels.cpu(mods, "float32", arch, at, tmp_path), strict=True):
        expected = getattr(torch, name)(torch.tensor(at.score)).numpy()
        errors = np.abs(result.modified - expected) / np.spacing(np.abs(expected).astype(np.float32))
        assert np.nanmax(errors) < ULPS[name], (name, at.score.flat[np.nanargmax(errors)])
        np.testing.assert_array_equal(np.isnan(result.modified), np.isnan(expected))


@pytest.mark.parametrize("arch", archs())
def test_functions_at_their_limits(arch, tmp_path):
    at = score_kernels.points_with([0.0, np.inf, -np.inf, np.nan, 1e30, -1e30, 1e-40])
    names = ("exp", "exp2", "log", "log2", "tanh", "sigmoid", "sqrt", "abs", "floor")
    mods = [ScoreMod(f"{name}(score)") for name in names]
    for name, result in zip(names, score_kernels.cpu(mods, "float32", arch, at, tmp_path), strict=True):
        expected = getattr(torch, name)(torch.tensor(at.score)).numpy()
        expected[np.abs(expected) > 3.5e38] *= np.inf
        np.testing.assert_allclose(result.modified, expected, rtol=1e-6, atol=1e-44, err_msg=name)


def test_metal_has_no_float64():
    from orchard_jit.score.source import Source

    spec = ScoreMod("score + x[h]", x=torch.ones(4, dtype=torch.float64)).spec
    with pytest.raises(ValueError, match=r"a score function on metal reads float32, .* got float64"):
        Source(spec, "metal")
