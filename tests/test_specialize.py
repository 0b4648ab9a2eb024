"""`specialize`: sizes by hand, for the calls of a region of code in one thread."""

from __future__ import annotations

import threading

import pytest
import torch

import orchard_jit
from orchard_jit import binding, explain, flash_attention, specialize
from orchard_jit.blocks import forced

HEAD_DIM = 8


@pytest.fixture
def resolved(monkeypatch):
    """The variants that calls have asked Python for, since the last look."""
    asked = []
    recipe_of = binding.recipe.for_variant

    def spy(variant):
        asked.append(variant)
        return recipe_of(variant)

    def look():
        seen = [(variant.kernel, dict(variant.blocks)) for variant in asked]
        asked.clear()
        return seen

    flash_attention(*inputs())  # loads the operators, which may bring the first variants along
    binding.forget_kernels()
    monkeypatch.setattr(binding.recipe, "for_variant", spy)
    yield look
    binding.forget_kernels()


def inputs(length=70, **options):
    torch.manual_seed(0)
    return [torch.randn(1, 2, length, HEAD_DIM, **options) for _ in range(3)]


def blocks(tensors=None):
    """(forward, backward)"""
    explanation = explain(*(tensors or inputs()))
    return dict(explanation.forward.blocks), dict(explanation.backward.blocks)


SHIPPED = ({"q": 256, "k": 96}, {"q": 128, "k": 96})


def test_a_region_forces_sizes_and_nothing_else_does():
    with specialize(block_q=64):
        assert blocks() == ({"q": 64, "k": 96}, {"q": 64, "k": 96})
        assert "forward: specialize, backward: specialize" in str(explain(*inputs()))
    assert blocks() == SHIPPED
    assert "specialize" not in str(explain(*inputs()))


def test_inside_another_region_the_inner_one_counts():
    with specialize(q=64, k=32):
        with specialize(block_q=512, backward={"k": 48}):
            assert blocks() == ({"q": 512, "k": 32}, {"q": 512, "k": 48})
        assert blocks() == ({"q": 64, "k": 32}, {"q": 64, "k": 32})
    assert blocks() == SHIPPED


def test_an_exception_ends_a_region():
    with pytest.raises(KeyError), specialize(q=64):
        raise KeyError
    assert blocks() == SHIPPED
    assert forced.active == ()


def test_it_decorates_functions_too():
    @specialize(k=32)
    def inside():
        return blocks()[0]["k"]

    assert [inside(), inside(), blocks()[0]["k"]] == [32, 32, 96]


def test_the_queries_and_keys_of_a_tile_have_their_names_on_every_backend():
    tensors = [x.to("mps") for x in inputs(dtype=torch.float16)]
    with specialize(block_q=8, block_k=24):
        forward, backward = blocks(tensors)
    assert (forward["rows"], forward["columns"]) == (8, 24)
    assert (backward["dq_rows"], backward["dq_columns"]) == (8, 24)
    assert (backward["dkv_rows"], backward["dkv_columns"]) == (24, 8)


def test_kernels_of_a_region_and_those_outside_are_kept_apart(resolved):
    expected = flash_attention(*inputs())
    assert resolved() == [("forward", SHIPPED[0])]
    with specialize(q=64, k=32):
        actual = flash_attention(*inputs())
        assert resolved() == [("forward", {"q": 64, "k": 32})]
        flash_attention(*inputs())
    flash_attention(*inputs())
    assert resolved() == []
    torch.testing.assert_close(actual, expected)


def test_the_backward_is_that_of_the_region_wherever_it_runs(resolved):
    leaves = inputs(requires_grad=True)
    expected = torch.autograd.grad(flash_attention(*leaves).square().sum(), leaves)
    resolved()
    with specialize(backward={"q": 64}):
        out = flash_attention(*leaves)
    assert resolved() == [("forward", SHIPPED[0]), ("backward", {"q": 64, "k": 96})]
    grads = []
    other = threading.Thread(target=lambda: grads.extend(torch.autograd.grad(out.square().sum(), leaves)))
    other.start()
    other.join()
    assert resolved() == []
    torch.testing.assert_close(grads, list(expected))


def test_other_threads_do_not_see_a_region(resolved):
    seen = []
    with specialize(q=64):
        other = threading.Thread(target=lambda: (flash_attention(*inputs()), seen.append(blocks())))
        other.start()
        other.join()
    assert seen == [SHIPPED]
    assert ("forward", SHIPPED[0]) in resolved()


def test_a_compiled_function_follows_the_region(resolved):
    torch._dynamo.reset()
    compiled = torch.compile(lambda q, k, v: flash_attention(q, k, v), fullgraph=True, backend="eager")
    expected = compiled(*inputs())
    assert resolved() == [("forward", SHIPPED[0])]
    for sizes in ({"q": 64}, {"k": 32}):
        with specialize(**sizes):
            torch.testing.assert_close(compiled(*inputs()), expected)
        assert resolved() == [("forward", {**SHIPPED[0], **sizes})]
    compiled(*inputs())
    assert resolved() == []


@pytest.mark.parametrize(
    ("sizes", "error", "message"),
    [
        ({"q": 100}, ValueError, "cpu: block q must be a multiple of 64 up to 1024, got 100"),
        (
            {"block_q": 100},
            ValueError,
            "cpu: block q .* got 100; metal: block rows must be a multiple of 8 up to 64, got 100",
        ),
        (
            {"rows": 64, "columns": 128, "simdgroups": 8, "split": 8},
            ValueError,
            "rows=64, columns=128, simdgroups=8 need 524288 bytes of threadgroup memory; there are 32768",
        ),
        ({"backward": {"dq_rows": 12}}, ValueError, "block dq_rows must be a multiple of 8"),
        ({"q": 0}, ValueError, "q must be a positive integer, got 0"),
        ({"q": True}, ValueError, "q must be a positive integer, got True"),
        ({"queries": 64}, TypeError, "has a block 'queries'; accepted are block_k, block_q, columns"),
        ({"forward": {"dq_rows": 8}}, TypeError, "no forward kernel has a block 'dq_rows'"),
    ],
)
def test_what_fits_no_kernel_is_refused_when_it_is_made(sizes, error, message):
    with pytest.raises(error, match=message):
        specialize(**sizes)


def test_what_fits_some_kernels_is_refused_where_it_does_not():
    with specialize(split=8), pytest.raises(ValueError, match="multiple of split, got 4 and 8"):
        flash_attention(*(x.to("mps") for x in inputs()))


def test_a_block_of_another_backend_does_not_go_unnoticed():
    with (
        specialize(rows=8),
        pytest.raises(ValueError, match="the cpu backend have no block rows; they have k, q"),
    ):
        flash_attention(*inputs())


def test_it_is_public():
    assert orchard_jit.specialize is specialize
