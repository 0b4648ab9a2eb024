"""Every feature alone, and every sensible pair of features, on every device: all against float64.

A case is a set of features, one choice from some of the groups below. The cases are few, and together they
hold every pair of choices from two groups, which a test makes sure of.
"""

from __future__ import annotations

import itertools

import pytest
import reference
import torch

import orchard_jit
from orchard_jit import ScoreMod, call
from orchard_jit.dropout import draw_seed
from orchard_jit.packed import resolve as packed

TOLERANCE = {torch.float32: 4e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}
BATCH, HEADS, KV_HEADS, QUERIES, KEYS = 2, 4, 2, 37, 70

GROUPS = {
    "causal": ("upper_left", "lower_right"),
    "window": ("both", "left", "right"),
    "mask": ("full", "padding", "rows"),
    "bias": ("full", "shared by batch", "of keys", "float32"),
    "softcap": ("5",),
    "alibi": ("by head", "by batch and head"),
    "score": ("modifies", "hides"),
    "sinks": ("finite",),
    "dropout": ("0.3",),
    "lengths": ("short",),
}
WINDOWS = {"both": (9, 4), "left": (11, None), "right": (None, 6)}
MASK_SHAPES = {
    "full": (BATCH, HEADS, QUERIES, KEYS),
    "padding": (BATCH, 1, 1, KEYS),
    "rows": (1, 1, QUERIES, 1),
}
BIAS_SHAPES = {
    "full": (BATCH, HEADS, QUERIES, KEYS),
    "shared by batch": (1, HEADS, QUERIES, KEYS),
    "of keys": (BATCH, 1, 1, KEYS),
    "float32": (BATCH, HEADS, QUERIES, KEYS),
}


def pairs():
    """Every two choices from two groups."""
    for (group, choices), (other, others) in itertools.combinations(GROUPS.items(), 2):
        for choice, second in itertools.product(choices, others):
            yield frozenset(((group, choice), (other, second)))


def cases():
    """A few sets of choices that hold all pairs: each takes what covers most of those missing."""
    missing = set(pairs())
    while missing:
        chosen = dict(sorted(min(missing, key=sorted)))
        for group, choices in GROUPS.items():
            if group not in chosen:
                gains = {
                    choice: sum(frozenset(((group, choice), item)) in missing for item in chosen.items())
                    for choice in choices
                }
                chosen[group] = max(choices, key=gains.__getitem__)
        missing -= {frozenset(pair) for pair in itertools.combinations(chosen.items(), 2)}
        yield {group: chosen[group] for group in GROUPS}


ALONE = [{group: choice} for group, choices in GROUPS.items() for choice in choices]
TOGETHER = list(cases())


def name(case):
    return ", ".join(f"{group} {choice}" for group, choice in case.items())


def options_of(case, dtype, device):
    """The call's options, and what they mean to the reference."""
    alignment = case.get("causal", "lower_right")
    ours, theirs = {"alignment": alignment}, {"alignment": alignment}
    score, visible = [], []

    def both(key, value, wanted=None):
        ours[key] = value
        theirs[wanted or key] = value

    if "causal" in case:
        ours["causal"], theirs["causal"] = True, alignment
    if "window" in case:
        both("window", WINDOWS[case["window"]])
    if "mask" in case:
        both("mask", (torch.rand(MASK_SHAPES[case["mask"]]) < 0.8).to(device))
    if "bias" in case:
        bias = torch.randn(BIAS_SHAPES[case["bias"]])
        both(
            "bias", bias.to(torch.float32 if case["bias"] == "float32" else dtype).to(device).requires_grad_()
        )
    if "softcap" in case:
        ours["softcap"] = cap = float(case["softcap"])
        score.append(lambda s, b, h, q, kv: cap * torch.tanh(s / cap))
    if "alibi" in case:
        slopes = torch.rand((HEADS,) if case["alibi"] == "by head" else (BATCH, HEADS))
        ours["alibi_slopes"] = slopes.to(device)
        lengths = torch.tensor([50, 0]) if "lengths" in case else torch.tensor([KEYS, KEYS])
        shift = lengths - QUERIES if alignment == "lower_right" else torch.zeros(BATCH, dtype=torch.int64)
        slope = slopes.double().expand(BATCH, HEADS)
        score.append(lambda s, b, h, q, kv: s - slope[b, h] * (q + shift[b] - kv).abs())
    if case.get("score") == "modifies":
        table = torch.randn(HEADS, 5)
        ours["score_mod"] = ScoreMod("gain * score + table[h, kv % 5]", gain=0.7, table=table.to(device))
        score.append(lambda s, b, h, q, kv: 0.7 * s + table.double()[h, kv % 5])
    if case.get("score") == "hides":
        ours["score_mod"] = ScoreMod(mask="(q + 2 * kv) % 5 != b")
        visible.append(lambda b, h, q, kv: (q + 2 * kv) % 5 != b)
    if "sinks" in case:
        both("sinks", torch.randn(HEADS).to(device).requires_grad_())
    if "dropout" in case:
        ours["dropout_p"] = theirs["dropout_p"] = float(case["dropout"])
    if "lengths" in case:
        both("key_lengths", torch.tensor([50, 0], dtype=torch.int32, device=device))
    if score:

        def chain(s, *at):
            for function in score:
                s = function(s, *at)
            return s

        theirs["score"] = chain
    if visible:
        theirs["visible"] = visible[0]
    return ours, theirs


def kept(dropout_p, device, key_length=KEYS, batch=BATCH, query_length=QUERIES):
    """The keep-mask of the call that the same seed is set for."""
    return orchard_jit.keep_mask(
        draw_seed(torch.device(device)), dropout_p, batch, HEADS, query_length, key_length
    )


def close(actual, wanted, limit, size, what):
    distance = (actual.detach().cpu().double() - wanted).norm().item()
    assert distance <= limit * max(wanted.norm().item(), size), f"{what}: {distance}"


def check(case, dtype, device, head_dim=24):
    ours, theirs = options_of(case, dtype, device)
    shapes = ((BATCH, HEADS, QUERIES, head_dim), *((BATCH, KV_HEADS, KEYS, head_dim),) * 2)
    leaves = [torch.randn(shape).to(dtype).to(device).requires_grad_() for shape in shapes]
    torch.manual_seed(1)
    out, lse = orchard_jit.flash_attention(*leaves, **ours, return_lse=True)
    if "dropout_p" in ours:
        torch.manual_seed(1)
        theirs["keep"] = kept(ours["dropout_p"], device)
    others = [ours[name] for name in ("bias", "sinks") if name in ours]
    grad_out, grad_lse = torch.randn(out.shape).to(dtype), torch.randn(lse.shape)
    loss = (out * grad_out.to(device)).sum() + (lse.clamp_min(-1e9) * grad_lse.to(device)).sum()
    grads = torch.autograd.grad(loss, [*leaves, *others])

    expected = reference.result(*leaves, grad_out, grad_lse=grad_lse, **theirs)
    limit, size = TOLERANCE[dtype], 0.1 * grad_out.double().norm().item()
    close(out, expected.out, limit, 0, "out")
    torch.testing.assert_close(lse.detach().cpu().double(), expected.lse, rtol=1e-5, atol=2e-5)
    names = ("query", "key", "value", *expected.others)
    for what, actual, wanted in zip(names, grads, (*expected.grads, *expected.others.values()), strict=True):
        close(actual, wanted, 2 * limit, size, f"gradient of {what}")


def test_the_cases_hold_every_pair():
    held = {frozenset(pair) for case in TOGETHER for pair in itertools.combinations(case.items(), 2)}
    assert held >= set(pairs())


@pytest.mark.parametrize("case", ALONE, ids=name)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_alone(device, case, dtype):
    check(case, dtype, device, head_dim=24 if dtype == torch.float32 else 64)


@pytest.mark.parametrize("case", TOGETHER, ids=lambda case: str(TOGETHER.index(case)))
def test_together(device, case):
    check(case, torch.float32, device)


def test_nothing_that_was_hidden_matters(device):
    """Garbage in keys that a mask hides, or beyond a sequence's length, leaves no trace."""
    q, k, v = (torch.randn(2, 2, 20, 16) for _ in range(3))
    mask = torch.arange(20) < 13
    lengths = torch.tensor([13, 13], dtype=torch.int32)
    for options in ({"mask": mask.to(device)}, {"key_lengths": lengths.to(device)}):
        results = []
        for garbage in (0.0, 1e30):
            key, value = (x.clone() for x in (k, v))
            key[:, :, 13:], value[:, :, 13:] = garbage, 0.0
            leaves = [x.to(device).requires_grad_() for x in (q, key, value)]
            out = orchard_jit.flash_attention(*leaves, **options)
            results.append((out, *torch.autograd.grad(out.sum(), leaves)))
        for clean, dirty in zip(*results, strict=True):
            assert torch.equal(clean.cpu(), dirty.cpu())


def test_a_finite_bias_is_never_taken_for_a_mask(device):
    q, k, v = (torch.randn(1, 1, 8, 16) for _ in range(3))
    bias = torch.full((8, 8), torch.finfo(torch.float32).min)
    bias[:4, :5] = -torch.inf
    out = orchard_jit.flash_attention(*(x.to(device) for x in (q, k, v)), bias=bias.to(device))
    expected = reference.attention(q.double(), k.double(), v.double(), bias=bias.double())[0]
    torch.testing.assert_close(out.cpu().double(), expected, rtol=1e-5, atol=1e-6)


PACKED = [{}, {"causal": True}, {"window": (7, 3)}, {"sinks": True}, {"dropout_p": 0.4}, {"score_mod": True}]
PACKED += [{"causal": True, "window": (9, 0), "sinks": True, "dropout_p": 0.2, "score_mod": True}]


@pytest.mark.parametrize("options", PACKED, ids=str)
def test_packed_sequences(device, options):
    check_packed(options, torch.float32, device)


def check_packed(options, dtype, device):
    """Each sequence as if it were alone: lengths that differ, queries without keys, keys without queries."""
    query_lengths, key_lengths = [13, 0, 40, 1, 9], [21, 5, 33, 1, 0]
    options = dict(options)
    offsets = [
        torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
        for lengths in (query_lengths, key_lengths)
    ]
    q = torch.randn(sum(query_lengths), HEADS, 24).to(dtype)
    k, v = (torch.randn(sum(key_lengths), KV_HEADS, 24).to(dtype) for _ in range(2))
    theirs = {"alignment": "lower_right"}
    if options.get("sinks"):
        theirs["sinks"] = torch.randn(HEADS)
        options["sinks"] = theirs["sinks"].to(device).requires_grad_()
    if options.get("score_mod"):
        slope = torch.rand(HEADS)
        options["score_mod"] = ScoreMod("score + slope[h] * (kv - q) / q_len", slope=slope.to(device))
    if options.get("causal"):
        theirs["causal"] = "lower_right"
    if options.get("window"):
        theirs["window"] = options["window"]
    leaves = [x.to(device).requires_grad_() for x in (q, k, v)]
    torch.manual_seed(2)
    arguments = packed(
        *(leaf.transpose(0, 1) for leaf in leaves),
        query_offsets=offsets[0].to(device),
        key_offsets=offsets[1].to(device),
        longest_query=max(query_lengths),
        longest_key=max(key_lengths),
        options={"alignment": "lower_right", **options},
    )
    out = call.forward(arguments)[0][0]
    out = out.transpose(0, 1)
    grad_out = torch.randn(out.shape).to(dtype)
    grads = torch.autograd.grad(out, leaves, grad_out.to(device))

    if "dropout_p" in options:
        torch.manual_seed(2)
        keep = kept(
            options["dropout_p"], device, max(key_lengths), len(query_lengths), max(query_lengths)
        ).cpu()
        theirs["dropout_p"] = options["dropout_p"]
    for n, (q_begin, q_end, k_begin, k_end) in enumerate(
        zip(offsets[0], offsets[0][1:], offsets[1], offsets[1][1:], strict=False)
    ):
        one = [
            q[q_begin:q_end].transpose(0, 1)[None],
            *(x[k_begin:k_end].transpose(0, 1)[None] for x in (k, v)),
        ]
        if "dropout_p" in options:
            theirs["keep"] = keep[n : n + 1, :, : q_end - q_begin, : k_end - k_begin]
        if "score_mod" in options:
            length = max(int(q_end - q_begin), 1)
            theirs["score"] = lambda s, b, h, i, j, length=length: s + slope.double()[h] * (j - i) / length
        expected = reference.result(*one, grad_out[q_begin:q_end].transpose(0, 1)[None], **theirs)
        close(
            out[q_begin:q_end].transpose(0, 1)[None],
            expected.out,
            TOLERANCE[dtype],
            1e-6,
            f"out of sequence {n}",
        )
        size = 0.1 * grad_out.double().norm().item()
        wanted = dict(zip(("query", "key", "value"), expected.grads, strict=True))
        for what, grad, rows in (
            ("query", grads[0], slice(q_begin, q_end)),
            ("key", grads[1], slice(k_begin, k_end)),
            ("value", grads[2], slice(k_begin, k_end)),
        ):
            close(
                grad[rows].transpose(0, 1)[None],
                wanted[what],
                2 * TOLERANCE[dtype],
                size,
                f"gradient of {what} of sequence {n}",
            )


DECODED = [
    {},
    {"causal": True},
    {"window": (600, 0)},
    {"sinks": True},
    {"key_lengths": True},
    {"score_mod": True},
]
DECODED += [{"causal": True, "window": (700, 0), "sinks": True, "key_lengths": True, "score_mod": True}]


@pytest.mark.parametrize("queries", (1, 5))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("options", DECODED, ids=str)
def test_few_queries_and_many_keys(device, options, dtype, queries):
    """The kernel for decoding, by the sizes: the keys are split, and what shares them is read together."""
    options, theirs = dict(options), {"alignment": "lower_right"}
    q = torch.randn(2, 8, queries, 32).to(dtype).to(device)
    k, v = (torch.randn(2, 2, 900, 32).to(dtype).to(device) for _ in range(2))
    if options.get("sinks"):
        theirs["sinks"] = torch.randn(8)
        options["sinks"] = theirs["sinks"].to(device)
    if options.get("key_lengths"):
        theirs["key_lengths"] = torch.tensor([777, 3], dtype=torch.int32)
        options["key_lengths"] = theirs["key_lengths"].to(device)
    if options.get("score_mod"):
        slope = torch.rand(8)
        options["score_mod"] = ScoreMod("score + slope[h] * (kv - q) / 100", slope=slope.to(device))
        theirs["score"] = lambda s, b, h, i, j: s + slope.double()[h] * (j - i) / 100
    if options.get("causal"):
        theirs["causal"] = "lower_right"
    if options.get("window"):
        theirs["window"] = options["window"]
    options["alignment"] = "lower_right"
    assert orchard_jit.explain(q, k, v, **options).forward.kernel == "decode"
    out, lse = orchard_jit.flash_attention(q, k, v, **options, return_lse=True)
    expected = reference.result(q, k, v, torch.ones_like(out), **theirs)
    close(out, expected.out, TOLERANCE[dtype], 0, "out")
    torch.testing.assert_close(lse.cpu().double(), expected.lse, rtol=1e-5, atol=2e-5)
