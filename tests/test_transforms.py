"""torch.func: transforms of attention are those of its definition."""

from __future__ import annotations

import pytest
import reference
import torch
from torch.func import grad, hessian, jacrev, jvp, vjp, vmap
from torch.utils._pytree import tree_map

from orchard_jit import ScoreMod, flash_attention, flash_attn_fwd, flash_attn_varlen_func

SAMPLES, HEADS, QUERIES, KEYS, DIM = 3, 2, 5, 7, 16
Q, K = (HEADS, QUERIES, DIM), (HEADS, KEYS, DIM)


def definition(q, k, v, **options):
    """Of one sequence, (H, S, D)."""
    return reference.attention(q[None], k[None], v[None], **options)[0][0]


def stacked(*shapes, size=SAMPLES):
    return [torch.randn(size, *shape) for shape in shapes]


def on(device):
    return lambda tensor: tensor.to(device)


def check(transform, device, *arguments, ours=flash_attention, theirs=definition):
    """`transform(function)(*arguments)` by the kernels and by the definition."""
    actual = transform(ours)(*tree_map(on(device), arguments))
    expected = transform(theirs)(*(x.double() if x.is_floating_point() else x for x in arguments))
    actual = tree_map(lambda x: x.cpu().double(), actual)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def loss(attention):
    """A number, whose gradient with respect to the output is not constant."""
    return lambda *arguments: attention(*arguments).square().sum()


@pytest.mark.parametrize(
    "in_dims",
    [(0, 0, 0), (0, None, None), (None, 0, 0), (None, 0, None), (None, None, 0), (1, 0, 2), (-1, -1, -1)],
    ids=str,
)
def test_vmap_over_any_subset_of_the_inputs(device, in_dims):
    inputs = (
        torch.randn(shape) if dim is None else torch.randn(SAMPLES, *shape).movedim(0, dim).contiguous()
        for shape, dim in zip((Q, K, K), in_dims, strict=True)
    )
    check(lambda f: vmap(f, in_dims), device, *inputs)


def test_vmap_of_batches(device):
    q, k, v = stacked((2, *Q), (2, *K), (2, *K))
    check(vmap, device, q, k, v, theirs=lambda *x: reference.attention(*x)[0])
    check(lambda f: vmap(f, (0, None, 0)), device, q, k[0], v, theirs=lambda *x: reference.attention(*x)[0])


def test_vmap_of_vmap(device):
    inputs = [torch.randn(2, SAMPLES, *shape) for shape in (Q, K, K)]
    check(lambda f: vmap(vmap(f), in_dims=0), device, *inputs)
    q, k, v = inputs
    check(lambda f: vmap(vmap(f, (0, None, None)), (1, 0, None)), device, q.transpose(0, 1), k[:, 0], v[0, 0])


@pytest.mark.parametrize("in_dims", [(0, 0, 0), (0, None, None), (None, 0, 0)], ids=str)
@pytest.mark.parametrize("order", ("gradients of samples", "gradient of all samples"))
def test_vmap_and_grad_in_either_order(device, in_dims, order):
    def transform(f):
        if order == "gradients of samples":
            return vmap(grad(loss(f), (0, 1, 2)), in_dims)
        return grad(loss(vmap(f, in_dims)), (0, 1, 2))

    shapes = (
        (*shape,) if dim is None else (SAMPLES, *shape) for shape, dim in zip((Q, K, K), in_dims, strict=True)
    )
    check(transform, device, *map(torch.randn, shapes))


def test_vjp(device):
    def transform(f):
        def pulled_back(q, k, v, grad_out):
            return vjp(f, q, k, v)[1](grad_out)

        return pulled_back

    check(transform, device, *map(torch.randn, (Q, K, K, Q)))


def test_jacrev(device):
    check(lambda f: jacrev(f, (0, 1, 2)), device, *(torch.randn(1, n, 16) for n in (2, 3, 3)))


def test_jacrev_of_the_log_sum_exp(device):
    check(
        lambda f: jacrev(f, (0, 1)),
        device,
        *(torch.randn(1, 1, n, 16) for n in (2, 3, 3)),
        ours=lambda q, k, v: flash_attention(q, k, v, return_lse=True)[1],
        theirs=lambda q, k, v: reference.attention(q, k, v)[1],
    )


def test_vmap_of_jacrev(device):
    check(lambda f: vmap(jacrev(f)), device, *stacked((1, 2, 16), (1, 3, 16), (1, 3, 16)))


def test_autograd_through_vmap(device):
    def transform(f):
        def gradients(*inputs):
            leaves = [x.detach().requires_grad_() for x in inputs]
            return torch.autograd.grad(loss(vmap(f))(*leaves), leaves)

        return gradients

    check(transform, device, *stacked(Q, K, K))


def test_batched_gradients_of_autograd(device):
    """torch.autograd.functional.jacobian(vectorize=True), too, asks for several gradients at once."""

    def transform(f):
        def gradients(q, k, v, grad_outs):
            leaves = [x.detach().requires_grad_() for x in (q, k, v)]
            return torch.autograd.grad(f(*leaves), leaves, grad_outs, is_grads_batched=True)

        return gradients

    check(transform, device, *map(torch.randn, (Q, K, K, (SAMPLES, *Q))))


@pytest.mark.parametrize("shape", [(QUERIES, KEYS), (HEADS, 1, KEYS), (1, QUERIES, 1)], ids=str)
@pytest.mark.parametrize("in_dim", (0, None))
def test_vmap_over_a_mask(device, shape, in_dim):
    mask = torch.rand(shape if in_dim is None else (SAMPLES, *shape)) < 0.6
    check(
        lambda f: vmap(f, (0, None, 0, in_dim)),
        device,
        *(torch.randn(SAMPLES, *Q), torch.randn(K), torch.randn(SAMPLES, *K), mask),
        ours=lambda q, k, v, mask: flash_attention(q, k, v, mask=mask),
        theirs=lambda q, k, v, mask: definition(q, k, v, mask=mask),
    )


@pytest.mark.parametrize("shape", [(QUERIES, KEYS), (HEADS, 1, KEYS), (1, 1, QUERIES, KEYS)], ids=str)
@pytest.mark.parametrize("in_dim", (0, None))
@pytest.mark.parametrize("batches", (1, 2))
def test_vmap_of_grad_of_a_bias(device, shape, in_dim, batches):
    """Each sample has a gradient of its own, also of a bias that all share."""
    bias = torch.randn(shape if in_dim is None else (SAMPLES, *shape))
    check(
        lambda f: vmap(grad(loss(f), (0, 3)), (0, 0, None, in_dim)),
        device,
        *(*stacked((batches, *Q), (batches, *K)), torch.randn(batches, *K), bias),
        ours=lambda q, k, v, bias: flash_attention(q, k, v, bias=bias),
        theirs=lambda q, k, v, bias: reference.attention(q, k, v, bias=bias)[0],
    )


@pytest.mark.parametrize("in_dim", (0, None))
def test_vmap_of_grad_of_sinks(device, in_dim):
    sinks = torch.randn(HEADS) if in_dim is None else torch.randn(SAMPLES, HEADS)
    check(
        lambda f: vmap(grad(loss(f), (0, 3)), (0, 0, 0, in_dim)),
        device,
        *(*stacked(Q, K, K), sinks),
        ours=lambda q, k, v, sinks: flash_attention(q, k, v, sinks=sinks),
        theirs=lambda q, k, v, sinks: definition(q, k, v, sinks=sinks),
    )


@pytest.mark.parametrize("in_dim", (0, None))
def test_vmap_over_the_numbers_of_keys(device, in_dim):
    lengths = torch.tensor([[7, 2], [0, 5], [3, 1]], dtype=torch.int32)
    check(
        lambda f: vmap(grad(loss(f), (0, 1)), (0, 0, 0, in_dim)),
        device,
        *(*stacked((2, *Q), (2, *K), (2, *K)), lengths if in_dim == 0 else lengths[0]),
        ours=lambda q, k, v, lengths: flash_attention(q, k, v, key_lengths=lengths),
        theirs=lambda q, k, v, lengths: reference.attention(q, k, v, key_lengths=lengths)[0],
    )


@pytest.mark.parametrize("slopes", ("shared", "of samples", "of batches"))
def test_vmap_of_a_score_function(device, slopes):
    """One that knows its batch keeps that number below vmap."""
    shape = {"shared": (HEADS,), "of samples": (SAMPLES, HEADS), "of batches": (2, HEADS)}[slopes]
    scores = (
        "score - slope[b, h] * abs(q - kv)" if slopes == "of batches" else "score - slope[h] * abs(q - kv)"
    )

    def theirs(q, k, v, slope):
        def score(score, b, h, i, j):
            return score - (slope[b, h] if slopes == "of batches" else slope[h]) * (i - j).abs()

        return reference.attention(q, k, v, score=score)[0]

    check(
        lambda f: vmap(grad(loss(f), (0, 1)), (0, 0, 0, 0 if slopes == "of samples" else None)),
        device,
        *(*stacked((2, *Q), (2, *K), (2, *K)), torch.rand(shape)),
        ours=lambda q, k, v, slope: flash_attention(q, k, v, score_mod=ScoreMod(scores, slope=slope)),
        theirs=theirs,
    )


def test_vmap_over_a_tensor_of_a_score_function_alone(device):
    def theirs(q, k, v, slope):
        return reference.attention(q, k, v, score=lambda score, b, h, i, j: score + slope[h] * (i - j))[0]

    def ours(q, k, v, slope):
        return flash_attention(q, k, v, score_mod=ScoreMod("score + slope[h] * (q - kv)", slope=slope))

    arguments = (*(torch.randn(2, *shape) for shape in (Q, K, K)), torch.rand(SAMPLES, HEADS))
    for transform in (lambda f: f, lambda f: grad(loss(f), (0, 1, 2))):
        check(
            lambda f, transform=transform: vmap(transform(f), (None, None, None, 0)),
            device,
            *arguments,
            ours=ours,
            theirs=theirs,
        )


def test_a_window_and_causal_below_vmap(device):
    check(
        lambda f: vmap(grad(loss(f), (0, 1, 2))),
        device,
        *stacked(Q, K, K),
        ours=lambda q, k, v: flash_attention(q, k, v, causal="lower_right", window=(2, 0)),
        theirs=lambda q, k, v: definition(
            q, k, v, causal="lower_right", window=(2, None), alignment="lower_right"
        ),
    )


def test_packed_sequences_below_vmap(device):
    offsets = torch.tensor([0, 2, 5], dtype=torch.int32)

    def packed(q):
        return flash_attn_varlen_func(q, q, q, offsets.to(device), offsets.to(device), 3, 3)

    def sequence_by_sequence(q):
        parts = (part.transpose(0, 1) for part in q.split([2, 3]))
        return torch.cat([definition(part, part, part).transpose(0, 1) for part in parts])

    inputs = stacked((QUERIES, HEADS, DIM))
    check(vmap, device, *inputs, ours=packed, theirs=sequence_by_sequence)
    check(lambda f: vmap(grad(loss(f))), device, *inputs, ours=packed, theirs=sequence_by_sequence)


class TestDropout:
    """Below vmap it obeys the randomness that vmap was given, as PyTorch's."""

    @staticmethod
    def dropped(x, randomness):
        """The rows' weights, with dropout; all are 1 / KEYS without."""
        return vmap(
            lambda q, k: flash_attention(q, k, k.new_ones(1, KEYS, 16).tril(), dropout_p=0.5),
            randomness=randomness,
        )(x, x.new_zeros(SAMPLES, 1, KEYS, 16))

    def test_is_an_error_unless_randomness_is_chosen(self, device):
        with pytest.raises(RuntimeError, match="randomness"):
            self.dropped(torch.randn(SAMPLES, 1, 30, 16, device=device), "error")

    def test_same(self, device):
        first, *others = self.dropped(torch.randn(SAMPLES, 1, 30, 16, device=device), "same")
        assert all(torch.equal(first, other) for other in others)

    def test_different(self, device):
        first, *others = self.dropped(torch.randn(SAMPLES, 1, 30, 16, device=device), "different")
        assert not any(torch.equal(first, other) for other in others)

    @pytest.mark.parametrize("randomness", ("same", "different"))
    def test_gradients_are_those_of_the_weights_that_are_kept(self, device, randomness):
        def sample(q, k, v):
            out, keep = flash_attn_fwd(q, k, v, dropout_p=0.5)
            return out.square().sum(), keep

        inputs = stacked(Q, K, K)
        actual, keep = vmap(grad(sample, (0, 1, 2), has_aux=True), randomness=randomness)(
            *map(on(device), inputs)
        )
        expected = vmap(
            grad(loss(lambda q, k, v, keep: definition(q, k, v, keep=keep, dropout_p=0.5)), (0, 1, 2))
        )(*(x.double() for x in inputs), keep.cpu())
        assert torch.equal(keep[0], keep[1]) == (randomness == "same")
        for gradient, wanted in zip(actual, expected, strict=True):
            assert reference.error(gradient, wanted) < 1e-5


def test_transforms_under_autocast(device):
    def attention(q, k, v):
        with torch.autocast(device, torch.bfloat16):
            return flash_attention(q, k, v)

    q, k, v = (x.to(device) for x in stacked(Q, K, K))
    assert vmap(attention)(q, k, v).dtype == torch.bfloat16
    gradient = vmap(grad(loss(attention)))(q, k, v)
    assert gradient.dtype == torch.float32
    expected = vmap(grad(loss(definition)))(q.cpu().double(), k.cpu().double(), v.cpu().double())
    assert reference.error(gradient, expected) < 0.02


def test_vmap_is_compiled_without_graph_breaks():
    torch._dynamo.reset()

    def transform(f):
        def gradients(*inputs):
            leaves = [x.detach().requires_grad_() for x in inputs]
            attention = vmap(f, (0, None, 0))
            if f is flash_attention:
                attention = torch.compile(attention, fullgraph=True, backend="aot_eager")
            out = attention(*leaves)
            return out.detach(), *torch.autograd.grad(out.square().sum(), leaves)

        return gradients

    check(transform, "cpu", torch.randn(SAMPLES, *Q), torch.randn(K), torch.randn(SAMPLES, *K))


def test_no_samples():
    q, k, v = stacked(Q, K, K, size=0)
    assert vmap(flash_attention)(q, k, v).shape == (0, *Q)


def test_forward_mode_is_refused():
    q, k, v = map(torch.randn, (Q, K, K))
    with pytest.raises(NotImplementedError, match="forward-mode"):
        jvp(flash_attention, (q, k, v), (q, k, v))
    with pytest.raises(NotImplementedError, match="forward-mode"):
        hessian(loss(flash_attention))(q, k, v)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(q, torch.ones_like(q))
        with pytest.raises(NotImplementedError, match="forward-mode"):
            flash_attention(dual, k, v)


def test_a_second_derivative_is_refused():
    q, k, v = map(torch.randn, (Q, K, K))
    inner = grad(loss(flash_attention))
    with pytest.raises(RuntimeError, match="double backward"):
        grad(lambda q: inner(q, k, v).sum())(q)


def test_a_gradient_of_what_a_score_function_reads_is_refused():
    q, k, v, slopes = (*map(torch.randn, (Q, K, K)), torch.rand(HEADS))

    def attention(slopes):
        return (
            loss(flash_attention)(q, k, v)
            + flash_attention(q, k, v, score_mod=ScoreMod("score * s[h]", s=slopes)).sum()
        )

    with pytest.raises(NotImplementedError, match="a tensor of the score function requires a gradient"):
        grad(attention)(slopes)


def test_errors_name_the_argument():
    q, k = torch.randn(SAMPLES, *Q), torch.randn(SAMPLES, HEADS, KEYS, 17)
    with pytest.raises(ValueError, match="key has head_dim 17 but query has 16"):
        vmap(flash_attention)(q, k, k)
