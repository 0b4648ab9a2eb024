"""What became of the calls that were sent here: kernels that ran, and reasons why others could not."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from orchard_jit import call
from orchard_jit.blocks.forced import current
from orchard_jit.call import Arguments

# Both hold shapes, of which a long run can see many.
_MOST_REASONS = 100
_MOST_PLANS = 1000


@dataclass(frozen=True)
class Report:
    """What became of the calls of PyTorch's attention, and of Hugging Face models, that were sent here.

    Attributes:
        calls: How many there were, beside those that run in graphs.
        variants: How often each kernel was called for. A backward counts where an input required a gradient.
        fallbacks: How often PyTorch's own attention ran, by reason.
        traced: What `torch.compile` or a transform of `torch.func` has traced, each kind of call once,
            however often it runs then: why PyTorch's own attention runs there, or None where ours does.

    """

    calls: int
    variants: Mapping[str, int]
    fallbacks: Mapping[str, int]
    traced: Mapping[str, str | None]

    def __str__(self) -> str:
        missed = sum(self.fallbacks.values())
        lines = [f"attention: {self.calls} calls, {missed} of them by PyTorch's own"]
        lines += [f"{count:>8}  {name}" for name, count in _falling(self.variants)]
        lines += [f"{count:>8}  PyTorch's own: {reason}" for reason, count in _falling(self.fallbacks)]
        for name, reason in sorted(self.traced.items()):
            lines.append(f"  traced  {name}" + ("" if reason is None else f"; PyTorch's own: {reason}"))
        return "\n".join(lines)


class Ledger:
    """The counts, which threads share."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._plans: dict[Hashable, str] = {}
        self._clear()

    def _clear(self) -> None:
        self._served: Counter[tuple[str, bool]] = Counter()
        self._fallbacks: Counter[str] = Counter()
        self._traced: dict[str, str | None] = {}

    def plan(self, arguments: Arguments) -> str:
        """`call.plan`, which takes as long as a small call: once for all calls that are planned alike."""
        signature = _signature(arguments)
        with self._lock:
            plan = self._plans.get(signature)
        if plan is None:
            plan = call.plan(arguments)
            with self._lock:
                if len(self._plans) >= _MOST_PLANS:
                    self._plans.clear()
                self._plans[signature] = plan
        return plan

    def serve(self, plan: str, *, backward: bool) -> None:
        """Count a call that our kernels take, by its plan."""
        with self._lock:
            self._served[plan, backward] += 1

    def fall_back(self, reason: str) -> None:
        """Count a call that PyTorch's own attention takes."""
        with self._lock:
            known = reason in self._fallbacks or len(self._fallbacks) < _MOST_REASONS
            self._fallbacks[reason if known else "further reasons"] += 1

    def trace(self, name: str, reason: str | None) -> None:
        """Note a call in a graph; tracing comes by several times."""
        with self._lock:
            self._traced[name] = reason

    def read(self, *, reset: bool) -> Report:
        """What has been counted."""
        with self._lock:
            served, fallbacks, traced = self._served, self._fallbacks, self._traced
            if reset:
                self._clear()
            else:
                served, fallbacks, traced = served.copy(), fallbacks.copy(), traced.copy()
        variants: Counter[str] = Counter()
        for (plan, backward), count in served.items():
            kernels = call.planned(plan)
            variants[str(kernels["forward"])] += count
            if backward:
                variants[str(kernels["backward"])] += count
        return Report(served.total() + fallbacks.total(), dict(variants), dict(fallbacks), traced)


LEDGER = Ledger()


def report(*, reset: bool = False) -> Report:
    """What became of the calls that `sdpa`, `replace_sdpa` and Hugging Face models sent here, in all threads.

    Args:
        reset: Count from 0 again.

    """
    return LEDGER.read(reset=reset)


def _signature(given: Arguments) -> Hashable:
    """All of a call that decides what it runs."""
    query, bias = given.query, given.bias
    device = query.device.type
    return (
        device,
        call.autocast_dtype(device),
        *((tensor.shape, tensor.dtype, tensor.stride(-1)) for tensor in given[:3]),
        *(value is None for value in given[_FIRST_OPTION:_DROPOUT]),
        None if bias is None else (bias.dtype, bias.requires_grad),
        given.dropout > 0,
        given.score,
        given.blocks or current(),
    )


_FIRST_OPTION, _DROPOUT = (Arguments._fields.index(name) for name in ("left", "dropout"))


def _falling(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))
