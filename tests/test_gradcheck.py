"""Every gradient against finite differences in float64, and the operators against PyTorch's own checks."""

from __future__ import annotations

import itertools

import pytest
import torch

import orchard_jit
from orchard_jit import ScoreMod, flash_attention, flash_attn_varlen_func, operators
from orchard_jit.call import Arguments

BATCH, HEADS, KV_HEADS, QUERIES, KEYS, DIM = 2, 2, 1, 3, 4, 3
LEAVES = {
    "query": (BATCH, HEADS, QUERIES, DIM),
    "key": (BATCH, KV_HEADS, KEYS, DIM),
    "value": (BATCH, KV_HEADS, KEYS, DIM),
}
BIASES = [
    shape
    for shape in itertools.product((BATCH, 1), (HEADS, 1), (QUERIES, 1), (KEYS, 1))
    if shape != (1, 1, 1, 1)
] + [(1, 1, 1, 1), (QUERIES, KEYS), (KEYS,)]


def exact(*shape):
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def numbers(**options):
    """Options, fresh for every case."""
    return {name: make() if callable(make) else make for name, make in options.items()}


def check(**options):
    """Output and log-sum-exp, with respect to every floating tensor."""
    given = {**{name: exact(*shape) for name, shape in LEAVES.items()}, **options}
    names = [name for name, value in given.items() if isinstance(value, torch.Tensor) and value.requires_grad]

    def attention(*leaves):
        torch.manual_seed(6)  # dropout drops the same
        out, lse = flash_attention(**{**given, **dict(zip(names, leaves, strict=True))}, return_lse=True)
        return out, lse.masked_fill(lse == -torch.inf, 0.0)

    assert torch.autograd.gradcheck(attention, [given[name] for name in names])


def mask():
    seen = torch.rand(BATCH, HEADS, QUERIES, KEYS) < 0.6
    seen[0, 0, 1] = False
    return seen


ALONE = {
    "nothing": {},
    "causal, upper left": {"causal": "upper_left"},
    "causal, lower right": {"causal": "lower_right"},
    "window": {"window": (1, 0), "alignment": "lower_right"},
    "mask": {"mask": mask},
    "softcap": {"softcap": 1.5},
    "ALiBi": {"alibi_slopes": lambda: torch.rand(HEADS), "alignment": "lower_right"},
    "score function": {
        "score_mod": ScoreMod("score + 0.3 * score ** 2 / (1 + abs(q - kv))", mask="kv != q + b")
    },
    "sinks": {"sinks": lambda: exact(HEADS)},
    "dropout": {"dropout_p": 0.4},
    "lengths": {"key_lengths": lambda: torch.tensor([3, 0], dtype=torch.int32)},
    "scale": {"scale": -0.7},
}
TOGETHER = (
    ("causal, lower right", "softcap", "sinks", "dropout"),
    ("window", "mask", "score function", "sinks"),
    ("mask", "ALiBi", "dropout", "scale"),
    ("lengths", "causal, lower right", "softcap", "sinks"),
    ("lengths", "window", "dropout"),
)


@pytest.mark.parametrize("options", ALONE.values(), ids=ALONE)
def test_a_feature_alone(options):
    check(**numbers(**options))


@pytest.mark.parametrize("with_bias", (False, True))
@pytest.mark.parametrize("names", TOGETHER, ids=", ".join)
def test_features_together(names, with_bias):
    options = {name: value for feature in names for name, value in ALONE[feature].items()}
    if with_bias:
        options["bias"] = lambda: exact(1, HEADS, QUERIES, KEYS)
    check(**numbers(**options))


@pytest.mark.parametrize("shape", BIASES, ids=str)
def test_a_bias_in_every_broadcast(shape):
    check(bias=exact(*shape))


@pytest.mark.parametrize(
    "shape", [(BATCH, HEADS, QUERIES, KEYS), (1, HEADS, QUERIES, 1), (BATCH, 1, 1, KEYS)], ids=str
)
@pytest.mark.parametrize(
    "features",
    (("mask",), ("causal, lower right", "softcap"), ("dropout", "sinks"), ("lengths",)),
    ids=", ".join,
)
def test_a_bias_beside_other_features(shape, features):
    options = {name: value for feature in features for name, value in ALONE[feature].items()}
    check(bias=exact(*shape), **numbers(**options))


def test_a_bias_laid_out_otherwise():
    """Its gradient has its shape, whatever its strides are."""
    transposed = exact(BATCH, KEYS, QUERIES, HEADS)
    q, k, v = (exact(*shape) for shape in LEAVES.values())
    assert torch.autograd.gradcheck(
        lambda bias: flash_attention(q, k, v, bias=bias.permute(0, 3, 2, 1)), [transposed]
    )
    expanded = exact(HEADS, 1, KEYS)
    assert torch.autograd.gradcheck(
        lambda bias: flash_attention(q, k, v, bias=bias.expand(HEADS, QUERIES, KEYS)), [expanded]
    )


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"window_size": (1, 1), "softcap": 2.0}], ids=str)
def test_packed_sequences(options):
    queries, keys = (torch.tensor(offsets, dtype=torch.int32) for offsets in ([0, 3, 3, 5], [0, 2, 4, 7]))
    q, k, v = exact(5, HEADS, DIM), exact(7, KV_HEADS, DIM), exact(7, KV_HEADS, DIM)

    def attention(q, k, v):
        out, lse, _ = flash_attn_varlen_func(q, k, v, queries, keys, 3, 3, **options, return_attn_probs=True)
        return out, lse.masked_fill(lse == -torch.inf, 0.0)

    assert torch.autograd.gradcheck(attention, (q, k, v))


def test_only_the_gradients_that_are_wanted():
    """With a bias and sinks there are ways enough to mix them up."""
    tensors = {
        **{name: exact(*shape) for name, shape in LEAVES.items()},
        "bias": exact(HEADS, 1, KEYS),
        "sinks": exact(HEADS),
    }
    wanted = dict(
        zip(
            tensors,
            torch.autograd.grad(flash_attention(**tensors).sin().sum(), tensors.values()),
            strict=True,
        )
    )
    for names in itertools.chain.from_iterable(itertools.combinations(tensors, count) for count in (1, 2, 4)):
        given = {name: value.detach().requires_grad_(name in names) for name, value in tensors.items()}
        grads = torch.autograd.grad(flash_attention(**given).sin().sum(), [given[name] for name in names])
        for name, grad in zip(names, grads, strict=True):
            torch.testing.assert_close(grad, wanted[name])


OPTIONAL = {
    "mask and window": {"mask": mask, "left": 1, "right": 0, "lower_right": True},
    "bias": {"bias": lambda: torch.randn(1, HEADS, QUERIES, KEYS)},
    "bias and sinks": {"bias": lambda: torch.randn(BATCH, 1, 1, KEYS), "sinks": lambda: torch.randn(HEADS)},
    "dropout": {"dropout": 0.4, "seed": lambda: torch.tensor([5])},
    "lengths": {"key_lengths": lambda: torch.tensor([3, 0], dtype=torch.int32)},
    "score function": {
        "arrays": lambda: [torch.rand(HEADS)],
        "scalars": [1.5],
        "score": ScoreMod("score * a[h] + c", a=torch.rand(HEADS), c=1.5).spec,
    },
}


def operator_arguments(options, requires_grad):
    tensors = {name: torch.randn(*shape[:3], 8) for name, shape in LEAVES.items()}
    given = Arguments(**tensors, **numbers(**options))
    differentiable = ("query", "key", "value", "bias", "sinks")
    return given._replace(
        **{
            name: getattr(given, name).requires_grad_(requires_grad)
            for name in differentiable
            if getattr(given, name) is not None
        }
    )


def packed_arguments(requires_grad):
    offsets = {"query_offsets": torch.tensor([0, 3, 5]), "key_offsets": torch.tensor([0, 2, 7])}
    return Arguments(
        *(torch.randn(1, 2, rows, 8, requires_grad=requires_grad) for rows in (5, 7, 7)),
        **{name: value.int() for name, value in offsets.items()},
        longest_query=3,
        longest_key=5,
    )


@pytest.mark.parametrize("requires_grad", (False, True))
@pytest.mark.parametrize("options", OPTIONAL.values(), ids=OPTIONAL)
def test_opcheck_of_the_forward(options, requires_grad):
    torch.library.opcheck(operators.forward, operator_arguments(options, requires_grad))


@pytest.mark.parametrize("options", OPTIONAL.values(), ids=OPTIONAL)
def test_opcheck_of_the_backward(options):
    arguments = operator_arguments(options, False)
    out, lse = operators.forward(*arguments)
    for grad_lse in (None, torch.randn_like(lse)):
        of_bias = arguments.bias is not None
        torch.library.opcheck(
            operators.backward, (torch.randn_like(out), grad_lse, *required(arguments), out, lse, of_bias)
        )


@pytest.mark.parametrize("requires_grad", (False, True))
def test_opcheck_of_packed_sequences(requires_grad):
    torch.library.opcheck(operators.forward, packed_arguments(requires_grad))


def test_opcheck_of_the_backward_of_packed_sequences():
    arguments = packed_arguments(False)
    out, lse = operators.forward(*arguments)
    grad_out = torch.randn_like(out)
    torch.library.opcheck(operators.backward, (grad_out, None, *required(arguments), out, lse, False))


def required(arguments):
    """The backward takes a list."""
    return arguments._replace(arrays=arguments.arrays or [])


Q, K = (2, 4, 10, 16), (2, 2, 14, 16)
COMPILED = {
    "mask": lambda q, k, v: flash_attention(q, k, v, mask=(q[:1, :, :, :1] > -1)),
    "bias": lambda q, k, v: flash_attention(q, k, v, bias=(q @ k.repeat_interleave(2, 1).mT)),
    "window and sinks": lambda q, k, v: flash_attention(
        q, k, v, window=(4, 2), alignment="lower_right", sinks=q[0, :, 0].sum(-1)
    ),
    "softcap and ALiBi": lambda q, k, v: flash_attention(
        q, k, v, softcap=5.0, alibi_slopes=torch.arange(4.0), causal="lower_right"
    ),
    "lengths": lambda q, k, v: flash_attention(q, k, v, key_lengths=torch.tensor([5, 9], dtype=torch.int32)),
    "scaled_dot_product_attention": lambda q, k, v: orchard_jit.scaled_dot_product_attention(
        q, k, v, attn_mask=q[0, 0, :, :1] * 2, enable_gqa=True
    ),
    "cache": lambda q, k, v: orchard_jit.flash_attn_with_kvcache(
        *(x.transpose(1, 2) for x in (q, k, v)), cache_seqlens=9, causal=True
    ),
}


@pytest.mark.parametrize("dynamic", (False, True))
@pytest.mark.parametrize("function", COMPILED.values(), ids=COMPILED)
def test_compiled_without_graph_breaks(function, dynamic):
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    leaves = [torch.randn(shape, requires_grad=True) for shape in (Q, K, K)]
    out, expected = compiled(*leaves), function(*leaves)
    torch.testing.assert_close(out, expected)
    if expected.requires_grad:
        grads = (torch.autograd.grad(x.sin().sum(), leaves) for x in (out, expected))
        torch.testing.assert_close(*grads)


@pytest.mark.parametrize("dynamic", (False, True))
def test_packed_sequences_compiled(dynamic):
    torch._dynamo.reset()
    compiled = torch.compile(flash_attn_varlen_func, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for lengths in ((3, 0, 6), (4, 1, 2)):
        offsets = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
        leaves = [torch.randn(sum(lengths), heads, 16, requires_grad=True) for heads in (4, 2, 2)]
        options = (offsets, offsets, max(lengths), max(lengths), 0.0, None, True)
        out, expected = compiled(*leaves, *options), flash_attn_varlen_func(*leaves, *options)
        torch.testing.assert_close(out, expected)
        torch.testing.assert_close(*(torch.autograd.grad(x.sin().sum(), leaves) for x in (out, expected)))
