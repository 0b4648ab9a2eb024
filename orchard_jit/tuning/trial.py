"""The trial of one kernel's block sizes: build, check, time."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from orchard_jit import backends, blocks, call
from orchard_jit.blocks.forced import written
from orchard_jit.blocks.table import features
from orchard_jit.call import Arguments
from orchard_jit.errors import OrchardError
from orchard_jit.timing import Work
from orchard_jit.tuning.candidates import built, differing, fault, groups, neighbours
from orchard_jit.tuning.race import Gain, Race, Runner
from orchard_jit.tuning.result import Rejection, Result, Timing, sizes_text
from orchard_jit.variant import Variant

_BUILD_SHARE = 0.5
"""Of the time that a trial has."""

Draw = Callable[[str, float], None]


class Trial:
    """The trial of one kernel's block sizes."""

    def __init__(self, name: str, arguments: Arguments, seconds: float, draw: Draw) -> None:
        self._name = name
        self._arguments = _detached(arguments)
        self._begin = time.monotonic()
        self._end = self._begin + seconds
        self._draw = draw
        self._in_force = call.variants(arguments)[name]
        self._differentiated = _differentiated(arguments)
        self._default = self._in_force.with_blocks(blocks.shipped(self._in_force))
        self._rejected: list[Rejection] = []
        self._expected: Sequence[torch.Tensor] = ()

    def result(self) -> Result:
        """Build, check, time."""
        variants = list(dict.fromkeys((self._default, self._in_force, *neighbours(self._default))))
        ready = self._built(variants)
        if self._default not in ready:
            raise OrchardError(f"the default can't be built: {self._rejected[0].reason}")
        default, *others = self._checked(ready)
        race = Race(default, others, self._arguments.query.device.type)
        finalists = race.heats(
            self._end - time.monotonic(), lambda left: self._tell(f"timing {left} block sizes")
        )
        finalists += self._combined(race)
        self._tell(f"timing the last {len(finalists)}")
        final = race.final(finalists, self._end)
        timings = [_timing(race, runner) for runner in (default, *race.others)]
        timings.sort(key=lambda timing: timing.ratio, reverse=True)
        untried = (
            {*variants} - {timing.variant for timing in timings} - {each.variant for each in self._rejected}
        )
        best = _timing(race, final[0]) if final and final[1].counts else None
        return Result(
            self._default,
            tuple(timings),
            tuple(self._rejected),
            len(untried),
            best,
            self._entry(best, final[1] if final else None),
        )

    def _built(self, variants: Sequence[Variant]) -> list[Variant]:
        def tell(done: int) -> None:
            self._tell(f"built {done} of {len(variants)} block sizes")

        ready, rejected = built(variants, self._begin + _BUILD_SHARE * (self._end - self._begin), tell)
        self._rejected += rejected
        return ready

    def _checked(self, variants: Sequence[Variant]) -> list[Runner]:
        """Those with the default's results, the default first; each has been called once then."""
        runners: list[Runner] = []
        for number, variant in enumerate(variants, 1):
            if len(runners) > 1 and time.monotonic() > self._end:
                break
            self._tell(f"checking {number} of {len(variants)} block sizes")
            try:
                work = self._work(variant)
                results = _tensors(work())
            except (RuntimeError, ValueError) as error:
                self._rejected.append(Rejection(variant, str(error)))
                continue
            if variant == self._default:
                self._expected = results
                if not all(tensor[tensor != -torch.inf].isfinite().all() for tensor in results):
                    raise ValueError("tune needs a query, key and value whose attention is finite")
            if wrong := fault(results, self._expected):
                self._rejected.append(Rejection(variant, wrong))
            else:
                runners.append(Runner(variant, work))
        if not runners or runners[0].variant != self._default:
            raise OrchardError(f"the default does not run: {self._rejected[-1].reason}")
        return runners

    def _work(self, variant: Variant) -> Work:
        """One call of the kernel, outputs allocated."""
        arguments = self._arguments._replace(blocks=written(variant.kernel, dict(variant.blocks)))
        if self._name == "forward":
            return lambda: call.forward(arguments)
        leaves = {name: getattr(arguments, name).detach().requires_grad_() for name in self._differentiated}
        out, _ = call.forward(arguments._replace(**leaves))
        generator = torch.Generator().manual_seed(0)
        grad_out = torch.randn(out.shape, generator=generator).to(out)
        return lambda: torch.autograd.grad(out, [*leaves.values()], grad_out, retain_graph=True)

    def _combined(self, race: Race) -> list[Runner]:
        """Where several kernels were varied, each for itself: the best of each, together."""
        varied = groups(self._default)
        if len(varied) < 2 or not race.others:
            return []
        chosen = dict(self._default.blocks)
        for names in varied:
            own = [r for r in race.others if differing(self._default, r.variant) <= {*names}]
            best = max(own, key=race.ratio, default=race.default)
            if race.ratio(best) > 1:
                chosen |= {name: size for name, size in best.variant.blocks if name in names}
        variant = self._default.with_blocks(chosen)
        if variant in (self._default, *(runner.variant for runner in race.others)):
            return []
        runners = self._checked([self._default, *self._built([variant])])[1:]
        race.others += runners
        return runners

    def _entry(self, best: Timing | None, gain: Gain | None) -> dict[str, Any]:
        default, query, key = self._default, self._arguments.query, self._arguments.key
        last = 1 << (max(query.shape[-2], key.shape[-2], 1) - 1).bit_length()
        head_dim = max(default.head_dim, default.head_dim_v)
        scope = {
            "backend": default.backend,
            "arch": default.arch,
            "device": backends.get(default.backend).device(),
            "kernel": default.kernel,
            "dtype": default.dtype,
            "head_dim": [head_dim, head_dim],
            "features": features(default),
            "length": [last // 2 + 1, last],
        }
        if best is None or gain is None:
            return scope
        return {
            **scope,
            "blocks": dict(best.variant.blocks),
            "reason": f"{gain.ratio:.3f} ± {gain.noise:.3f} times as fast as {sizes_text(default)}",
            "measured": {
                "date": datetime.datetime.now(tz=datetime.timezone.utc).strftime("%Y-%m-%d"),
                "query": list(query.shape),
                "key": list(key.shape),
                "threads": torch.get_num_threads(),
                "rounds": best.rounds,
                "seconds": best.seconds,
                "fastest": best.fastest,
            },
        }

    def _tell(self, text: str) -> None:
        share = (time.monotonic() - self._begin) / max(self._end - self._begin, 1e-9)
        self._draw(f"{self._name}: {text}", share)


def _timing(race: Race, runner: Runner) -> Timing:
    times = runner.times.values()
    return Timing(runner.variant, runner.seconds, min(times), race.ratio(runner), len(times))


def _tensors(results: Any) -> list[torch.Tensor]:
    return [tensor.detach().clone() for tensor in results]


def _differentiated(arguments: Arguments) -> tuple[str, ...]:
    """The inputs that have a gradient; that of sinks is no part of a kernel."""
    of_bias = arguments.bias is not None and arguments.bias.requires_grad
    return ("query", "key", "value", *(("bias",) if of_bias else ()))


def _detached(arguments: Arguments) -> Arguments:
    values: list[Any] = [value.detach() if isinstance(value, torch.Tensor) else value for value in arguments]
    return Arguments(*values)
