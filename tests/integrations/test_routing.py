"""`sdpa` and `replace_sdpa` bring PyTorch's attention here, say what became of it, and leave no trace."""

from __future__ import annotations

import threading

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

import orchard_jit
from orchard_jit import attention, options

PYTORCHS = F.scaled_dot_product_attention
LENGTH, DIM = 9, 8
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(autouse=True)
def _counts_from_zero():
    orchard_jit.report(reset=True)
    yield
    orchard_jit.restore_sdpa()


class Replaced:
    """`replace_sdpa` as a region."""

    def __init__(self, *, strict=False):
        self.strict = strict

    def __enter__(self):
        orchard_jit.replace_sdpa(strict=self.strict)

    def __exit__(self, *error):
        orchard_jit.restore_sdpa()


@pytest.fixture(params=[orchard_jit.sdpa, Replaced], ids=["sdpa", "replace_sdpa"])
def routed(request):
    return request.param


def inputs(device="cpu", heads=2, dtype=torch.float32):
    return [torch.randn(2, heads, LENGTH, DIM).to(device, dtype).requires_grad_() for _ in range(3)]


def strided():
    """A last dimension that is not dense, which kernels refuse."""
    return torch.randn(2, 2, DIM, LENGTH).mT


def nested():
    sequences = [torch.randn(n, 2, DIM) for n in (5, 3)]
    return torch.nested.nested_tensor(sequences, layout=torch.jagged).transpose(1, 2)


of_each_kind = pytest.mark.parametrize(
    "x",
    [torch.randn(2, 2, LENGTH, DIM), torch.randn(LENGTH, DIM), nested()],
    ids=["four dimensions", "two dimensions", "nested"],
)


def compiled(function):
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager")


class TestWhatIsRouted:
    def test_a_call_and_its_gradients(self, routed, device):
        q, k, v = inputs(device)
        expected = PYTORCHS(*(x.cpu() for x in (q, k, v)), is_causal=True)
        gradients = torch.autograd.grad(expected.square().sum(), (q, k, v))
        with routed(strict=True):
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            ours = torch.autograd.grad(out.square().sum(), (q, k, v))
        torch.testing.assert_close(out.cpu(), expected, **CLOSE)
        for actual, wanted in zip(ours, gradients, strict=True):
            torch.testing.assert_close(actual, wanted, **CLOSE)
        report = orchard_jit.report()
        assert (report.calls, report.fallbacks) == (1, {})
        assert sorted(name.split("-d8")[0].split("-")[-2] for name in report.variants) == [
            "backward",
            "forward",
        ]
        assert all("causal" in name for name in report.variants)

    def test_every_argument(self, routed):
        q, k, v = inputs(heads=4)
        k, v = (x[:, :2] for x in (k, v))
        bias = torch.randn(4, LENGTH, LENGTH, requires_grad=True)
        arguments = (q, k, v, bias, 0.0, False)
        expected = PYTORCHS(*arguments, scale=0.3, enable_gqa=True)
        with routed(strict=True):
            out = F.scaled_dot_product_attention(*arguments, scale=0.3, enable_gqa=True)
        torch.testing.assert_close(out, expected, **CLOSE)
        for actual, wanted in zip(
            *(torch.autograd.grad(x.sum(), (q, bias)) for x in (out, expected)), strict=True
        ):
            torch.testing.assert_close(actual, wanted, **CLOSE)

    def test_who_imported_the_function_by_name(self, routed):
        with routed(strict=True):
            scaled_dot_product_attention(*inputs())
        assert orchard_jit.report().calls == 1

    @pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
    def test_pytorchs_transformer(self, routed, training):
        layer = torch.nn.TransformerEncoderLayer(16, 2, dim_feedforward=16, dropout=0.0, batch_first=True)
        model = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).train(training)
        x = torch.randn(2, LENGTH, 16)
        padding = torch.zeros(2, LENGTH, dtype=torch.bool)
        padding[1, -3:] = True
        with torch.set_grad_enabled(training):
            expected = model(x, src_key_padding_mask=padding)
            with routed(strict=True):
                out = model(x, src_key_padding_mask=padding)
        seen = ~padding
        torch.testing.assert_close(out[seen], expected[seen], **CLOSE)
        assert orchard_jit.report().calls == 2

    def test_multi_head_attention_without_weights(self, routed):
        attention = torch.nn.MultiheadAttention(16, 2, batch_first=True)
        x = torch.randn(2, LENGTH, 16)
        expected, _ = attention(x, x, x, need_weights=False)
        with routed(strict=True):
            out, _ = attention(x, x, x, need_weights=False)
            attention(x, x, x)  # the weights are asked for, and PyTorch makes them step by step
        torch.testing.assert_close(out, expected, **CLOSE)
        assert orchard_jit.report().calls == 1

    @pytest.mark.parametrize("shape", [(LENGTH, DIM), (2, LENGTH, DIM), (2, 1, 3, LENGTH, DIM)])
    def test_other_numbers_of_dimensions(self, routed, shape):
        q, k, v = (torch.randn(shape) for _ in range(3))
        mask = torch.randn(*shape[:-1], LENGTH) > 0
        mask[..., 0] = True
        for arguments in ((q, k, v), (q, k, v, mask)):
            expected = PYTORCHS(*arguments)
            with routed(strict=True):
                out = F.scaled_dot_product_attention(*arguments)
            torch.testing.assert_close(out, expected, **CLOSE)

    def test_nested_tensors(self, routed):
        x = nested()
        expected = PYTORCHS(x, x, x)
        with routed(strict=True):
            out = F.scaled_dot_product_attention(x, x, x)
        torch.testing.assert_close(out.values(), expected.values(), **CLOSE)

    @of_each_kind
    @pytest.mark.parametrize("dropout", [0.0, 0.5])
    def test_what_a_call_means_is_found_out_once(self, routed, x, dropout, monkeypatch):
        """It takes as long as a small call, if sequences have lengths of their own."""
        resolved = []

        def counted(*arguments, **given):
            resolved.append(arguments)
            return bounds(*arguments, **given)

        bounds = options.bounds
        for module in (options, attention):
            monkeypatch.setattr(module, "bounds", counted)
        with routed(strict=True):
            F.scaled_dot_product_attention(x, x, x, dropout_p=dropout)
        assert len(resolved) == 1

    def test_autocast(self, routed):
        q, k, v = inputs()
        with routed(strict=True), torch.autocast("cpu", torch.bfloat16):
            assert F.scaled_dot_product_attention(q, k, v).dtype == torch.bfloat16

    def test_autocast_of_inputs_that_differ(self, routed):
        q, k, v = inputs()
        with routed(strict=True), torch.autocast("cpu", torch.bfloat16):
            assert F.scaled_dot_product_attention(q, k, v.bfloat16()).dtype == torch.bfloat16
        assert all("bf16" in name for name in orchard_jit.report().variants)

    @pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*jit.trace:DeprecationWarning")
    def test_a_trace_of_torchscript(self, routed):
        def causal(q, k, v):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)

        tensors = [x.detach() for x in inputs()]
        with routed(strict=True):
            trace = torch.jit.trace(causal, tensors)
        assert "orchard_jit::attention" in str(trace.graph)
        torch.testing.assert_close(trace(*tensors), causal(*tensors), **CLOSE)

    def test_below_transforms(self, routed):
        q, k, v = inputs()

        def loss(q, k, v):
            return F.scaled_dot_product_attention(q, k, v).square().sum()

        def per_sample():
            return torch.func.vmap(torch.func.grad(loss))(q, k, v)

        expected = per_sample()
        with routed(strict=True):
            actual = per_sample()
        torch.testing.assert_close(actual, expected, **CLOSE)
        assert list(orchard_jit.report().traced.values()) == [None]

    @of_each_kind
    def test_dropout_is_ours(self, routed, x):
        torch.manual_seed(3)
        expected = orchard_jit.flash_attention(x, x, x, dropout_p=0.5)
        state = torch.get_rng_state()
        torch.manual_seed(3)
        with routed(strict=True):
            out = F.scaled_dot_product_attention(x, x, x, dropout_p=0.5)
        assert torch.equal(*(y.values() if y.is_nested else y for y in (out, expected)))
        assert torch.equal(torch.get_rng_state(), state)

    def test_checkpointing_with_the_backward_inside(self, routed, device):
        q, k, v = inputs(device)
        with routed(strict=True):
            out = checkpoint(F.scaled_dot_product_attention, q, k, v, use_reentrant=False)
            out.sum().backward()
        expected = PYTORCHS(*(x.cpu() for x in (q, k, v)))
        torch.testing.assert_close(q.grad.cpu(), torch.autograd.grad(expected.sum(), q)[0].cpu(), **CLOSE)


class TestWhatPyTorchKeeps:
    def fallback(self, routed, *arguments, **options):
        """One that is counted, does what PyTorch does, and is an error if strict. Returns the reason."""
        expected = PYTORCHS(*arguments, **options)
        with routed():
            actual = F.scaled_dot_product_attention(*arguments, **options)
        assert torch.equal(actual, expected)
        report = orchard_jit.report()
        assert (report.calls, report.variants) == (1, {})
        ((reason, count),) = report.fallbacks.items()
        assert count == 1
        assert reason in str(report)
        with (
            routed(strict=True),
            pytest.raises(NotImplementedError, match="no kernel can take this call") as error,
        ):
            F.scaled_dot_product_attention(*arguments, **options)
        assert reason in str(error.value)
        return reason

    def test_a_last_dimension_that_is_not_dense(self, routed):
        assert "pass value.contiguous()" in self.fallback(routed, *inputs()[:2], strided())

    def test_a_mask_beside_is_causal(self, routed):
        mask = torch.ones(LENGTH, LENGTH, dtype=torch.bool)
        assert "give one of them" in self.fallback(routed, *inputs(), mask, is_causal=True)

    def test_wide_heads(self, routed):
        wide = torch.randn(1, 1, 3, 600)
        assert "1 to 512" in self.fallback(routed, wide, wide, wide)

    def test_tensors_without_data(self, routed):
        q = torch.empty(1, 2, 3, DIM, device="meta")
        with routed():
            assert F.scaled_dot_product_attention(q, q, q).shape == q.shape
        assert "is on meta" in next(iter(orchard_jit.report().fallbacks))

    def test_what_sdpa_kernel_asks_for(self, routed):
        """PyTorch's math has a double backward."""
        q, k, v = inputs()
        with sdpa_kernel(SDPBackend.MATH):
            reason = self.fallback(routed, q, k, v)
            with routed():
                (gradient,) = torch.autograd.grad(
                    F.scaled_dot_product_attention(q, k, v).sum(), q, create_graph=True
                )
            gradient.sum().backward()
        assert "sdpa_kernel" in reason

    def test_a_tensor_that_has_attention_of_its_own(self, routed):
        class Own(torch.Tensor):
            @classmethod
            def __torch_function__(cls, func, types, args=(), kwargs=None):
                return (
                    "its own" if func is PYTORCHS else super().__torch_function__(func, types, args, kwargs)
                )

        own = torch.randn(1, 1, 3, DIM).as_subclass(Own)
        with routed():
            assert F.scaled_dot_product_attention(own, own, own) == "its own"
        assert list(orchard_jit.report().fallbacks) == ["a Own has an attention of its own"]

    def test_dropout_draws_as_if_we_were_not_there(self, routed):
        q, k, _ = inputs()
        v = strided()
        torch.manual_seed(3)
        expected = PYTORCHS(q, k, v, dropout_p=0.5)
        torch.manual_seed(3)
        with routed():
            assert torch.equal(F.scaled_dot_product_attention(q, k, v, dropout_p=0.5), expected)

    def test_a_kernel_that_may_not_be_compiled(self, routed, monkeypatch):
        orchard_jit.flash_attention(*inputs())  # the operators are there
        monkeypatch.setenv("ORCHARD_JIT_OFFLINE", "1")
        odd = torch.randn(1, 1, 3, 39)
        assert "prebuild" in self.fallback(routed, odd, odd, odd)

    @pytest.mark.parametrize("strict", [False, True], ids=["", "strict"])
    def test_a_mistake_is_pytorchs_own_error(self, routed, strict):
        q, k, v = inputs()
        for wrong in (
            (q, k, v.double()),
            (q, k.half(), v),
            (q, k[..., :4], v),
            (q, k, v, torch.ones(3, 3)),
            (q, k, None),
            (q[0, 0, 0], k, v),
        ):
            with pytest.raises(Exception) as expected:
                PYTORCHS(*wrong)
            with routed(strict=strict), pytest.raises(expected.type) as actual:
                F.scaled_dot_product_attention(*wrong)
            assert str(actual.value) == str(expected.value)
        assert orchard_jit.report().calls == 0

    def test_reasons_of_a_long_run_take_bounded_memory(self, routed):
        with routed():
            for length in range(2, 204):
                wide = torch.empty(1, 1, 1, 512 + length)
                F.scaled_dot_product_attention(wide, wide, wide)
        fallbacks = orchard_jit.report().fallbacks
        assert sum(fallbacks.values()) == 202
        assert len(fallbacks) <= 101


class TestCompiled:
    def test_a_region_around_a_compiled_function(self, routed):
        calls = compiled(lambda q, k, v: F.scaled_dot_product_attention(q * 2, k, v, is_causal=True))
        q, k, v = inputs()
        expected = calls(q, k, v)
        assert orchard_jit.report().traced == {}
        with routed(strict=True):
            out = calls(q, k, v)
            actual = torch.autograd.grad(out.square().sum(), (q, k, v))
        torch.testing.assert_close(out, expected, **CLOSE)
        wanted = torch.autograd.grad(expected.square().sum(), (q, k, v))
        torch.testing.assert_close(actual, wanted, **CLOSE)
        assert list(orchard_jit.report(reset=True).traced.values()) == [None]
        calls(q, k, v)
        assert orchard_jit.report().traced == {}

    def test_what_no_kernel_can_take(self, routed):
        calls = compiled(lambda q, k, v: F.scaled_dot_product_attention(q, k, v))
        q, k, _ = inputs()
        v = strided()
        with routed():
            torch.testing.assert_close(calls(q, k, v), PYTORCHS(q, k, v), **CLOSE)
        (reason,) = orchard_jit.report().traced.values()
        assert "value must be dense" in reason
        with routed(strict=True), pytest.raises(Exception, match="value must be dense"):
            compiled(lambda q, k, v: F.scaled_dot_product_attention(q, k, v))(q, k, v)

    def test_every_refusal_is_known_while_tracing(self):
        """Else it would be an error when the graph runs."""
        q, k, v = inputs()
        for arguments in (
            (torch.randn(1, 1, 3, 600),) * 3,
            (q, k, v, torch.ones(LENGTH, LENGTH, dtype=torch.bool), 0.0, True),
            (q.half(), k.half(), v.half(), torch.randn(LENGTH, LENGTH)),
            (q, k[:, :, :0], v[:, :, :0]),
        ):
            with orchard_jit.sdpa():
                actual = compiled(lambda *given: F.scaled_dot_product_attention(*given))(*arguments)
            torch.testing.assert_close(actual, PYTORCHS(*arguments), rtol=1e-2, atol=1e-2)

    def test_pytorchs_transformer(self, routed):
        layer = torch.nn.TransformerEncoderLayer(16, 2, dim_feedforward=16, dropout=0.0, batch_first=True)
        x = torch.randn(2, LENGTH, 16)
        with routed(strict=True):
            torch.testing.assert_close(compiled(layer)(x), layer(x), **CLOSE)
        assert orchard_jit.report().traced


class TestOnAndOff:
    def test_restored_after_an_exception(self, routed):
        with pytest.raises(ZeroDivisionError), routed():
            1 / 0  # noqa: B018
        F.scaled_dot_product_attention(*inputs())
        assert F.scaled_dot_product_attention is PYTORCHS
        assert scaled_dot_product_attention is PYTORCHS
        assert orchard_jit.report().calls == 0

    def test_the_innermost_region_counts_and_only_once(self):
        q, k, _ = inputs()
        call = (q, k, strided())
        with orchard_jit.sdpa(strict=True):
            with orchard_jit.sdpa():
                F.scaled_dot_product_attention(*call)
            with pytest.raises(NotImplementedError):
                F.scaled_dot_product_attention(*call)
        assert orchard_jit.report().calls == 1

    def test_a_region_counts_more_than_the_process(self):
        q, k, _ = inputs()
        call = (q, k, strided())
        orchard_jit.replace_sdpa()
        with orchard_jit.sdpa(strict=True), pytest.raises(NotImplementedError):
            F.scaled_dot_product_attention(*call)
        F.scaled_dot_product_attention(*call)
        assert orchard_jit.report().calls == 1

    def test_replacing_twice_is_undone_at_once(self):
        fast_path = torch.backends.mha.get_fastpath_enabled()
        orchard_jit.replace_sdpa(strict=True)
        orchard_jit.replace_sdpa()
        F.scaled_dot_product_attention(*inputs()[:2], strided())
        orchard_jit.restore_sdpa()
        orchard_jit.restore_sdpa()
        assert F.scaled_dot_product_attention is PYTORCHS
        assert torch.backends.mha.get_fastpath_enabled() is fast_path

    def test_a_region_is_of_its_thread_and_a_replacement_of_all(self):
        def elsewhere():
            thread = threading.Thread(target=lambda: F.scaled_dot_product_attention(*inputs()))
            thread.start()
            thread.join()

        with orchard_jit.sdpa():
            elsewhere()
        assert orchard_jit.report().calls == 0
        with Replaced():
            elsewhere()
        assert orchard_jit.report().calls == 1

    def test_no_call_of_many_threads_is_lost(self):
        def work():
            with orchard_jit.sdpa():
                for _ in range(50):
                    F.scaled_dot_product_attention(*arguments)

        arguments = [x.detach() for x in inputs()]
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert orchard_jit.report().calls == 200


def test_a_report_reads_well():
    q, k, v = inputs()
    with orchard_jit.sdpa():
        F.scaled_dot_product_attention(q, k, v)
        F.scaled_dot_product_attention(q, k, strided())
        compiled(lambda q: F.scaled_dot_product_attention(q, q, q))(q)
    lines = str(orchard_jit.report()).splitlines()
    assert lines[0] == "attention: 2 calls, 1 of them by PyTorch's own"
    assert [line.split()[0] for line in lines[1:]] == ["1", "1", "1", "traced"]
    assert "backward-f32-d8" in lines[1]
    assert "PyTorch's own: the last dimension of value" in lines[3]
    assert "cpu float32 (2, 2, 9, 8)" in lines[4]
