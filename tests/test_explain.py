"""`explain` says what a call would run, or why nothing can, and does nothing."""

from __future__ import annotations

import pytest
import torch

from orchard_jit import Explanation, ScoreMod, call, explain, flash_attention, operators
from orchard_jit.jit import library
from orchard_jit.options import resolve

SHAPE = (2, 4, 10, 16)
OPTIONS = {
    "plain": ({}, ()),
    "causal": ({"causal": True}, ("causal",)),
    "window": ({"window": (3, 0)}, ("window",)),
    "causal window": ({"window": (3, None), "causal": True}, ("window",)),
    "mask": ({"mask": torch.ones(10, 10, dtype=torch.bool)}, ("mask",)),
    "bias": ({"bias": torch.ones(10, 10)}, ("bias",)),
    "dropout": ({"dropout_p": 0.1}, ("dropout",)),
    "lengths": ({"key_lengths": torch.tensor([3, 4], dtype=torch.int32)}, ("lengths",)),
    "several": (
        {"mask": torch.ones(10, dtype=torch.bool), "dropout_p": 0.5, "causal": True},
        ("causal", "dropout", "mask"),
    ),
}


def tensors(device="cpu", dtype=torch.float32, **options):
    return [torch.randn(SHAPE, **options).to(dtype).to(device) for _ in range(3)]


def moved(options, device):
    return {
        name: value.to(device) if isinstance(value, torch.Tensor) else value
        for name, value in options.items()
    }


@pytest.mark.parametrize(("options", "features"), OPTIONS.values(), ids=OPTIONS)
def test_it_says_the_variants(device, options, features):
    explanation = explain(*tensors(device), **moved(options, device))
    assert explanation
    assert explanation.reason is None
    for kernel in ("forward", "backward"):
        variant = getattr(explanation, kernel)
        assert variant.kernel == kernel
        assert variant.backend == {"cpu": "cpu", "mps": "metal"}[device]
        assert (variant.dtype, variant.head_dim, variant.head_dim_v) == ("float32", 16, 16)
        assert variant.features == features
        assert str(variant) in str(explanation)


def test_a_float32_bias_a_gradient_and_sinks():
    q, k, v = tensors(dtype=torch.bfloat16)
    explanation = explain(q, k, v, bias=torch.ones(10, 10, requires_grad=True), sinks=torch.ones(4))
    assert explanation.forward.features == ("bias_f32", "sinks")
    assert explanation.backward.features == ("bias_f32", "bias_grad")
    assert "a float32 tensor is added to the scores" in str(explanation)


def test_a_score_function():
    mod = ScoreMod("score * 2", mask="kv <= q")
    explanation = explain(*tensors(), score_mod=mod)
    assert explanation.forward.score == explanation.backward.score == mod.spec
    lines = str(explanation).splitlines()
    assert {"score     score * 2.0", "seen      where kv <= q"} <= {*lines}


@pytest.mark.parametrize(
    ("shapes", "options", "reason"),
    [
        (((2, 4, 10, 16), (2, 3, 10, 16)), {}, "query has 4 heads, which key's 3 heads do not divide"),
        (((2, 4, 10, 600), (2, 4, 10, 600)), {}, "must be 1 to 512, got 600"),
        (((2, 4, 10, 16), (2, 4, 9, 16)), {"causal": True}, "the diagonal is ambiguous"),
        ((SHAPE, SHAPE), {"mask": torch.ones(9, 10, dtype=torch.bool)}, "mask has shape"),
        ((SHAPE, SHAPE), {"bias": torch.ones(10, 10, dtype=torch.int64)}, "bias must be Float"),
        ((SHAPE, SHAPE), {"dropout_p": 2.0}, "dropout must be 0 to 1"),
        ((SHAPE, SHAPE), {"window": (1,)}, "window must be"),
        ((SHAPE, SHAPE), {"key_lengths": torch.tensor([3, 11], dtype=torch.int32)}, "key_lengths must be"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_it_says_why_not_as_the_call_does(shapes, options, reason):
    query, key = map(torch.randn, shapes)
    explanation = explain(query, key, key, **options)
    assert not explanation
    assert explanation.forward is explanation.backward is None
    assert not explanation.compiled
    assert reason in explanation.reason
    assert str(explanation) == f"no kernel can take this call: {explanation.reason}"
    with pytest.raises((ValueError, TypeError)) as error:
        flash_attention(query, key, key, **options)
    assert explanation.reason in str(error.value)


@pytest.mark.parametrize("device", ("meta", "sparse"))
def test_tensors_that_kernels_cannot_read(device):
    tensor = torch.randn(SHAPE)
    tensor = tensor.to_sparse() if device == "sparse" else tensor.to(device)
    explanation = explain(tensor, tensor, tensor)
    assert not explanation
    assert device in explanation.reason


def test_nested_tensors():
    parts = [torch.randn(length, 4, 16) for length in (3, 5)]
    tensor = torch.nested.nested_tensor(parts, layout=torch.jagged).transpose(1, 2)
    assert explain(tensor, tensor, tensor, causal=True).forward.features == ("causal", "varlen")
    assert "mask can't be combined" in explain(tensor, tensor, tensor, mask=torch.ones(1)).reason


@pytest.mark.parametrize("shape", [(0, 4, 10, 16), (2, 0, 10, 16), (2, 4, 0, 16)], ids=str)
def test_empty_tensors(shape):
    assert explain(*(torch.randn(shape) for _ in range(3)))


def test_it_says_whether_they_are_compiled(monkeypatch):
    q, k, v = tensors()
    torch.autograd.grad(flash_attention(*(x.requires_grad_() for x in (q, k, v))).sum(), q)
    assert explain(q, k, v).compiled
    assert "both are compiled" in str(explain(q, k, v))
    monkeypatch.setattr(library, "find", lambda recipe: None)
    assert not explain(q, k, v).compiled
    assert "the first call compiles what is missing" in str(explain(q, k, v))


def test_nothing_is_compiled_and_no_random_number_drawn(monkeypatch):
    def forbidden(*arguments):
        raise AssertionError("asked for a kernel")

    explain(*tensors())  # the operators themselves
    monkeypatch.setattr(library, "load_all", forbidden)
    torch.manual_seed(1)
    assert isinstance(explain(*tensors(dtype=torch.float64), dropout_p=0.5, causal=True), Explanation)
    drawn = torch.rand(1)
    torch.manual_seed(1)
    tensors(dtype=torch.float64)
    assert torch.equal(drawn, torch.rand(1))


@pytest.mark.parametrize("requires_grad", (False, True))
@pytest.mark.parametrize(("options", "features"), OPTIONS.values(), ids=OPTIONS)
def test_the_first_call_of_a_process_foresees_the_same(options, features, requires_grad):
    """It compiles the kernels beside the operators, before these can say what they want."""
    arguments = resolve(*tensors(requires_grad=requires_grad), **options)
    variants = call.variants(arguments)
    wanted = [variants["forward"], variants["backward"]] if requires_grad else [variants["forward"]]
    assert operators._first_variants(*arguments) == wanted


@pytest.mark.parametrize("bias_dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("bias_grad", (False, True))
def test_it_foresees_biases_and_sinks(bias_dtype, bias_grad):
    bias = torch.ones(10, 10, dtype=bias_dtype, requires_grad=bias_grad)
    sinks = torch.ones(4, requires_grad=True)
    arguments = resolve(*tensors(dtype=torch.bfloat16), bias=bias, sinks=sinks)
    assert operators._first_variants(*arguments) == list(call.variants(arguments).values())


def test_it_foresees_nothing_else_where_one_query_meets_many_keys():
    query, key = torch.randn(1, 4, 1, 16), torch.randn(1, 4, 1000, 16)
    arguments = resolve(query, key, key)
    assert set(operators._first_variants(*arguments)) <= {call.variants(arguments)["forward"]}
