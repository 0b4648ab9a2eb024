"""`tune`: the block sizes that are fastest on this machine, for calls of one kind."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from typing_extensions import Unpack

from orchard_jit import binding, blocks
from orchard_jit.jit import lock, progress
from orchard_jit.options import Options, resolve

if TYPE_CHECKING:
    from orchard_jit.tuning.result import Result, Tuning

PASSES = ("forward", "backward")


def tune(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    budget: float = 60.0,
    passes: Sequence[str] = PASSES,
    keep: bool = True,
    **options: Unpack[Options],
) -> Tuning:
    """Build the kernels of a call in other block sizes, check their results, time them, and keep the best.

    What is kept holds from then on, in every process of this user on this model of processor or GPU, for
    calls with the same head dim, dtype and features, of any length: a kernel serves them all. Tuning the same
    call for other lengths replaces the choice.

    Args:
        query, key, value, options: As in `flash_attention`; nested tensors are not accepted.
        budget: Seconds for everything. Where it is short, those least like the default are left untried.
        passes: Which of "forward" and "backward".
        keep: Whether to write the best sizes to the file of tuned ones, where they gain more than the noise.

    Returns:
        All candidates with their times. `print` it, or use `specialize(**tuning.blocks)`.

    Raises:
        ValueError: The call can't be made, or its results are not finite.
        OrchardError: The default kernel can't be built, or the file of tuned sizes can't be used.

    """
    # Programs that only call attention don't pay for these.
    from orchard_jit.tuning.result import Tuning
    from orchard_jit.tuning.trial import Trial

    if query.is_nested:
        raise NotImplementedError("tune takes query, key and value as dense tensors, not as nested ones")
    if unknown := [name for name in passes if name not in PASSES]:
        raise ValueError(f"passes must be of {', '.join(PASSES)}; got {', '.join(map(repr, unknown))}")
    blocks.tuned_table()  # one that can't be used is an error before the work, not after it
    arguments = resolve(query, key, value, **options)
    binding.load()  # seconds where the operators are not compiled yet, which is no part of tuning
    deadline = time.monotonic() + budget
    results = []
    plain = torch.autocast(query.device.type, enabled=False)  # a kernel is tuned for the dtype that is given
    with torch.enable_grad(), plain, progress.bar() as draw:
        for number, name in enumerate(passes):
            seconds = (deadline - time.monotonic()) / (len(passes) - number)
            results.append(Trial(name, arguments, seconds, draw).result())
    for rejection in (rejection for result in results for rejection in result.rejected):
        warnings.warn(f"orchard_jit: dropped {rejection.variant}: {rejection.reason}", stacklevel=2)
    if keep:
        _write(results)
    return Tuning(tuple(results), blocks.tuned_path() if keep else None)


def _write(results: Sequence[Result]) -> None:
    """Keep the best sizes, and forget older ones of the same scope that are the best no more."""
    path = blocks.tuned_path()

    def waiting(holder: str) -> None:
        progress.say(f"waiting for {path}: {holder} is writing it")

    with lock.held(path.with_name(f"{path.name}.lock"), waiting):
        before = table = blocks.tuned_table()
        for result in results:
            entry = result.entry
            table = table.with_first(entry) if result.best else table.without(entry)
        if table.entries != before.entries:
            table.write(path)
    binding.forget_kernels()
