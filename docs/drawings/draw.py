"""Draws the pictures of the pages: `python docs/drawings/draw.py [FOLDER]`.

A picture has a card of its own behind it, so that it reads on any page, and darker colours where the reader
prefers them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from html import escape
from pathlib import Path

LIGHT = {
    "card": "#ffffff",
    "edge": "#d0d7de",
    "band": "#f5f7f9",
    "text": "#1f2328",
    "soft": "#636c76",
    "line": "#57606a",
    "box": "#ffffff",
    "cool": "#ddf0ff",
    "cool-edge": "#3b82c4",
    "warm": "#ffe9cf",
    "warm-edge": "#c9761c",
    "leaf": "#dcf5e3",
    "leaf-edge": "#2f8f52",
    "tile": "#e4e9ee",
    "void": "#fafbfc",
}
DARK = {
    "card": "#161b22",
    "edge": "#3d444d",
    "band": "#1c2229",
    "text": "#e6edf3",
    "soft": "#9aa4af",
    "line": "#8b949e",
    "box": "#21262d",
    "cool": "#15324b",
    "cool-edge": "#58a6e8",
    "warm": "#48300f",
    "warm-edge": "#e3a04d",
    "leaf": "#163a24",
    "leaf-edge": "#56c27c",
    "tile": "#323a44",
    "void": "#1a1f26",
}
FILLED = {
    "box": "edge",
    "cool": "cool-edge",
    "warm": "warm-edge",
    "leaf": "leaf-edge",
    "tile": "edge",
    "void": "edge",
}
"""The kinds of boxes, with the colours of their borders."""

Parts = Iterable[str]


def palette(colours: dict[str, str]) -> str:
    """The rules that colour everything."""
    rules = [f".card{{fill:{colours['card']};stroke:{colours['edge']}}}.band{{fill:{colours['band']}}}"]
    rules += [f".{kind}{{fill:{colours[kind]};stroke:{colours[edge]}}}" for kind, edge in FILLED.items()]
    rules += [f".t{{fill:{colours['text']}}}.s{{fill:{colours['soft']}}}.arrow{{stroke:{colours['line']}}}"]
    rules += [f".head{{fill:{colours['line']}}}"]
    rules += [
        f".{kind}-arrow{{stroke:{colours[f'{kind}-edge']}}}.{kind}-head{{fill:{colours[f'{kind}-edge']}}}"
        for kind in ("cool", "warm", "leaf")
    ]
    return "".join(rules)


def picture(width: int, height: int, title: str, parts: Parts) -> str:
    """The whole file."""
    style = (
        "text{font-family:system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif;font-size:14px}"
        ".b{font-weight:600}.m{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;font-size:13px}"
        ".n{font-size:12px}.arrow,.cool-arrow,.warm-arrow,.leaf-arrow{fill:none;stroke-width:1.6}"
        f"{palette(LIGHT)}@media (prefers-color-scheme:dark){{{palette(DARK)}}}"
    )
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    card = f'<rect class="card" x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="12"/>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">'
    lines = [head, f"<title>{escape(title)}</title>", f"<style>{style}</style>", card]
    return "\n".join([*lines, *parts, "</svg>"]) + "\n"


def text(x: float, y: float, words: str, kind: str = "t", anchor: str = "middle") -> str:
    """A line of words; `kind` is of the style sheet."""
    return f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(words)}</text>'


def rect(
    x: float, y: float, width: float, height: float, kind: str, radius: float = 0, stroke: float = 1
) -> str:
    """A box."""
    size = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"'
    return f'<rect class="{kind}" {size} rx="{radius:g}" stroke-width="{stroke:g}"/>'


def arrow(points: list[tuple[float, float]], kind: str = "", dashed: bool = False) -> str:
    """Along the points, with a head at the last one."""
    (x, y), (last_x, last_y) = points[-2], points[-1]
    along = ((last_x > x) - (last_x < x), (last_y > y) - (last_y < y))
    neck = (last_x - 8 * along[0], last_y - 8 * along[1])
    sides = [(neck[0] + turn * 4.5 * along[1], neck[1] + turn * 4.5 * along[0]) for turn in (1, -1)]
    prefix = f"{kind}-" if kind else ""
    path = " ".join(f"{px:g},{py:g}" for px, py in [*points[:-1], neck])
    corners = " ".join(f"{px:g},{py:g}" for px, py in [(last_x, last_y), *sides])
    dashes = ' stroke-dasharray="5 4"' if dashed else ""
    return (
        f'<polyline class="{prefix}arrow" points="{path}" stroke-linejoin="round"{dashes}/>'
        f'<polygon class="{prefix}head" points="{corners}"/>'
    )


def station(x: float, y: float, name: str, below: str, kind: str) -> Parts:
    """A box of the pipeline: what it is called, and what it is."""
    yield rect(x, y, 196, 62, kind, 8, 1.4)
    yield text(x + 98, y + 26, name, "t b")
    yield text(x + 98, y + 46, below, "s n")


def pipeline() -> str:
    """From a call to its kernel."""
    left = (32, 262, 492, 722)

    def row(y: float, label: str, time: str, names: list[tuple[str, str]], kind: str) -> Parts:
        yield rect(16, y - 16, 918, 114, "band", 8)
        yield text(32, y + 84, label, "t b", "start")
        yield text(918, y + 84, time, "s", "end")
        for x, (name, below) in zip(left, names, strict=False):
            yield from station(x, y, name, below, kind)
        for x in left[: len(names) - 1]:
            yield arrow([(x + 196, y + 31), (x + 230, y + 31)])

    calls = [
        ("call", "flash_attention(q, k, v, …)"),
        ("request", "dtype, head dims, features"),
        ("kernel table", "in C++, by request"),
        ("dispatch", "the kernel runs"),
    ]
    processes = [
        ("variant", "request, arch, block sizes"),
        ("key", "SHA-256 of all that decides"),
        ("cache", "prebuilt folders, then yours"),
        ("load", "verify, hold, dlopen"),
    ]
    builds = [
        ("render", "Jinja: C++, or Metal and host"),
        ("build", "in a folder of its own"),
        ("publish", "manifest, fsync, rename"),
    ]
    parts = [
        *row(32, "every call", "microseconds", calls, "leaf"),
        *row(186, "the first of its kind in a process", "a millisecond a library", processes, "cool"),
        *row(340, "the first of its kind on a machine", "seconds", builds, "warm"),
        arrow([(560, 94), (560, 150), (130, 150), (130, 186)], "cool"),
        text(345, 145, "not in the table", "s n"),
        arrow([(820, 186), (820, 150), (620, 150), (620, 94)], "cool"),
        text(720, 145, "entry points", "s n"),
        arrow([(560, 248), (560, 304), (130, 304), (130, 340)], "warm"),
        text(345, 299, "not in any of them", "s n"),
        arrow([(620, 340), (620, 248)], "warm"),
        text(722, 356, "Locked by key: one process builds,", "s n", "start"),
        text(722, 374, "the others wait. Offline: an error", "s n", "start"),
        text(722, 392, "with the command to prebuild it.", "s n", "start"),
    ]
    return picture(950, 456, "From a call to its kernel: table, cache, build", parts)


CELL = 34
BLOCKS = 6


def scores(x: float, y: float, chosen: Callable[[int, int], bool], kind: str) -> Parts:
    """A causal matrix of scores in tiles: what is skipped, what is on the diagonal, what is chosen."""
    for i in range(BLOCKS):
        for j in range(BLOCKS):
            seen = j <= i
            style = (kind if chosen(i, j) else "tile") if seen else "void"
            yield rect(x + j * CELL, y + i * CELL, CELL - 3, CELL - 3, style, 3)
        yield corner(x + i * CELL, y + i * CELL)


def corner(x: float, y: float) -> str:
    """What of a tile on the diagonal is hidden."""
    end = CELL - 3
    points = f"{x:g},{y:g} {x + end:g},{y:g} {x + end:g},{y + end:g}"
    return f'<polygon class="void" points="{points}" opacity="0.85"/>'


def strip(x: float, y: float, chosen: Iterable[int], kind: str, down: bool, thickness: float = 44) -> Parts:
    """The blocks of a tensor beside the scores, down or across."""
    for i in range(BLOCKS):
        style = kind if i in chosen else "tile"
        if down:
            yield rect(x, y + i * CELL, thickness, CELL - 3, style, 3)
        else:
            yield rect(x + i * CELL, y, CELL - 3, thickness, style, 3)


def forward() -> str:
    """The tiles of a forward pass."""
    x, y, row = 150, 122, 4
    size = BLOCKS * CELL - 3
    parts = [
        text(32, 38, "forward", "t b", "start"),
        text(100, 38, "a task owns a block of queries and walks over the keys that they see", "s", "start"),
        *strip(x - 70, y, [row], "cool", True),
        text(x - 48, y - 12, "Q", "t b"),
        *strip(x, y - 54, range(row + 1), "warm", False),
        text(x - 14, y - 26, "K", "t b", "end"),
        *scores(x, y, lambda i, j: i == row, "leaf"),
        *strip(x, y + size + 10, range(row + 1), "warm", False),
        text(x - 14, y + size + 38, "V", "t b", "end"),
        *strip(x + size + 26, y, [row], "cool", True),
        text(x + size + 48, y - 12, "O", "t b"),
        *strip(x + size + 78, y, [row], "cool", True, 8),
        *strip(x + size + 92, y, [row], "cool", True, 8),
        text(x + size + 89, y - 12, "m, l", "t b"),
        arrow([(x + 8, y + row * CELL + 15), (x + (row + 1) * CELL - 10, y + row * CELL + 15)], "leaf"),
    ]
    left = 500
    steps = [
        ("cool", "Once", "load Q; O = 0, m = -inf, l = 0"),
        ("warm", "For each block of keys", "S = scale · log2(e) · Q Kᵀ"),
        ("leaf", "", "score function, bias; hide what is hidden"),
        ("leaf", "", "m' = max(m, rowmax S);  P = exp2(S - m')"),
        ("leaf", "", "l = l · exp2(m - m') + rowsum P"),
        ("warm", "", "O = O · exp2(m - m') + dropout(P) V"),
        ("cool", "In the end", "O / l, and the log-sum-exp m + log2(l)"),
    ]
    for number, (kind, when, what) in enumerate(steps):
        top = 84 + 37 * number
        parts += [rect(left, top, 10, 24, kind, 3), text(left + 172, top + 17, what, "t m", "start")]
        parts += [text(left + 22, top + 17, when, "s", "start")] if when else []
    parts += [
        rect(left, 356, 14, 14, "void", 3),
        text(left + 22, 368, "blocks that nobody in them sees: skipped", "s n", "start"),
        rect(left + 258, 356, 14, 14, "tile", 3),
        text(left + 280, 368, "other tasks", "s n", "start"),
        text(left, 394, "Only the blocks on the border are compared place by place.", "s n", "start"),
    ]
    return picture(1020, 418, "The forward pass: tiles of scores, one block of queries to a task", parts)


def backward() -> str:
    """The tiles of a backward pass."""
    y, owned = 150, 3
    size = BLOCKS * CELL - 3
    middle = owned * CELL + 15

    def panel(x: float, name: str, how: str, queries: range, keys: range, kinds: tuple[str, str]) -> Parts:
        """What both kernels have: the blocks that meet, and the scores where they do."""
        yield text(x - 130, 40, name, "t b", "start")
        yield text(x - 130, 62, how, "s", "start")
        for number, tensor in enumerate(("Q", "dO")):
            yield from strip(x - 104 + 34 * number, y, queries, kinds[0], True, 28)
            yield text(x - 90 + 34 * number, y - 12, tensor, "t b")
        for number, tensor in enumerate(("K", "V")):
            yield from strip(x, y - 72 + 34 * number, keys, kinds[1], False, 28)
            yield text(x - 12, y - 53 + 34 * number, tensor, "t b", "end")
        yield from scores(x, y, lambda i, j: i in queries and j in keys, "leaf")

    left, right = 162, 640
    one = range(owned, owned + 1)
    grad_query = ("P = exp2(S - lse), computed again", "dS = P ∘ (dO Vᵀ - delta)", "dQ += scale · dS K")
    grad_key_value = ("dV += Pᵀ dO", "dK += scale · dSᵀ Q")
    notes = (
        (100, "delta = rowsum(dO ∘ O)"),
        (118, "is computed before."),
        (146, "Whoever owns a block"),
        (164, "writes it alone: no"),
        (182, "atomics, one order."),
    )
    parts = [
        *panel(left, "dQ", "a block of queries walks over its keys", one, range(owned + 1), ("cool", "warm")),
        arrow([(left + 8, y + middle), (left + (owned + 1) * CELL - 10, y + middle)], "leaf"),
        *strip(left + size + 18, y, one, "cool", True, 28),
        text(left + size + 32, y - 12, "dQ", "t b"),
        *(
            text(left - 104, y + size + 42 + 26 * i, line, "t m", "start")
            for i, line in enumerate(grad_query)
        ),
        '<line class="arrow" x1="464" y1="28" x2="464" y2="444" opacity="0.35"/>',
        *panel(
            right,
            "dK, dV",
            "a block of keys walks over the queries that see it",
            range(owned, BLOCKS),
            one,
            ("cool", "warm"),
        ),
        arrow([(right + middle, y + owned * CELL + 18), (right + middle, y + size - 8)], "leaf"),
        *strip(right, y + size + 10, one, "warm", False, 28),
        *strip(right, y + size + 44, one, "warm", False, 28),
        text(right - 12, y + size + 29, "dK", "t b", "end"),
        text(right - 12, y + size + 63, "dV", "t b", "end"),
        *(
            text(right + size + 24, y + 22 + 26 * i, line, "t m", "start")
            for i, line in enumerate(grad_key_value)
        ),
        *(text(right + size + 24, y + below, line, "s n", "start") for below, line in notes),
    ]
    return picture(1036, 470, "The backward pass: one kernel owns queries, one owns keys", parts)


PICTURES = {"pipeline.svg": pipeline, "forward.svg": forward, "backward.svg": backward}


def main() -> None:
    """Write all pictures."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    for name, draw in PICTURES.items():
        (folder / name).write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
