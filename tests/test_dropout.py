"""Dropout: random bits by their definition, the same on every device, in every pass and every time."""

from __future__ import annotations

import itertools
import math

import pytest
import reference
import torch
from torch.utils.checkpoint import checkpoint

from orchard_jit import flash_attention, flash_attn_fwd, keep_mask, operators
from orchard_jit.dropout import draw_seed

LARGEST = 2**63 - 1
SEEDS = (0, 1, -1, 0x0123456789ABCDEF, LARGEST, -LARGEST - 1)
DIM, KEYS = 16, 45


def philox(counter, key):
    """Philox4x32-10 as Salmon et al. define it (Parallel random numbers: as easy as 1, 2, 3; SC 2011)."""
    (a, b, c, d), (k, m), word = counter, key, 0xFFFFFFFF
    for _ in range(10):
        high, low = divmod(0xD2511F53 * a, 2**32)
        other_high, other_low = divmod(0xCD9E8D57 * c, 2**32)
        a, b, c, d = other_high ^ b ^ k, other_low, high ^ d ^ m, low
        k, m = (k + 0x9E3779B9) & word, (m + 0xBB67AE85) & word
    return a, b, c, d


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ("00000000 " * 4, "00000000 " * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff " * 4, "ffffffff " * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_the_definition_gives_the_known_answers_of_random123(counter, key, words):
    counter, key, words = (tuple(int(word, 16) for word in text.split()) for text in (counter, key, words))
    assert philox(counter, key) == words


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("dropout_p", (0.1, 0.5, 0.97))
def test_keep_mask_is_the_definition(device, seed, dropout_p):
    """Word kv % 4 of counter (kv // 4, q, h, b), by the seed's low and high half, is at least p * 2^32."""
    size = batch, heads, queries, keys = 2, 3, 4, 7
    expected = torch.zeros(size, dtype=torch.bool)
    for b, h, q, kv in itertools.product(*map(range, size)):
        words = philox((kv // 4, q, h, b), (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF))
        expected[b, h, q, kv] = words[kv % 4] >= int(dropout_p * 2**32)
    actual = keep_mask(torch.tensor([seed], device=device), dropout_p, batch, heads, queries, keys)
    assert torch.equal(actual.cpu(), expected)


@pytest.mark.parametrize(
    "size", [(0, 2, 3, 4), (2, 0, 3, 4), (2, 2, 0, 4), (2, 2, 3, 0), (1, 1, 1, 1)], ids=str
)
def test_keep_mask_of_any_size(size):
    assert keep_mask(torch.tensor([3]), 0.5, *size).shape == size


def weights(device, seed, dropout_p, dtype=torch.float32, batch=2, heads=4, queries=37, **options):
    """Those that the kernels used, scaled by the number of keys: all are 1 without dropout."""
    query = torch.zeros(batch, heads, queries, DIM, dtype=dtype, device=device)
    key = torch.zeros(batch, 2, KEYS, DIM, dtype=dtype, device=device)
    value = torch.eye(KEYS, dtype=dtype, device=device).expand(batch, 2, -1, -1)
    seed = torch.tensor([seed], device=device)
    out, _ = operators.forward(query, key, value, seed=seed, dropout=dropout_p, **options)
    return out * KEYS


@pytest.mark.parametrize("seed", SEEDS)
def test_kernels_drop_what_keep_mask_says(device, seed):
    kept = keep_mask(torch.tensor([seed]), 0.3, 2, 4, 37, KEYS)
    assert torch.equal(weights(device, seed, 0.3).cpu() != 0, kept)


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16), ids=str)
def test_whatever_the_dtype(device, dtype):
    kept = keep_mask(torch.tensor([5]), 0.3, 2, 4, 37, KEYS)
    assert torch.equal(weights(device, 5, 0.3, dtype).cpu() != 0, kept)


def test_whatever_else_hides_keys(device):
    kept = keep_mask(torch.tensor([5]), 0.3, 2, 4, 37, KEYS)
    seen = torch.ones(37, KEYS, dtype=torch.bool).tril().triu(-9)
    actual = weights(device, 5, 0.3, left=9, right=0).cpu()
    assert torch.equal(actual != 0, kept & seen)


@pytest.mark.parametrize("dropout_p", (1e-12, 2**-32, 0.5, 1 - 2**-20, 1 - 2**-53, 1.0))
def test_any_probability(device, dropout_p):
    """What is kept is divided by 1 - p; of everything dropped, 0 is left."""
    kept = keep_mask(torch.tensor([9]), dropout_p, 2, 4, 37, KEYS)
    actual = weights(device, 9, dropout_p).cpu()
    expected = kept / (1 - dropout_p) if dropout_p < 1 else torch.zeros(actual.shape)
    torch.testing.assert_close(actual, expected.float())


@pytest.mark.parametrize("dropout_p", (0.05, 0.5, 0.9))
def test_as_many_are_kept_as_should_be(dropout_p):
    """In all, and within each row, column, head and batch: each deviation is below five standard ones."""
    kept = keep_mask(torch.tensor([11]), dropout_p, 2, 3, 200, 200).double()
    for dims in ((0, 1, 2, 3), (0, 1, 2), (0, 1, 3), (0, 2, 3), (1, 2, 3)):
        share = kept.mean(dims)
        count = kept.numel() / share.numel()
        deviation = math.sqrt(dropout_p * (1 - dropout_p) / count)
        assert ((share - (1 - dropout_p)).abs() < 5 * deviation).all()


def test_rows_heads_batches_and_seeds_have_nothing_in_common():
    masks = (
        torch.stack([keep_mask(torch.tensor([seed]), 0.5, 2, 2, 64, 64) for seed in (1, 2, 2**32)]).double()
        - 0.5
    )
    for dim in range(5):
        neighbours = 4 * masks * masks.roll(1, dim)
        assert neighbours.mean().abs() < 5 / math.sqrt(masks.numel())


def inputs(device, queries=37, keys=KEYS):
    shapes = ((2, 4, queries, DIM), (2, 2, keys, DIM), (2, 2, keys, DIM))
    return [torch.randn(shape).to(device).requires_grad_() for shape in shapes]


def test_manual_seed_repeats_a_call_and_calls_differ(device):
    q, k, v = inputs(device)
    torch.manual_seed(1)
    first, second = (flash_attention(q, k, v, dropout_p=0.3) for _ in range(2))
    torch.manual_seed(1)
    assert torch.equal(flash_attention(q, k, v, dropout_p=0.3), first)
    assert not torch.equal(first, second)


def test_without_dropout_the_generator_is_left_alone(device):
    q, k, v = inputs(device)
    torch.manual_seed(1)
    before = torch.rand(1, device=device)
    torch.manual_seed(1)
    flash_attention(q, k, v)
    assert torch.equal(torch.rand(1, device=device), before)


def test_seeds_fill_64_bits(device):
    seeds = torch.stack([draw_seed(torch.device(device)) for _ in range(64)]).cpu()
    assert seeds.shape == (64, 1)
    assert seeds.unique().numel() == 64
    assert all(0 < ((seeds >> bit) & 1).sum() < 64 for bit in range(64))


def test_gradients_are_those_of_what_was_kept(device):
    leaves = inputs(device)
    torch.manual_seed(2)
    out, lse = flash_attention(*leaves, dropout_p=0.3, causal="upper_left", return_lse=True)
    torch.manual_seed(2)
    _, keep = flash_attn_fwd(*(x.detach() for x in leaves), dropout_p=0.3, causal=True)
    grad_out, grad_lse = torch.randn(out.shape), torch.randn(lse.shape)
    loss = (out * grad_out.to(device)).sum() + (lse * grad_lse.to(device)).sum()
    expected = reference.result(
        *leaves, grad_out, "upper_left", grad_lse=grad_lse, keep=keep.cpu(), dropout_p=0.3
    )
    assert reference.error(out, expected.out) < 4e-6
    for actual, wanted in zip(torch.autograd.grad(loss, leaves), expected.grads, strict=True):
        assert reference.error(actual, wanted) < 8e-6


@pytest.mark.parametrize("use_reentrant", (False, True))
def test_checkpointing_drops_the_same_again(device, use_reentrant):
    leaves = inputs(device)

    def attention(q, k, v):
        return flash_attention(q, k, v, dropout_p=0.3)

    def gradients(run):
        torch.manual_seed(4)
        for leaf in leaves:
            leaf.grad = None
        run().square().sum().backward()
        return [leaf.grad for leaf in leaves]

    plain = gradients(lambda: attention(*leaves))
    again = gradients(lambda: checkpoint(attention, *leaves, use_reentrant=use_reentrant))
    assert all(torch.equal(*pair) for pair in zip(plain, again, strict=True))


@pytest.mark.usefixtures("compiler_of_inductor")
@pytest.mark.parametrize("backend", ("aot_eager", "inductor"))
def test_compiled_passes_drop_the_same(backend):
    """The values are the identity: the output is the weights, and their gradient its transpose."""
    torch._dynamo.reset()
    attention = torch.compile(
        lambda q, k, v: flash_attention(q, k, v, dropout_p=0.3), fullgraph=True, backend=backend
    )
    q, k = (torch.zeros(1, 1, n, DIM, requires_grad=True) for n in (37, KEYS))
    v = torch.eye(KEYS)[None, None].clone().requires_grad_()
    first, second = attention(q, k, v), attention(q, k, v)
    assert not torch.equal(first, second)
    assert 0.2 < (first == 0).double().mean() < 0.4
    (grad_v,) = torch.autograd.grad(first, v, torch.eye(37, KEYS).expand_as(first).clone())
    torch.testing.assert_close(grad_v[0, 0, :, :37], first[0, 0].mT)


@pytest.mark.parametrize(("dropout_p", "given"), [(-0.1, -0.1), (1.1, 1.1), (math.nan, "nan")])
def test_what_is_no_probability_is_refused(dropout_p, given):
    with pytest.raises(ValueError, match=f"dropout must be 0 to 1, got {given}"):
        flash_attention(*inputs("cpu"), dropout_p=dropout_p)
