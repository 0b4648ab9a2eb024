"""Optional tensors in the Metal host: bound where they lie, cloned if that is asked for, absent if empty."""

from __future__ import annotations

import sys

import pytest
import torch

from orchard_jit import ScoreMod
from orchard_jit.call import Arguments

from .jit.test_library import finish, python
from .test_mps_storage import Counters

pytestmark = pytest.mark.skipif(sys.platform == "darwin", reason="reads the counters of the software Mac")

BATCH, HEADS, QUERIES, KEYS, HEAD_DIM = 2, 2, 21, 34, 24
SCORE = ScoreMod(
    "score + table[h, kv % 3]", mask="q != kv + shift", table=torch.arange(6.0).view(2, 3) / 6, shift=1
)


def odd(shape, dtype=torch.float32, apart=3):
    """A tensor inside of a larger storage, whose rows lie apart and begin where they like."""
    larger = torch.randn(*shape[:-1], shape[-1] + apart)
    return (larger > 0 if dtype == torch.bool else larger.to(dtype)).to("mps")[..., apart:]


def dense(**options):
    return Arguments(*(odd((BATCH, HEADS, length, HEAD_DIM)) for length in (QUERIES, KEYS, KEYS)), **options)


def masked():
    return dense(
        left=9, right=12, mask=odd((BATCH, 1, QUERIES, KEYS), torch.bool).expand(-1, HEADS, -1, -1),
        bias=odd((1, HEADS, 1, KEYS)), sinks=torch.randn(HEADS, device="mps"),
        seed=torch.tensor([7], device="mps"), dropout=0.25,
        arrays=tuple(array.to("mps") for array in SCORE.arrays), scalars=SCORE.scalars, score=SCORE.spec,
    )  # fmt: skip


def short():
    lengths = torch.tensor([KEYS - 4, 0], dtype=torch.int32, device="mps")
    return dense(right=0, lower_right=True, key_lengths=lengths, bias=odd((BATCH, 1, QUERIES, 1)))


def packed():
    offsets = [
        torch.tensor(ends, dtype=torch.int32, device="mps") for ends in ((0, 5, 5, 18), (0, 9, 13, 20))
    ]
    tensors = (odd((1, HEADS, length, HEAD_DIM)) for length in (18, 20, 20))
    return Arguments(
        *tensors, right=0, lower_right=True, query_offsets=offsets[0], key_offsets=offsets[1],
        longest_query=13, longest_key=9, sinks=torch.randn(HEADS, device="mps"),
    )  # fmt: skip


def few():
    """Few queries and many keys, whose forward has partial results."""
    tensors = (odd((BATCH, HEADS, length, HEAD_DIM)) for length in (2, 520, 520))
    lengths = torch.tensor([520, 300], dtype=torch.int32, device="mps")
    return Arguments(*tensors, key_lengths=lengths, sinks=torch.randn(HEADS, device="mps"))


CASES = {case.__name__: case for case in (masked, short, packed, few)}
# Of both passes: tensors that are returned, or scratch; and what clones are made of.
RETURNED = {"masked": (2, 6), "short": (2, 5), "packed": (2, 5), "few": (3, 5)}
CLONES = {"masked": (10, 14), "short": (7, 12), "packed": (8, 11), "few": (7, 10)}


def results(name):
    """Output, log-sum-exp and gradients, and how many buffers were allocated until each pass had run."""
    torch.manual_seed(0)
    call = CASES[name]()
    counters = Counters()
    out, lse = torch.ops.orchard_jit.forward(*call)
    forward = counters()["buffers"]
    counters = Counters()
    grads = torch.ops.orchard_jit.backward(out, None, *call, out, lse, call.bias is not None)
    backward = counters()["buffers"]
    torch.mps.synchronize()
    return [x.cpu() for x in (out, lse, *grads)], (forward, backward)


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_copied(name):
    assert results(name)[1] == RETURNED[name]


def test_clones(tmp_path):
    """The same bits, by way of a shared buffer for each tensor of the call."""
    path = tmp_path / "results"
    code = f"""
        import tests.conftest, torch
        from tests import test_mps_features as these
        torch.save({{name: these.results(name) for name in these.CASES}}, {str(path)!r})
    """
    finish(python(code, ORCHARD_STORAGE="clone"))
    for name, (tensors, buffers) in torch.load(path).items():
        for actual, wanted in zip(tensors, results(name)[0], strict=True):
            assert torch.equal(actual, wanted), name
        assert buffers == tuple(a + b for a, b in zip(RETURNED[name], CLONES[name], strict=True)), name


@pytest.mark.parametrize("missing", ("queries", "keys"))
def test_without_elements(missing):
    """What is absent has no memory to bind; what the others share is written all the same."""
    call = masked()
    if missing == "queries":
        call = call._replace(query=call.query[:, :, :0], mask=call.mask[:, :, :0])
    else:
        key, value, mask = call.key[:, :, KEYS:], call.value[:, :, KEYS:], call.mask[..., :0]
        call = call._replace(key=key, value=value, mask=mask, bias=odd((1, HEADS, 1, 1)))
    out, lse = torch.ops.orchard_jit.forward(*call)
    grads = torch.ops.orchard_jit.backward(out, None, *call, out, lse, True)
    for grad in (out, *grads[:4]):
        assert torch.equal(grad.cpu(), torch.zeros(grad.shape))
    wanted = call.sinks.cpu() * 1.4426950408889634
    torch.testing.assert_close(lse.cpu(), wanted[None, :, None].expand(lse.shape))
