"""Find the block sizes that are fastest for a shape, on this machine.

    python examples/best_blocks.py                                     # about a minute
    python examples/best_blocks.py --shape 1,16,4096,128 --dtype bfloat16 --causal --budget 300 --keep

A kernel walks through queries and keys in blocks, whose sizes are compiled in. Those that ship are good ones;
which are best depends on the processor's caches and on the call. `tune` compiles others, drops what computes
anything else, times the rest in turn, and says which is faster by more than the noise. The plot shows all.

With `--keep` every later call of this kind takes the best, in all of your programs; without it nothing stays.
"""

from __future__ import annotations

import argparse
import statistics
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

import orchard_jit
from orchard_jit.tuning.result import Timing, Tuning


def inputs_of(shape: str, dtype: str, device: str) -> list[torch.Tensor]:
    """Query, key and value."""
    sizes = [int(size) for size in shape.split(",")]
    options: dict[str, Any] = {"dtype": getattr(torch, dtype), "device": device, "requires_grad": True}
    return [torch.randn(sizes, **options) for _ in range(3)]


def milliseconds(inputs: list[torch.Tensor], options: dict[str, Any]) -> float:
    """Of one forward and backward."""
    started = time.perf_counter()
    out = orchard_jit.flash_attention(*inputs, **options)
    torch.autograd.grad(out, inputs, torch.ones_like(out))
    if out.device.type == "mps":
        torch.mps.synchronize()
    return 1e3 * (time.perf_counter() - started)


def compare(
    inputs: list[torch.Tensor], options: dict[str, Any], blocks: dict[str, Any], rounds: int = 15
) -> tuple[float, float]:
    """Milliseconds with the sizes in force and with these, in turn: a noisy machine slows both alike."""
    times = []
    for _ in range(rounds + 1):  # the first round warms up
        before = milliseconds(inputs, options)
        with orchard_jit.specialize(**blocks):
            times.append((before, milliseconds(inputs, options)))
    before, after = zip(*times[1:], strict=True)
    return statistics.median(before), statistics.median(after)


def draw(tuning: Tuning, title: str, path: Path) -> None:
    """Of each kernel, how much faster than the shipped sizes all others are that were tried."""
    from matplotlib.figure import Figure

    ink, grey, blue, faded = "#22303c", "#b8c2cc", "#1f6fb2", "#8fbbe0"
    most = max(len(result.timings) for result in tuning.results)
    figure = Figure(figsize=(9, 1.4 + 0.2 * most), dpi=160, layout="constrained")
    axes = figure.subplots(1, len(tuning.results), squeeze=False)[0]
    for axis, result in zip(axes, tuning.results, strict=True):
        for place, timing in enumerate(result.timings):
            note = result.note(timing)
            color = {"best": blue, "shipped": ink}.get(note, faded)
            gain = 100 * (timing.ratio - 1)
            axis.plot([0, gain], [place, place], color=color, linewidth=1.5)
            axis.plot(gain, place, "o", color=color, markersize=5)
            label = f"{1e3 * timing.fastest:.2f} ms  {note}"
            axis.annotate(
                label, (1, place), xycoords=axis.get_yaxis_transform(), va="center", fontsize=7, color=ink
            )
        axis.set_yticks(range(len(result.timings)), [sizes_of(timing) for timing in result.timings])
        axis.axvline(0, color=ink, linewidth=0.8)
        axis.invert_yaxis()
        axis.set_title(result.default.kernel, loc="left", color=ink)
        axis.set_xlabel("% faster than the shipped sizes", color=ink)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.spines["bottom"].set_color(grey)
        axis.tick_params(colors=ink, labelsize=7.5)
        axis.tick_params(axis="y", length=0)
        axis.grid(axis="y", color=grey, alpha=0.3, linewidth=0.6)
        axis.margins(x=0.1, y=0.02)
    figure.suptitle(title, x=0.01, ha="left", color=ink, weight="bold")
    figure.savefig(path)


def sizes_of(timing: Timing) -> str:
    """As "k=96 q=256"."""
    return " ".join(f"{name}={size}" for name, size in timing.variant.blocks)


def main() -> None:
    """Explain, tune, draw, compare."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shape", default="1,4,1024,64", metavar="B,H,S,D", help="(default: 1,4,1024,64)")
    parser.add_argument("--dtype", default="float32", help="(default: float32)")
    parser.add_argument("--causal", action="store_true")
    parser.add_argument("--device", choices=("cpu", "mps"), default="cpu")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds for everything (default: 60)")
    parser.add_argument("--keep", action="store_true", help="for all later calls of this kind")
    parser.add_argument("--plot", type=Path, default=Path("best_blocks.png"), metavar="FILE")
    arguments = parser.parse_args()
    inputs = inputs_of(arguments.shape, arguments.dtype, arguments.device)
    options = {"causal": arguments.causal}

    print("Now:\n")
    print(orchard_jit.explain(*inputs, **options))

    tuning = orchard_jit.tune(*inputs, **options, budget=arguments.budget, keep=arguments.keep)
    print("\nFound:\n")
    print(tuning)
    if find_spec("matplotlib"):
        draw(tuning, f"Block sizes for {arguments.shape} in {arguments.dtype}", arguments.plot)
        print(f"drawn in {arguments.plot}")
    else:
        print("not drawn: pip install 'orchard_jit[plot]'")

    with orchard_jit.specialize(**tuning.blocks):  # these sizes for the calls in here, whatever is kept
        print("\nWith the best sizes:\n")
        print(orchard_jit.explain(*inputs, **options))
    before, after = compare(inputs, options, tuning.blocks)
    print(f"\nforward and backward: {before:.2f} ms before, {after:.2f} ms with them")


if __name__ == "__main__":
    main()
