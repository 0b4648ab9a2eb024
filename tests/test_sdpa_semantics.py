"""`scaled_dot_product_attention` is PyTorch's: whatever it is given, the same comes out, or both refuse."""

from __future__ import annotations

import functools
import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchard_jit import flash_attn_fwd, scaled_dot_product_attention

DIM, DIM_V = 8, 5
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 4e-2, torch.float16: 5e-3}
LAYOUTS = ("contiguous", "transposed", "expanded", "sliced")


def examples(count):
    return settings(
        max_examples=count,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@st.composite
def calls(draw, kinds_of_mask, dtypes=tuple(TOLERANCE)):
    """Arguments of which PyTorch should make sense, by name."""
    dtype = draw(st.sampled_from(dtypes))
    dim_v = draw(st.sampled_from((DIM, DIM_V))) if dtype == torch.float32 else DIM
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    sq, sk = (draw(st.sampled_from((1, 2, 5, 9, 17, 0))) for _ in range(2))
    leading = draw(st.lists(st.sampled_from((2, 1, 3, 0)), max_size=3))
    group = draw(st.sampled_from((1, 1, 2, 3))) if leading else 1
    grouped = [*leading[:-1], leading[-1] * group] if leading else []

    def random(*shape):
        return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)

    def broadcast(sizes):
        """Sizes that broadcast to these."""
        kept = sizes[draw(st.integers(0, len(sizes))) :] if draw(st.booleans()) else sizes
        return [1 if draw(st.integers(0, 3)) == 0 else size for size in kept]

    same = group > 1 or draw(st.booleans())
    arguments = {
        "query": random(*grouped, sq, DIM),
        "key": random(*(leading if same else broadcast(leading)), sk, DIM),
        "value": random(*(leading if same else broadcast(leading)), sk, dim_v),
        "scale": draw(st.sampled_from((None, 0.3, -0.7, 0.0))),
        "enable_gqa": group > 1 or (bool(leading) and same and draw(st.booleans())),
    }
    kind = draw(st.sampled_from(kinds_of_mask))
    if kind == "none":
        return {**arguments, "is_causal": draw(st.booleans())}
    shape = (*broadcast(grouped), *(size if draw(st.integers(0, 3)) else 1 for size in (sq, sk)))
    mask_dtype = dtype if kind == "float" else torch.float32 if kind == "float32" else torch.bool
    mask = laid_out(draw(st.sampled_from(LAYOUTS)), shape, mask_dtype, generator, draw)
    return {**arguments, "attn_mask": mask}


def laid_out(layout, shape, dtype, generator, draw):
    """A mask of that shape, which kernels have to read where it lies."""
    *leading, rows, columns = shape
    match layout:
        case "transposed":
            return filled((*leading, columns, rows), dtype, generator, draw, keys=-2).mT
        case "expanded":
            return filled((*leading, 1, columns), dtype, generator, draw).expand(shape)
        case "sliced":
            return filled((*leading, rows + 2, 2 * columns), dtype, generator, draw)[..., 1 : rows + 1, ::2]
        case _:
            return filled(shape, dtype, generator, draw)


def filled(shape, dtype, generator, draw, keys=-1):
    """Masks hide rows altogether, too; and finite numbers count, be they ever so small."""
    hidden = torch.rand(shape, generator=generator) < draw(st.sampled_from((0.3, 0.0, 0.8, 1.0)))
    if dtype == torch.bool:
        return ~hidden
    nothing = draw(st.sampled_from((-math.inf, -1e4, torch.finfo(dtype).min)))
    if math.isfinite(
        nothing
    ):  # beside nothing else it is a number as all, with few digits left for the scores
        hidden.narrow(keys, 0, min(1, shape[keys])).fill_(False)
    numbers = torch.randn(shape, dtype=torch.float64, generator=generator)
    return numbers.to(dtype).masked_fill(hidden, nothing)


def outcome(attention, arguments, dtype=None):
    """Output and gradients, a floating mask's too. With `dtype`: computed in that."""
    leaves = {
        name: value.to(dtype if dtype and value.is_floating_point() else value.dtype)
        .detach()
        .requires_grad_(value.is_floating_point())
        for name, value in arguments.items()
        if isinstance(value, torch.Tensor)
    }
    out = attention(**{**arguments, **leaves})
    leaves = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
    weights = torch.linspace(-1, 1, max(out.numel(), 1), dtype=torch.float64)[: out.numel()].view(out.shape)
    grads = torch.autograd.grad(
        out, list(leaves.values()), weights.to(out.dtype), allow_unused=True, materialize_grads=True
    )
    return {"out": out.detach(), **dict(zip(leaves, grads, strict=True))}


def check(arguments):
    """The same as PyTorch in float64; where PyTorch raises, we do too."""
    try:
        F.scaled_dot_product_attention(**arguments)
    except (RuntimeError, ValueError, TypeError):
        with pytest.raises((RuntimeError, ValueError, TypeError)):
            scaled_dot_product_attention(**arguments)
        return
    expected = outcome(F.scaled_dot_product_attention, arguments, torch.float64)
    actual = outcome(scaled_dot_product_attention, arguments)
    tolerance = TOLERANCE[arguments["query"].dtype]
    assert actual["out"].dtype == arguments["query"].dtype
    for name, wanted in expected.items():
        torch.testing.assert_close(
            actual[name].double(),
            wanted,
            rtol=tolerance,
            atol=tolerance * max(1, sum_size(arguments, name)),
            msg=lambda message, name=name: f"{name}: {message}",
        )


def sum_size(arguments, name):
    """Gradients are sums, whose rounding grows with what is summed up."""
    return 1 if name == "out" else math.sqrt(math.prod(arguments["query"].shape[:-1]))


@examples(150)
@given(calls(("none",)))
def test_without_a_mask(arguments):
    check(arguments)


@examples(150)
@given(calls(("bool",)))
def test_boolean_masks(arguments):
    check(arguments)


@examples(200)
@given(calls(("float",)))
def test_added_masks_and_their_gradients(arguments):
    check(arguments)


@examples(50)
@given(calls(("float32",), dtypes=(torch.bfloat16, torch.float16)))
def test_float32_masks_beside_16_bit_inputs(arguments):
    check(arguments)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("value", (-1e4, "min"))
def test_the_smallest_finite_numbers_hide_nothing(dtype, value):
    """Where all keys get the same, the weights are what the scores' last digits still say: none is 0."""
    q, k, v = (torch.randn(1, 2, n, DIM).to(dtype) for n in (3, 6, 6))
    value = torch.finfo(dtype).min if value == "min" else value
    mask = torch.full((3, 6), value, dtype=dtype)
    mask[0] = -math.inf
    actual = scaled_dot_product_attention(q, k, v, mask).double()
    expected = F.scaled_dot_product_attention(*(x.double() for x in (q, k, v)), attn_mask=mask.double())
    assert (actual[:, :, 0] == 0).all()
    digits = max(TOLERANCE[dtype], 2e4 * torch.finfo(dtype).eps if dtype.itemsize > 2 else 3e-3)
    torch.testing.assert_close(actual, expected, rtol=digits, atol=digits)


Q, K = (2, 4, 5, DIM), (2, 4, 7, DIM)
make = functools.partial(torch.randn, dtype=torch.float32)


@pytest.mark.parametrize(
    "arguments",
    [
        {"attn_mask": torch.ones(5, 7, dtype=torch.int64)},
        {"attn_mask": torch.ones(5, 7, dtype=torch.uint8)},
        {"attn_mask": torch.ones(5, 7, dtype=torch.float16)},
        {"attn_mask": torch.ones(5, 7, dtype=torch.float64)},
        {"attn_mask": torch.ones(5, 6, dtype=torch.bool)},
        {"attn_mask": torch.ones(3, 5, 7)},
        {"attn_mask": torch.ones(1, 1, 1, 5, 7, dtype=torch.bool)},
        {"query": make(DIM)},
        {"key": make(DIM)},
        {"key": make(2, 4, 7, DIM + 1)},
        {"key": make(3, 4, 7, DIM)},
        {"key": make(2, 2, 7, DIM), "value": make(2, 2, 7, DIM)},
        {"key": make(2, 3, 7, DIM), "value": make(2, 3, 7, DIM), "enable_gqa": True},
        {"key": make(K).double()},
        {"value": make(K).half()},
        {"query": torch.ones(Q, dtype=torch.int64), "key": torch.ones(K, dtype=torch.int64)},
        {"dropout_p": 1.5},
        {"dropout_p": -0.5},
        {"value": make(K).to("meta")},
    ],
    ids=lambda arguments: ", ".join(
        f"{name}={value.dtype}{tuple(value.shape)}" if isinstance(value, torch.Tensor) else f"{name}={value}"
        for name, value in arguments.items()
    ),
)
def test_what_pytorch_refuses_is_refused(arguments):
    arguments = {"query": make(Q), "key": make(K), "value": make(K), **arguments}
    with pytest.raises((RuntimeError, ValueError, TypeError, IndexError)):
        F.scaled_dot_product_attention(**arguments)
    with pytest.raises((ValueError, TypeError)):
        scaled_dot_product_attention(**arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        # PyTorch's documentation promises an error; its kernel on the CPU takes both.
        (
            {"attn_mask": torch.ones(5, 7, dtype=torch.bool), "is_causal": True},
            ValueError,
            "attn_mask must be None where is_causal=True",
        ),
        ({"key": make(2, 4, 9, DIM)}, ValueError, "value has length 7 but key has 9"),
        ({"query": make(2, 4, 5, 513), "key": make(2, 4, 7, 513)}, ValueError, "must be 1 to 512, got 513"),
        ({"query": make(2, 4, 5, 0), "key": make(2, 4, 7, 0)}, ValueError, "must be 1 to 512, got 0"),
        ({"query": make(2, 4, DIM, 5).mT}, ValueError, r"query must be dense.*pass query\.contiguous\(\)"),
        ({"key": make(2, 2, 7, DIM), "enable_gqa": True}, ValueError, "value has 4 heads but key has 2"),
        (
            dict.fromkeys(("query", "key", "value"), make(3, 2, *Q[1:]).transpose(0, 1)),
            ValueError,
            "leading dimensions of query can't be merged",
        ),
    ],
    ids=(
        "mask and is_causal",
        "lengths of key and value differ",
        "wide heads",
        "no head_dim",
        "last dimension not dense",
        "heads of key and value differ",
        "leading dimensions",
    ),
)
def test_documented_differences(arguments, error, message):
    """What PyTorch serves, and we refuse."""
    arguments = {"query": make(Q), "key": make(K), "value": make(K), **arguments}
    F.scaled_dot_product_attention(**arguments)
    with pytest.raises(error, match=message):
        scaled_dot_product_attention(**arguments)


def test_a_second_derivative_is_a_documented_difference():
    q = make(Q).requires_grad_()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        (grad,) = torch.autograd.grad(F.scaled_dot_product_attention(q, q, q).sum(), q, create_graph=True)
        grad.sum().backward()
    (grad,) = torch.autograd.grad(scaled_dot_product_attention(q, q, q).sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        torch.autograd.grad(grad.sum() + q.sum(), q)


class TestDropout:
    q, k, v = make(1, 2, 40, DIM), make(1, 2, 50, DIM), make(1, 2, 50, DIM)

    def test_none(self):
        plain = scaled_dot_product_attention(self.q, self.k, self.v)
        assert torch.equal(scaled_dot_product_attention(self.q, self.k, self.v, dropout_p=0.0), plain)

    def test_all(self):
        leaves = [x.clone().requires_grad_() for x in (self.q, self.k, self.v)]
        out = scaled_dot_product_attention(*leaves, dropout_p=1.0)
        assert (out == 0).all()
        assert all((grad == 0).all() for grad in torch.autograd.grad(out.sum(), leaves))
        assert (F.scaled_dot_product_attention(self.q, self.k, self.v, dropout_p=1.0) == 0).all()

    def test_the_mean_is_what_comes_out_without(self):
        plain = scaled_dot_product_attention(self.q, self.k, self.v)
        out = [scaled_dot_product_attention(self.q, self.k, self.v, dropout_p=0.3) for _ in range(400)]
        deviation = torch.stack(out).std(0) / math.sqrt(len(out))
        assert ((torch.stack(out).mean(0) - plain).abs() < 5 * deviation).all()

    def test_it_drops_what_keep_mask_says(self):
        """`flash_attn_fwd` says which of the same seed."""
        torch.manual_seed(3)
        out = scaled_dot_product_attention(self.q, self.k, self.v, dropout_p=0.3)
        torch.manual_seed(3)
        _, keep = flash_attn_fwd(self.q, self.k, self.v, dropout_p=0.3)
        weights = torch.softmax(self.q @ self.k.mT / math.sqrt(DIM), -1) * keep / 0.7
        torch.testing.assert_close(out, weights @ self.v)
