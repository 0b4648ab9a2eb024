"""Pictures of measurements. matplotlib is optional: `pip install 'orchard_jit[plot]'`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from orchard_jit.commands.console import milliseconds
from orchard_jit.errors import OrchardError
from orchard_jit.tuning.candidates import differing, groups
from orchard_jit.tuning.result import Result, Timing, Tuning

_PANEL_INCHES = (6.0, 4.0)
_BAR_INCHES = 0.3
_DOTS_PER_INCH = 150
_FASTER, _SLOWER, _SHIPPED = "#2b7bba", "#9aa5b1", "#444444"


def require_matplotlib() -> None:
    """Refuse to begin what could not be drawn in the end.

    Raises:
        OrchardError: matplotlib is missing.

    """
    if find_spec("matplotlib") is None:
        raise OrchardError("--plot needs matplotlib. Install it with: pip install 'orchard_jit[plot]'")


def of_tuning(tuning: Tuning, path: Path) -> None:
    """Time of every candidate: a heat map where two sizes were varied together, bars otherwise."""
    panels = [(result, names) for result in tuning.results for names in groups(result.default)]
    heights = [
        _PANEL_INCHES[1] if len(names) == 2 else 1.5 + _BAR_INCHES * len(_varied(result, names))
        for result, names in panels
    ]
    figure, axes = _figure(len(panels), (_PANEL_INCHES[0] * len(panels), max(_PANEL_INCHES[1], *heights)))
    for (result, names), axis in zip(panels, axes, strict=True):
        timings = _varied(result, names)
        if len(names) == 2:
            _draw_heat_map(axis, result, names, timings)
        else:
            _draw_bars(axis, result, names, timings)
        axis.set_title(result.default.name, fontsize=10)
    _save(figure, path)


def of_bench(rows: Sequence[Mapping[str, Any]], title: str, path: Path) -> None:
    """PyTorch's time divided by ours, over the length: a panel for each pass, a line for each kind."""
    passes = [name for name in ("forward", "backward") if any(name in row for row in rows)]
    figure, axes = _figure(len(passes), (_PANEL_INCHES[0] * len(passes), _PANEL_INCHES[1]))
    for name, axis in zip(passes, axes, strict=True):
        for label, points in _lines(rows, name).items():
            axis.plot(*zip(*points, strict=True), marker="o", markersize=4, linewidth=1.5, label=label)
        axis.axhline(1, color=_SHIPPED, linewidth=1, linestyle="--")
        axis.set_xscale("log", base=2)
        lengths = sorted({row["length"] for row in rows})
        axis.set_xticks(lengths, [str(length) for length in lengths])
        axis.set_ylim(bottom=0)
        axis.set_xlabel("length")
        axis.set_ylabel("times as fast as PyTorch")
        axis.set_title(name)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7, frameon=False)
    figure.suptitle(title, fontsize=10)
    _save(figure, path)


def _lines(rows: Iterable[Mapping[str, Any]], name: str) -> dict[str, list[tuple[int, float]]]:
    """(length, ratio) by what else the calls differ in."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        words = [row["dtype"], f"D {row['head_dim']}", "causal" if row["causal"] else "full"]
        words += [row["mask"]] if row["mask"] != "none" else []
        words.append(f"{row['threads']} threads")
        lines.setdefault(", ".join(words), []).append((row["length"], row[name]["ratio"]))
    return {label: sorted(points) for label, points in lines.items()}


def _varied(result: Result, names: tuple[str, ...]) -> list[Timing]:
    """The candidates that differ from the default in these blocks alone, and the default."""
    return [timing for timing in result.timings if differing(result.default, timing.variant) <= {*names}]


def _draw_heat_map(axis: Any, result: Result, names: tuple[str, ...], timings: Sequence[Timing]) -> None:
    sizes = [tuple(dict(timing.variant.blocks)[name] for name in names) for timing in timings]
    across, down = (sorted(set(values)) for values in zip(*sizes, strict=True))
    grid = [[math.nan] * len(across) for _ in down]
    for (x, y), timing in zip(sizes, timings, strict=True):
        grid[down.index(y)][across.index(x)] = timing.ratio
    image = axis.imshow(grid, cmap="BrBG", vmin=0.8, vmax=1.2, aspect="auto", alpha=0.6)
    for (x, y), timing in zip(sizes, timings, strict=True):
        notes = [milliseconds(timing.seconds), f"{timing.ratio:.2f}"]
        notes += [note] if (note := result.note(timing)) else []
        weight = "bold" if note else "normal"
        axis.text(
            across.index(x),
            down.index(y),
            "\n".join(notes),
            ha="center",
            va="center",
            fontsize=7,
            weight=weight,
        )
    axis.set_xticks(range(len(across)), [str(x) for x in across])
    axis.set_yticks(range(len(down)), [str(y) for y in down])
    axis.set_xlabel(names[0])
    axis.set_ylabel(names[1])
    axis.figure.colorbar(image, ax=axis, label="times as fast as the shipped sizes")


def _draw_bars(axis: Any, result: Result, names: tuple[str, ...], timings: Sequence[Timing]) -> None:
    labels = [" / ".join(str(dict(timing.variant.blocks)[name]) for name in names) for timing in timings]
    colours = [
        _SHIPPED if timing.variant == result.default else _FASTER if timing.ratio > 1 else _SLOWER
        for timing in timings
    ]
    bars = axis.barh(labels, [1e3 * timing.seconds for timing in timings], color=colours)
    axis.bar_label(bars, [f"{timing.ratio:.2f}" for timing in timings], padding=3, fontsize=7)
    axis.invert_yaxis()
    axis.tick_params(axis="y", labelsize=7)
    axis.set_ylabel(" / ".join(names))
    axis.set_xlabel("ms; at the bars, times as fast as shipped (dark)")
    axis.margins(x=0.15)


def _figure(panels: int, inches: tuple[float, float]) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure  # not pyplot: no window, no state, no backend to choose

    figure = Figure(figsize=inches, layout="constrained")
    return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def _save(figure: Any, path: Path) -> None:
    try:
        figure.savefig(path, dpi=_DOTS_PER_INCH)
    except ValueError as error:  # a suffix that matplotlib can't write
        raise OrchardError(f"--plot {path}: {error}") from None
