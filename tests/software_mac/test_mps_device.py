"""``device="mps"`` on Linux: what PyTorch programs do with tensors, optimisers and seeds."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ziglang")
import torch
from software_mac import apple, mps
from torch import Tensor, nn

mps.install()


def on_mps(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*size, device="mps").to(dtype)


# The device


def test_the_device_is_there() -> None:
    assert torch.backends.mps.is_available()
    assert torch.backends.mps.is_built()
    assert torch.mps.device_count() == 1
    assert torch.accelerator.current_accelerator() == torch.device("mps")
    torch.mps.synchronize()
    torch.accelerator.synchronize()


def test_macos_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTWARE_MAC_MACOS_VERSION", "14.4")
    assert torch._C._mps_is_on_macos_or_newer(14, 4)
    assert not torch._C._mps_is_on_macos_or_newer(14, 5)
    assert not torch._C._mps_is_on_macos_or_newer(15, 0)


def test_float64_is_refused() -> None:
    with pytest.raises(TypeError, match="MPS framework doesn't support float64"):
        torch.ones(2, dtype=torch.float64, device="mps")


# Memory


def test_a_storage_pointer_is_the_buffer() -> None:
    before = apple.live_objects().get("SoftwareMacBuffer", 0)
    tensor = on_mps(4)
    view = tensor[2:]
    assert apple.live_objects()["SoftwareMacBuffer"] == before + 1
    assert view.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
    assert view.data_ptr() == tensor.data_ptr() + 8
    del tensor, view
    assert apple.live_objects().get("SoftwareMacBuffer", 0) == before


def test_new_memory_holds_nan() -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert torch.empty(3, dtype=dtype, device="mps").isnan().all()


def test_allocations_are_counted() -> None:
    mps.reset_allocations()
    start = mps.allocations()
    assert (start.count, start.peak) == (0, start.bytes)
    one = torch.empty(1000, device="mps")
    two = torch.empty(500, device="mps")
    del two
    now = mps.allocations()
    assert (now.count, now.bytes - start.bytes, now.peak - start.bytes) == (2, 4000, 6000)
    assert torch.mps.current_allocated_memory() == now.bytes
    assert one.view(10, 100)[3].unsqueeze(0).expand(5, 100).numel() == 500
    assert mps.allocations().count == 2
    torch.empty(0, device="mps")
    assert mps.allocations().count == 2


@pytest.mark.parametrize("mode", ["private", "shared"])
def test_storage_modes(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    monkeypatch.setenv("SOFTWARE_MAC_STORAGE", mode)
    x = on_mps(3, 4)
    assert torch.equal((x * 2).cpu(), x.cpu() * 2)


def test_an_unknown_storage_mode_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTWARE_MAC_STORAGE", "managed")
    with pytest.raises(RuntimeError, match="SOFTWARE_MAC_STORAGE=managed: accepted are private and shared"):
        torch.empty(1, device="mps")


def test_resizing_and_setting() -> None:
    x = torch.empty(0, device="mps").resize_(4).fill_(1)
    x.resize_(6)
    assert x[:4].tolist() == [1] * 4
    y = torch.zeros(1, device="mps").set_(x.untyped_storage(), 1, (2,), (2,))
    y.fill_(5)
    assert x[:4].tolist() == [1, 5, 1, 5]
    other: Any = torch.zeros(1, device="mps")
    assert other.set_(x).data_ptr() == x.data_ptr()
    assert other.set_().numel() == 0


# Operators: each gives on mps what it gives on cpu

OPERATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "strided": lambda x: x.t()[1:, ::2] + 1,
    "reshaped": lambda x: x.t().reshape(-1).view(4, 6),
    "expanded": lambda x: x.unsqueeze(0).expand(3, 6, 4) * 2,
    "unfolded": lambda x: x.unfold(1, 2, 1),
    "complex": lambda x: torch.view_as_real(torch.view_as_complex(x.reshape(12, 2)) * 1j),
    "conjugate": lambda x: torch.view_as_real(torch.view_as_complex(x.reshape(12, 2)).conj().clone()),
    "masked": lambda x: x[x > 0],
    "indexed": lambda x: x[torch.tensor([2, 0], device=x.device)],
    "written": lambda x: x.clone().index_fill_(0, torch.tensor([1], device=x.device), 3.0),
    "in place": lambda x: x.clone().mul_(2).add_(x),
    "out": lambda x: torch.mul(x, 3, out=torch.empty_like(x)),
    "out, resized": lambda x: torch.mul(x, 3, out=torch.empty(0, device=x.device)),
    "concatenated": lambda x: torch.cat([x, x.flip(0)], 1),
    "reduced": lambda x: x.softmax(-1).logsumexp(0),
    "multiplied": lambda x: x @ x.t(),
    "sorted": lambda x: x.sort(1).indices,
    "scalar": lambda x: torch.tensor(x.sum().item()),
    "normalised": lambda x: nn.functional.layer_norm(x, (4,)),
    "channels last": lambda x: x.view(1, 2, 3, 4).contiguous(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operator(name: str) -> None:
    x = torch.randn(6, 4)
    expected, actual = OPERATORS[name](x), OPERATORS[name](x.to("mps"))
    torch.testing.assert_close(actual.cpu(), expected)
    assert actual.stride() == expected.stride()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool])
def test_round_trip(dtype: torch.dtype) -> None:
    x = (torch.randn(5, 3) * 3).to(dtype)
    assert torch.equal(x.to("mps").t().contiguous().t().cpu(), x)
    assert x.to("mps").dtype == dtype


@pytest.mark.parametrize("mask", ["none", "causal", "boolean", "additive"])
def test_scaled_dot_product_attention(mask: str) -> None:
    masks = {"boolean": torch.rand(5, 5) > 0.3, "additive": torch.randn(5, 5)}
    query, key, value = (torch.randn(1, 2, 5, 8, requires_grad=True) for _ in range(3))

    def run(device: str) -> tuple[Tensor, Tensor]:
        q, k, v = (x.detach().to(device).requires_grad_() for x in (query, key, value))
        chosen = masks[mask].to(device) if mask in masks else None
        out = nn.functional.scaled_dot_product_attention(q, k, v, chosen, is_causal=mask == "causal")
        (gradient,) = torch.autograd.grad(out.sum(), q)
        return out.cpu(), gradient.cpu()

    torch.testing.assert_close(run("mps"), run("cpu"))


def test_printing() -> None:
    assert str(torch.ones(2, device="mps")) == "tensor([1., 1.], device='mps:0')"


def test_autocast() -> None:
    x = on_mps(4, 4)
    with torch.autocast("mps", dtype=torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16


def test_events() -> None:
    start, end = torch.mps.Event(enable_timing=True), torch.mps.Event(enable_timing=True)
    start.record()
    on_mps(64, 64).sum()
    end.record()
    assert start.elapsed_time(end) > 0


def test_saving_and_loading_on_the_cpu() -> None:
    model = nn.Linear(3, 2).to("mps")
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    loaded = torch.load(file, map_location="cpu")
    assert torch.equal(loaded["weight"], model.weight.cpu())


# Training


@pytest.mark.parametrize("optimiser", [torch.optim.SGD, torch.optim.AdamW])
def test_training_is_the_same_as_on_the_cpu(optimiser: type[torch.optim.Optimizer]) -> None:
    def train(device: str) -> list[float]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 1)).to(device)
        inputs = torch.randn(16, 4).to(device)
        step = optimiser(model.parameters(), lr=0.05)  # type: ignore[call-arg]
        losses = []
        for _ in range(5):
            loss = (model(inputs) - 1).square().mean()
            step.zero_grad()
            loss.backward()
            step.step()
            losses.append(loss.item())
        return losses

    losses = train("mps")
    assert losses == pytest.approx(train("cpu"), rel=1e-4)
    assert losses[-1] < losses[0]


# Seeds

DRAWS: dict[str, Callable[[], Tensor]] = {
    "randn": lambda: torch.randn(8, device="mps"),
    "rand": lambda: torch.rand(8, device="mps"),
    "randint": lambda: torch.randint(100, (8,), device="mps"),
    "randperm": lambda: torch.randperm(8, device="mps"),
    "dropout": lambda: nn.functional.dropout(torch.ones(64, device="mps")),
    "bernoulli": lambda: torch.bernoulli(torch.full((64,), 0.5, device="mps")),
}


@pytest.mark.parametrize("seed", [torch.manual_seed, torch.mps.manual_seed])
@pytest.mark.parametrize("name", DRAWS)
def test_seeds(name: str, seed: Callable[[int], object]) -> None:
    seed(1)
    first, second = DRAWS[name](), DRAWS[name]()
    seed(1)
    assert torch.equal(DRAWS[name](), first)
    assert torch.equal(DRAWS[name](), second)
    assert not torch.equal(first, second)


def test_generators_are_independent() -> None:
    one, two = torch.Generator("mps").manual_seed(3), torch.Generator("mps").manual_seed(3)
    torch.mps.manual_seed(5)
    state = torch.mps.get_rng_state()
    first = torch.rand(4, generator=one, device="mps")
    torch.rand(4)
    assert torch.equal(first, torch.rand(4, generator=two, device="mps"))
    assert torch.equal(state, torch.mps.get_rng_state())
    drawn = torch.rand(2, device="mps")
    torch.mps.set_rng_state(state)
    assert torch.equal(drawn, torch.rand(2, device="mps"))


# The process


def test_a_process_may_end_right_after_a_backward() -> None:
    """Three at once, on the cores of few: the thread that ran the backward is likely to be late."""
    code = """
from software_mac import mps
mps.install()
import torch
torch.ones(4, device="mps", requires_grad=True).mul(2).sum().backward()
"""
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    running = [subprocess.Popen(command, env=environment) for _ in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
