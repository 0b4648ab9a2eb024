"""What Dynamo is told of our functions, and that nobody else waits for it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from orchard_jit import dynamo

calls = []


@dynamo.constant
def note(device, dtype, words):
    calls.append((device.type, dtype, words))
    return words


@dynamo.left_out("it asks for a value")
def left_out(x):
    return x * x.sum().item()


@pytest.fixture(autouse=True)
def _nothing_is_compiled():
    torch._dynamo.reset()
    calls.clear()


def test_imports_leave_it_to_who_compiles():
    code = """
import sys
import orchard_jit.distributed
import orchard_jit.integrations.bert_padding
import orchard_jit.integrations.flash_attn
import orchard_jit.integrations.flex
import orchard_jit.integrations.routing
assert not {"torch._dynamo", "sympy"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_constant_is_found_while_tracing():
    """From its own module, whose globals Dynamo writes the result to."""

    def model(x, *words):
        return x * len(note(x.device, x.dtype, " ".join(words)))

    x = torch.randn(3, 4)
    for size in (2, 3):
        words = ("a",) * size
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        assert torch.equal(compiled(x, *words), compiled(x, *words))
        torch._dynamo.reset()
    assert calls == [("cpu", torch.float32, "a a"), ("cpu", torch.float32, "a a a")]
    assert note(x.device, x.dtype, "now") == "now"


def test_no_graph_holds_what_is_left_out():
    def model(x):
        return left_out(x * 2) * 3

    x = torch.randn(4)
    assert torch.equal(torch.compile(model, backend="eager")(x), model(x))
    assert torch.equal(torch.compile(left_out, backend="eager")(x), left_out(x))
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="disable"):
        torch.compile(model, backend="eager", fullgraph=True)(x)
