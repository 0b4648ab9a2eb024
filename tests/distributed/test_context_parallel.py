"""One sequence in 2 and in 4 processes: the results of one, in the fewest bytes, sent during the work."""

from __future__ import annotations

import pytest
import reference
import torch

import orchard_jit

from .cases import BFLOAT16, CASES, CHUNK
from .model import Model, gradients, tokens

NAMES = ("out", "lse", "grad_query", "grad_key", "grad_value")
LIMITS = {torch.float64: 2e-15, torch.float32: 1e-6, torch.bfloat16: 5e-3}
"""Of relative errors. The log-sum-exp of bfloat16 inputs is in float32."""


def whole(parts):
    """What the processes hold in zigzag order, together: rank r has chunks r and 2n - 1 - r."""
    first, second = zip(*(part.chunk(2, 2) for part in parts), strict=True)
    return torch.cat([*first, *reversed(second)], 2)


@pytest.mark.parametrize("name", CASES)
def test_results_and_gradients_are_those_of_one_process(found, name):
    case = CASES[name]
    query, key, value, grad_out, grad_lse = case.inputs(found.size)
    several = [whole(parts) for parts in zip(*(of_rank[name] for of_rank in found["attention"]), strict=True)]

    cap = case.options.get("softcap")
    exact = reference.result(
        *(query, key, value, grad_out),
        causal="upper_left" if case.causal else "none",
        scale=case.options.get("scale"),
        score=cap and (lambda score, *_: cap * torch.tanh(score / cap)),
        grad_lse=grad_lse,
    )
    leaves = [tensor.requires_grad_() for tensor in (query, key, value)]
    out, lse = orchard_jit.flash_attention(*leaves, causal=case.causal, return_lse=True, **case.options)
    torch.autograd.backward([out, lse], [grad_out, grad_lse])
    one = [out, lse, *(leaf.grad for leaf in leaves)]

    expected = (exact.out, exact.lse, *exact.grads)
    for what, ours, theirs, truth in zip(NAMES, several, one, expected, strict=True):
        assert ours.dtype == theirs.dtype
        limit = LIMITS[torch.float32 if what == "lse" and case.dtype == torch.bfloat16 else case.dtype]
        assert reference.error(ours, truth) < limit, what
        assert reference.error(ours, theirs.double()) < limit, what


def fewest_bytes(size, causal, itemsize):
    """That all processes together have to send for each key to be everywhere where it is seen; by token.

    It is the fewest for sums of gradients too, as each process that sees a key has to send what it adds.
    """
    heads, dims = CASES[BFLOAT16[0]].heads[1], sum(CASES[BFLOAT16[0]].dims)
    last = [CHUNK * (2 * size - rank) - 1 for rank in range(size)]  # each process's latest token
    owner = [min(token // CHUNK, 2 * size - 1 - token // CHUNK) for token in range(2 * CHUNK * size)]
    copies = sum(
        sum(last[rank] >= token or not causal for rank in range(size) if rank != home)
        for token, home in enumerate(owner)
    )
    return copies * 2 * heads * dims * itemsize


@pytest.mark.parametrize("causal", (False, True))
def test_a_ring_sends_the_fewest_bytes_that_there_can_be(found, causal):
    name = "ring causal, bfloat16" if causal else "ring, bfloat16"
    forward, backward = zip(*(of_rank[name] for of_rank in found["traffic"]), strict=True)
    blocks, sums = fewest_bytes(found.size, causal, 2), fewest_bytes(found.size, causal, 4)
    assert sum(sent["block"] for _, sent in forward) == blocks
    assert sum(sent["block"] for _, sent in backward) == blocks
    assert sum(sent["sum"] for _, sent in backward) == sums
    # In closed form: each part is sent n - 1 times, with a causal mask 3/4 of that in the mean.
    part = 2 * CHUNK * 2 * CASES[name].heads[1] * sum(CASES[name].dims) * 2
    assert blocks == found.size * (found.size - 1) * part * (3 if causal else 4) / 4


@pytest.mark.parametrize("causal", (False, True))
def test_gathering_sends_everything_to_everyone_and_sums_of_what_was_seen_back(found, causal):
    name = "gather causal, bfloat16" if causal else "gather, bfloat16"
    forward, backward = zip(*(of_rank[name] for of_rank in found["traffic"]), strict=True)
    for sent in (sent for _, sent in forward + backward):
        assert sent["block"] == fewest_bytes(found.size, False, 2) / found.size
    assert sum(sent["sum"] for _, sent in backward) == fewest_bytes(found.size, causal, 4)


def test_the_next_block_is_on_its_way_while_a_ring_works_on_one(found):
    step = ["post block", "work", "wait block"]
    for of_rank in found["traffic"]:
        for name in ("ring, bfloat16", "ring causal, bfloat16"):
            (events, _), _ = of_rank[name]
            assert events == step * (found.size - 1) + ["work"]


def test_sums_of_gradients_are_on_their_way_during_the_work_on_the_next_block(found):
    for of_rank in found["traffic"]:
        _, (events, _) = of_rank["ring, bfloat16"]
        if found.size == 2:
            assert events == ["post block", "work", "wait block", "work", "post sum", "wait sum"]
        else:
            assert events == [
                *("post block", "work", "wait block"),  # its own, whose sum waits for the others'
                *("post block", "work", "post sum", "wait block"),
                *("post block", "work", "wait sum", "post sum", "wait block"),
                *("work", "wait sum", "post sum", "wait sum"),
            ]


def test_the_early_queries_are_at_work_before_the_late_keys_are_there(found):
    for of_rank in found["traffic"]:
        (events, _), _ = of_rank["gather causal, bfloat16"]
        assert events == [*["post block"] * 2, *["wait block", "work"] * 2]


def test_keys_are_gathered_by_default_while_they_are_no_larger_than_the_queries(found):
    """As in the case, with two query heads to a key head, they are in two processes and not in four."""
    method = "gather" if found.size == 2 else "ring"
    for of_rank in found["traffic"]:
        assert of_rank["by default, bfloat16"] == of_rank[f"{method}, bfloat16"]


def test_a_sequence_is_cut_and_put_together(found):
    for rank, of_rank in enumerate(found["parts"]):
        early, late = 2 * rank, 2 * (2 * found.size - 1 - rank)
        zigzag, contiguous = [early, early + 1, late, late + 1], list(range(4 * rank, 4 * rank + 4))
        assert of_rank["zigzag"] == (zigzag, zigzag, True)
        assert of_rank["contiguous"] == (contiguous, contiguous, True)


@pytest.mark.parametrize("mode", ("no_grad", "checkpoint", "compile", "autocast", "repeated"))
def test_it_is_a_citizen_of_pytorch(found, mode):
    assert all(of_rank[mode] for of_rank in found["modes"])


def test_tensors_on_mps_give_the_same(found):
    case = CASES["ring causal, float32"]
    query, key, value, grad_out, grad_lse = case.inputs(found.size)
    exact = reference.result(query, key, value, grad_out, causal="upper_left", grad_lse=grad_lse)
    devices, results = zip(*found["on_mps"], strict=True)
    assert set().union(*devices) == {"mps"}
    for parts, truth in zip(zip(*results, strict=True), (exact.out, exact.lse, *exact.grads), strict=True):
        assert reference.error(whole(parts), truth) < LIMITS[torch.float32]


def test_a_group_of_one_process_is_plain_attention(found):
    case = CASES["ring causal, float32"]
    query, key, value, *grads = case.inputs(1)
    leaves = [tensor.requires_grad_() for tensor in (query, key, value)]
    results = orchard_jit.flash_attention(*leaves, causal=True, return_lse=True)
    torch.autograd.backward(results, grads)
    for of_rank in found["groups"]:
        assert all(map(torch.equal, of_rank["one"], [*results, *(leaf.grad for leaf in leaves)]))


def test_a_group_of_some_of_the_processes(found):
    if found.size == 2:
        pytest.skip("in four processes")
    case = CASES["ring causal, float32"]
    query, key, value, grad_out, grad_lse = case.inputs(2)
    exact = reference.result(query, key, value, grad_out, causal="upper_left", grad_lse=grad_lse)
    for pair in ((0, 2), (1, 3)):
        parts = zip(*(found["groups"][rank]["two"] for rank in pair), strict=True)
        for part, truth in zip(parts, (exact.out, exact.lse, *exact.grads), strict=True):
            assert reference.error(whole(part), truth) < LIMITS[torch.float32]


def test_a_model_has_the_gradients_of_one_process(found):
    torch.manual_seed(0)
    model = Model()
    length = 2 * CHUNK * found.size
    model(
        tokens(length),
        torch.arange(length),
        lambda *qkv: orchard_jit.flash_attention(*qkv, causal=True),
    ).backward()
    for of_rank in found["training"]:
        for name, gradient in gradients(model).items():
            assert reference.error(of_rank[name], gradient.double()) < LIMITS[torch.float32], name


def test_pytorchs_attention_in_a_region_is_of_the_whole_sequence(found):
    expected = found["training"][0]
    torch.manual_seed(0)
    module = torch.nn.MultiheadAttention(32, 2, batch_first=True)
    rows = torch.randn(2, 2 * CHUNK * found.size, 32)
    of_module = module(rows, rows, rows, need_weights=False)[0]
    for of_model, out, errors, compiled_is_same in found["pytorchs"]:
        for name, gradient in of_model.items():
            assert reference.error(gradient, expected[name].double()) < LIMITS[torch.float32], name
        assert reference.error(out, of_module.detach().double()) < LIMITS[torch.float32]
        assert_matches("NotImplementedError: context_parallel: attn_mask is not supported", errors["mask"])
        assert_matches("NotImplementedError: context_parallel: dropout_p is not supported", errors["dropout"])
        assert_matches("context_parallel: attention can't be part of a graph", errors["whole graph"])
        assert compiled_is_same


MISTAKES = {
    "lengths differ": r"ValueError: the processes of the group call differently; rank .*key \(1, 2, 4, 16\)",
    "scales differ": "ValueError: the processes of the group call differently; .*scale=2.0",
    "one wants gradients": "ValueError: the processes of the group call differently; .*with gradients",
    "one is wrong": "TypeError: orchard_jit: value is Double but query is Float",
    "odd length": "ValueError: causal .* two equal chunks .*, got 3 queries and 3 keys",
    "fewer keys": "ValueError: causal attention takes as many queries as keys.* got 4 queries and 2 keys",
    "no keys": "ValueError: key is empty",
    "a class of its own": "TypeError: value is a Own; pass this process's part as a plain tensor",
    "three dimensions": r"ValueError: query must be \(batch, heads, length, head_dim\), got \(2, 4, 16\)",
    "method": "ValueError: method must be None, 'ring' or 'gather', got 'star'",
    "order": "ValueError: order must be 'zigzag' or 'contiguous', got 'snake'",
    "uneven": r"ValueError: a sequence of \d+ can't be cut into \d+ equal chunks.* pad it to \d+",
    "a part that is odd": "ValueError: a part of length 3 does not hold 2 equal chunks",
    "unshard with gradients": "ValueError: unshard gives no gradient",
    "differentiated twice": "RuntimeError: .*double backward",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_an_error_in_every_process(found, mistake):
    first, *others = (of_rank[mistake] for of_rank in found["mistakes"])
    assert_matches(MISTAKES[mistake], first)
    for error in others:
        elsewhere = "RuntimeError: rank 0 of the group can't make this call: " * (mistake == "one is wrong")
        assert_matches(elsewhere + MISTAKES[mistake], error)


def assert_matches(pattern, text):
    with pytest.raises(AssertionError, match=pattern):
        raise AssertionError(text)


def test_a_group_that_one_is_not_in(found):
    first = found["mistakes"][0]["another's group"]
    assert first == "ValueError: this process, rank 0 of all, is not in the group"


def test_dtensors_are_worked_on_where_they_are(found):
    """Batches; heads, where key heads can be shared out; and, if they see all keys, queries."""
    for of_rank in found["dtensors"]:
        for (heads, dim, causal), (placement, is_same) in of_rank.items():
            assert is_same, (heads, dim, causal)
            if dim == 0 or (dim == 1 and heads == (4, 4)) or (dim == 2 and not causal):
                assert placement == f"S({dim})", (heads, dim, causal)


def test_a_process_that_dies_leaves_no_other_waiting(found):
    errors = found["death"]
    assert len(errors) == found.size - 1
    assert all(errors)
