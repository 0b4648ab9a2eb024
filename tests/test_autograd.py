"""Attention as a citizen of PyTorch: autograd, tracing, compiling, checkpointing."""

from __future__ import annotations

import pytest
import reference
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

import orchard_jit
from orchard_jit import binding, operators
from orchard_jit.call import Arguments
from orchard_jit.errors import ToolchainError


def inputs(*lengths, dim=16, dtype=torch.float32, heads=2):
    return [torch.randn(1, heads, length, dim, dtype=dtype, requires_grad=True) for length in lengths]


@pytest.mark.parametrize("causal", (False, "upper_left", "lower_right"))
def test_gradcheck(causal):
    q, k, v = inputs(5, 7, 7, dim=3, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda q, k, v: orchard_jit.flash_attention(q, k, v, causal=causal), (q, k, v), fast_mode=False
    )


def test_gradcheck_with_the_log_sum_exp_and_grouped_heads():
    q = torch.randn(1, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    k, v = inputs(4, 4, dim=3, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda q, k, v: orchard_jit.flash_attention(q, k, v, return_lse=True), (q, k, v)
    )


@pytest.mark.parametrize("causal", ("none", "lower_right"))
@pytest.mark.parametrize("needs_grad", (False, True))
@pytest.mark.parametrize("transposed", (False, True))
def test_opcheck_of_the_forward(causal, needs_grad, transposed):
    q, k, v = (x.detach() for x in inputs(6, 9, 9))
    if transposed:
        q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
    torch.library.opcheck(
        operators.forward,
        [
            *(x.requires_grad_(needs_grad) for x in (q, k, v)),
            *(None, None, None if causal == "none" else 0, causal == "lower_right"),
        ],
    )


@pytest.mark.parametrize("needs_grad", (False, True))
@pytest.mark.parametrize("causal", (False, True))
def test_opcheck_of_a_plain_call(causal, needs_grad):
    q, k, v = (x.detach().requires_grad_(needs_grad) for x in inputs(6, 9, 9))
    torch.library.opcheck(operators.attention, [q, k, v, 0.3, None, 0 if causal else None, causal])


def test_a_plain_call_is_the_general_one_in_fewer_words():
    arguments = *inputs(6, 9, 9), 0.3, 2, 1, True
    of_plain, (of_general, _) = operators.attention(*arguments), operators.forward(*arguments)
    assert torch.equal(of_plain, of_general)
    gradients = [torch.autograd.grad(out, arguments[:3], out.detach()) for out in (of_plain, of_general)]
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


def test_a_plain_call_can_be_traced():
    tensors = [x.detach() for x in inputs(6, 9, 9)]
    graph = make_fx(lambda q, k, v: orchard_jit.flash_attention(q, k, v), tracing_mode="symbolic")(*tensors)
    assert torch.equal(graph(*tensors), orchard_jit.flash_attention(*tensors))


@pytest.mark.parametrize("with_lse", (False, True))
def test_opcheck_of_the_backward(with_lse):
    q, k, v = (x.detach() for x in inputs(6, 9, 9))
    out, lse = operators.forward(q, k, v, 0.3)
    grad_lse = torch.randn_like(lse) if with_lse else None
    torch.library.opcheck(
        operators.backward,
        [torch.randn_like(out), grad_lse, *Arguments(q, k, v, 0.3), out, lse, False],
    )


class Block(torch.nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.project, self.attention = torch.nn.Linear(32, 96), attention

    def forward(self, x):
        q, k, v = (y.unflatten(-1, (2, 16)).transpose(1, 2) for y in self.project(x).chunk(3, -1))
        return x + self.attention(q, k, v).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("dynamic", (False, True))
def test_a_model_trains_under_compile_without_graph_breaks(dynamic):
    torch._dynamo.reset()
    model = Block(lambda q, k, v: orchard_jit.flash_attention(q, k, v, causal="upper_left"))
    truth = Block(lambda q, k, v: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True))
    truth.load_state_dict(model.state_dict())
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, truth)]
    for length in (10, 10, 17):
        x = torch.randn(2, length, 32)
        losses = []
        for module, optimizer in zip((compiled, truth), optimizers, strict=True):
            optimizer.zero_grad()
            loss = (module(x) - x.roll(1, 1)).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_every_public_function_compiles():
    torch._dynamo.reset()
    q, k, v = (x.detach() for x in inputs(8, 8, 8))
    for function in (
        lambda q, k, v: orchard_jit.flash_attention(q, k, v, causal=True, return_lse=True)[1],
        lambda q, k, v: orchard_jit.scaled_dot_product_attention(q, k, v, is_causal=True),
        lambda q, k, v: orchard_jit.flash_attn_func(q, k, v, causal=True),
        lambda q, k, v: orchard_jit.flash_attn_fwd(q, k, v, 0.2)[0],
        lambda q, k, v: orchard_jit.flash_attention(q[0], k[0], v[0]),
    ):
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(q, k, v), function(q, k, v))


@pytest.mark.usefixtures("compiler_of_inductor")
def test_inductor_compiles_forward_and_backward():
    torch._dynamo.reset()
    q, k, v = inputs(20, 20, 20)
    attention = torch.compile(
        lambda q, k, v: orchard_jit.flash_attention(q * 2, k, v, causal=True), fullgraph=True
    )
    grad_out = torch.randn(1, 2, 20, 16)
    grads = torch.autograd.grad(attention(q, k, v), (q, k, v), grad_out)
    expected = torch.autograd.grad(orchard_jit.flash_attention(q * 2, k, v, causal=True), (q, k, v), grad_out)
    torch.testing.assert_close(grads, expected)


def test_double_backward_is_refused_and_only_that():
    q, k, v = inputs(4, 4, 4)
    out = orchard_jit.flash_attention(q, k, v)
    (grad,) = torch.autograd.grad(out.sum(), q, create_graph=True)
    torch.testing.assert_close(grad, torch.autograd.grad(orchard_jit.flash_attention(q, k, v).sum(), q)[0])
    with pytest.raises(RuntimeError, match="double backward"):
        grad.sum().backward()


@pytest.mark.parametrize("error", (ToolchainError, KeyboardInterrupt))
def test_what_ends_a_build_keeps_its_type_in_a_backward(device, error, monkeypatch):
    def ends(recipes):
        raise error("while it was compiled")

    q = torch.randn(1, 2, 4, 16).to(device).requires_grad_()
    out = orchard_jit.flash_attention(q, q, q)
    binding.forget_kernels()
    with monkeypatch.context() as patch:
        patch.setattr(binding.library, "load_all", ends)
        with pytest.raises(error, match="while it was compiled"):
            out.sum().backward()
    orchard_jit.flash_attention(q, q, q).sum().backward()
    assert q.grad is not None


def test_only_what_asks_for_a_gradient_gets_one():
    q, k, v = inputs(4, 5, 5)
    k.requires_grad_(False)
    orchard_jit.flash_attention(q, k, v).sum().backward()
    assert k.grad is None
    assert q.grad is not None
    with torch.no_grad():
        assert not orchard_jit.flash_attention(q, k, v).requires_grad


def test_checkpointing_recomputes_the_same():
    q, k, v = inputs(30, 30, 30)
    grad_out = torch.randn(1, 2, 30, 16)
    plain = torch.autograd.grad(orchard_jit.flash_attention(q, k, v), (q, k, v), grad_out)
    again = checkpoint(orchard_jit.flash_attention, q, k, v, use_reentrant=False)
    for a, b in zip(plain, torch.autograd.grad(again, (q, k, v), grad_out), strict=True):
        assert torch.equal(a, b)


def test_inplace_change_of_a_saved_input_is_noticed():
    q, k, v = inputs(4, 4, 4)
    product = q * 1
    out = orchard_jit.flash_attention(product, k, v)
    product.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_gradients_have_the_layout_of_their_inputs():
    packed = torch.randn(2, 7, 3, 2, 16, requires_grad=True)
    q, k, v = packed.unbind(2)
    grads = torch.autograd.grad(orchard_jit.flash_attn_func(q, k, v).sum(), (q, k, v))
    assert all(grad.is_contiguous() for grad in grads)
    assert orchard_jit.flash_attn_func(q, k, v).is_contiguous()


@pytest.fixture
def threads():
    """Sets their number; afterwards it is what it was."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("number", (1, 2, 3))
@pytest.mark.parametrize("options", ({"causal": True}, {"window": (205, 5)}), ids=str)
@pytest.mark.parametrize("dtype", (torch.float32, torch.float16), ids=str)
def test_the_same_bits_for_any_number_of_threads(threads, number, options, dtype):
    """The more threads, the fewer queries a task of the forward pass takes."""
    q, k, v = (x.detach().to(dtype).requires_grad_() for x in inputs(700, 700, 700, dim=64))
    grad_out = torch.randn(1, 2, 700, 64).to(dtype)

    def bits():
        out = orchard_jit.flash_attention(q, k, v, **options)
        return [out, *torch.autograd.grad(out, (q, k, v), grad_out)]

    threads(1)
    alone = bits()
    threads(number)
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(alone, bits(), strict=True))


def test_the_same_bits_where_blocks_are_not_halved_evenly(threads):
    """A task takes whole strips, those of any number of threads: where scores grow along the keys, all of
    a strip goes through them twice if one of its queries has to."""
    q, k, v = inputs(700, 700, 700, dim=64, heads=1)
    q, k = (
        q.detach() * torch.linspace(0.1, 12, 700)[:, None],
        k.detach() * torch.linspace(0.1, 3, 700)[:, None],
    )
    found = []
    with orchard_jit.specialize(block_q=192):
        for number in (1, 2, 5):
            threads(number)
            found.append(orchard_jit.flash_attention(q, k, v, causal=True))
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_memory_is_linear_in_the_length():
    """An S x S matrix of 8192 tokens would be 256 MB in float32; everything here together is 16."""
    q, k, v = inputs(8192, 8192, 8192, dim=16, heads=1)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        orchard_jit.flash_attention(q, k, v).sum().backward()
    allocated = sum(max(event.self_cpu_memory_usage, 0) for event in profile.events())
    assert allocated < 32 * 2**20


def test_reference_agrees_with_pytorch():
    """The yardstick itself."""
    q, k, v = inputs(9, 9, 9, dtype=torch.float64)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(reference.attention(q, k, v, "upper_left")[0], expected)
