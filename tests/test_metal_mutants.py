"""Would the tests notice? Each barrier, mask and bound of the Metal kernels is broken in turn, and the
checker or a comparison with float64 must find it. What has no effect is listed, with the reason."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from metal_kernels import Call, Kernels, Shape, select, source_of, wrong
from software_mac.metal import DispatchError, Status

# Head dims that neither a fragment nor a team divides, and blocks so small that a few rows have many. The
# teams are those of two simdgroups; the variants without them read and write 16 bytes at a time.
HEAD_DIM, HEAD_DIM_V = 20, 12
SINGLE = {"rows": 16, "columns": 16, "simdgroups": 2, "split": 1}
TEAM = {"rows": 8, "columns": 16, "simdgroups": 4, "split": 2}

# Ragged ends everywhere; diagonals above and below 0, odd and even; queries without keys. Then those in which
# an error by one meets the edge of a block, and a diagonal that an int does not hold.
SHAPES = (
    Shape(21, 45),
    Shape(45, 20),
    Shape(44, 29),
    Shape(21, 22),
    Shape(30, 44),
    Shape(45, 51),
    Shape(18, 18),
    Shape(21, 45, "none", diagonal=2**32 - 40),
)

FINDINGS = {Status.RACE, Status.BOUNDS, Status.UNINITIALISED, Status.DIVERGENCE, Status.DEADLOCK}


@dataclass(frozen=True)
class Mutant:
    """A change of the rendered source. `harmless` says why it has no effect, where it has none."""

    name: str
    text: str
    replacement: str
    count: int = 1
    harmless: str = ""

    def applied_to(self, source: str) -> str:
        found = source.count(self.text)
        assert found == self.count, f"{self.name}: {self.text!r} occurs {found} times, not {self.count}"
        return source.replace(self.text, self.replacement)

    def __str__(self) -> str:
        return self.name


M = Mutant
BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"
MORE_WORK = "only work: hide takes what it adds"

# Of teams in both passes: what keeps their simdgroups in step.
TEAMS = [
    M("no barrier", BARRIER, ""),
    M("every other barrier", BARRIER, "if (turn == 1) " + BARRIER),
    M("the barrier of other memory", BARRIER, "threadgroup_barrier(mem_flags::mem_device);"),
    M("one exchange buffer", "turn = 1 - turn;", ""),
    M("exchange buffers half as long", "slots = 2 * size", "slots = size"),
    M("simdgroups leave their team", "int from = split == 1 ? first : group", "int from = first"),
    M("simdgroups of a team loop apart", "height = split == 1 ? rows :", "height = true ? rows :"),
]

# Of teams, once: what both passes have in common.
TEAM_SLICES = [
    M("teams share their exchange", "exchange + team * Result::slots", "exchange"),
    M("a part of the sum left out", "m < size; ++m", "m < size - 1; ++m"),
    M("all slices the first", "+ position.member * width;", ";"),
    M("every slice whole", "dim == width * split ? width : dim - position.member * width", "width"),
    M("blocks beyond the end", "data + min(i, count - 1) * stride", "data + i * stride"),
]

# Memory, once: the same functions serve both passes.
MEMORY = [
    M("columns read past the head dim", "e) chunk.at[e] = column + e < rows.columns ? source[e] : T(0);",
      "e) chunk.at[e] = source[e];"),
    M("one column read past the head dim", "column + e < rows.columns ? source",
      "column + e <= rows.columns ? source"),
    M("padding that is not 0", "source[e] : T(0)", "source[e] : T(1)"),
    M("columns written past the head dim", "if (column + e < rows.columns) target[e]", "target[e]"),
    M("one column written past the head dim", "if (column + e < rows.columns) target",
      "if (column + e <= rows.columns) target"),
    M("rows that do not exist", "exists ? r * int(stride) + 8 * i * int(stride) : 0",
      "r * int(stride) + 8 * i * int(stride)"),
    M("one row that does not exist", "r < count - 8 * i;", "r <= count - 8 * i;"),
    M("stores of rows that do not exist", "if (8 * i + target.place.row < target.count) ", ""),
    M("a store of one row that does not exist", "target.place.row < target.count",
      "target.place.row <= target.count"),
    M("row sums of half a row", "half_row + simd_shuffle_xor(half_row, 8)", "half_row"),
]  # fmt: skip

# The mask, once: hide serves both passes.
MASK = [
    M("columns that do not exist", "column >= existing_columns || ", ""),
    M("one column that does not exist", "column >= existing_columns", "column > existing_columns"),
    M("no diagonal", " || (causal && key > query + diagonal)", ""),
    M("the diagonal itself hidden", "key > query + diagonal", "key >= query + diagonal"),
    M("the diagonal's sign", "key > query + diagonal", "key > query - diagonal"),
    M("a diagonal cut to an int", "int(clamp(long(params.diagonal), -limit, limit))", "int(params.diagonal)"),
]

# Loops over the keys: forward and grad_query.
KEY_LOOP = [
    M("the last key lost", "min(key_length, my.to + diagonal)", "min(key_length, my.to + diagonal - 1)"),
    M("the last block lost", "j < end; j", "j + columns < end; j"),
    M("a block too many", "j < end; j", "j < end + columns; j", harmless=MORE_WORK),
    M("blocks beyond the diagonal", "min(key_length, my.to + diagonal) : key_length",
      "key_length : key_length",
      harmless=MORE_WORK),
    M("blocks beyond the keys", "min(key_length, my.to + diagonal)",
      "min(key_length + columns, my.to + diagonal)",
      harmless=MORE_WORK),
    M("seen by all, one too many", "my.first + diagonal + 1)", "my.first + diagonal + 2)"),
    M("seen by all, one too few", "my.first + diagonal + 1)",
      "my.first + diagonal)", harmless="hide is exact"),
    M("seen by all, keys forgotten", "seen_by_all = causal ? min(key_length, ",
      "seen_by_all = causal ? max(0, "),
    M("hide from the next block on", "if (j + columns > seen_by_all)", "if (j > seen_by_all)"),
    M("hide more than needed", "if (j + columns > seen_by_all)", "if (true)", harmless="hide is exact"),
    M("the diagonal's sign of a block", "my.first - j + diagonal", "my.first - j - diagonal"),
    M("the diagonal of the first block", "my.first - j + diagonal", "my.first + diagonal"),
    M("the keys of the first block", "key_length - j, ", "key_length, "),
    M("the first key head for all", "head / int(params.heads / params.kv_heads)", "0"),
    M("a key head for each head", "head / int(params.heads / params.kv_heads)", "head"),
    M("blocks shifted by one", "groups.x - 1 - group.x", "groups.x - group.x"),
    M("blocks in another order", "causal ? groups.x - 1 - group.x : group.x", "group.x",
      harmless="only the order of threadgroups, by which long rows start early"),
]  # fmt: skip

RETURN = "if (my.from >= query_length) return;"
IDLE = "only work: loads clamp and stores check their rows"

FORWARD = [
    *MEMORY, *MASK, *KEY_LOOP,
    M("no early return", RETURN, "", harmless=IDLE),
    M("a shift of -inf", "state.largest.at[i] == -INFINITY ? 0 : state.largest.at[i]", "state.largest.at[i]"),
    M("rows without keys divide by 0", "state.sum.at[i] == 0 ? 0 : 1 / state.sum.at[i]",
      "1 / state.sum.at[i]"),
    M("sums do not decay", "mul(state.sum, decay);", ""),
    M("outputs do not decay", "mul_row(o, softmax_step(softmax, s));", "softmax_step(softmax, s);"),
    M("outputs not normalised", "mul_row(o, softmax_finish(softmax));", "softmax_finish(softmax);"),
    M("the largest of half a row", "value = max(value, simd_shuffle_xor(value, 8));", ""),
    M("log-sum-exp of rows that do not exist", "place.column == 0 && row < length", "place.column == 0"),
    M("log-sum-exp of one such row", "row < length) vector", "row <= length) vector"),
    M("log-sum-exp by all lanes of a row", "place.column == 0 && row < length", "row < length"),
]  # fmt: skip

FORWARD_TEAM = [
    *TEAMS,
    *TEAM_SLICES,
    M("log-sum-exp by all of a team", "if (my.member == 0) store_rows", "store_rows"),
    M("scores not summed", "team.sum(s);", ""),
]

BACKWARD = [
    *(m for m in KEY_LOOP if not m.harmless),
    M("no early return for queries", RETURN, "", harmless=IDLE),
    M("no early return for keys", "if (my.from >= key_length) return;", "", harmless=IDLE),
    M("no early return in prepare", "if (my.first >= query_length) return;", "", harmless=IDLE),
    M("rows and columns confused", "query = transposed ? column : row, key = transposed ? row : column",
      "query = row, key = column"),
    M("queries begin at an odd one", "max(0, my.from - diagonal) / 2 * 2", "max(0, my.from - diagonal)"),
    M("queries begin below 0", "max(0, my.from - diagonal)", "(my.from - diagonal)"),
    M("queries begin too late", "max(0, my.from - diagonal)", "max(0, my.from - diagonal + 2)"),
    M("queries begin at the other diagonal", "max(0, my.from - diagonal)", "max(0, my.from + diagonal)"),
    M("queries begin at 0", "causal ? max(0, my.from - diagonal) / 2 * 2 : 0", "0", harmless=MORE_WORK),
    M("the last block of queries lost", "i < query_length; i", "i + columns < query_length; i"),
    M("a block of queries too many", "i < query_length; i",
      "i < query_length + columns; i", harmless=MORE_WORK),
    M("sees all, one too early", "my.first + rows - 1 - diagonal", "my.first + rows - 2 - diagonal"),
    M("sees all, one too late", "i < sees_all ||", "i <= sees_all ||", harmless="hide is exact"),
    M("queries that do not exist", "i < sees_all || i + columns > query_length", "i < sees_all"),
    M("one query that does not exist", "query_length - i, i -", "query_length - i + 1, i -"),
    M("the diagonal's sign for keys", "i - my.first + diagonal", "i - my.first - diagonal"),
    M("one head of the group", "head < (kv_head + 1) * heads_a_key", "head < kv_head * heads_a_key + 1"),
    M("no gradient of the log-sum-exp", "statistics_rows(query_length) + row].y -= M_LOG2E_F *",
      "statistics_rows(query_length) + row].y -= 0 *"),
    M("that gradient in another base", ".y -= M_LOG2E_F *", ".y -="),
    M("that gradient's sign", ".y -= M_LOG2E_F *", ".y += M_LOG2E_F *"),
    M("that gradient of rows that do not exist", "if (row < query_length)\n", "\n"),
    M("statistics by all lanes of a row", "my.place.column == 0 && row < statistics_rows",
      "row < statistics_rows"),
    M("statistics of rows that do not exist", "&& row < statistics_rows(query_length)", ""),
    M("log-sum-exp of rows that do not exist",
      "row < query_length ? row_statistics(lse[before * query_length + row], delta) : float2(0)",
      "row_statistics(lse[before * query_length + row], delta)"),
    M("a probability of -inf - -inf", "lse == -INFINITY ? INFINITY : lse", "lse"),
    M("statistics read past the end", "min(first + 8 * i + place.row, length - 1)",
      "first + 8 * i + place.row"),
    M("pairs read past the end", "min(first + 8 * j + place.column, length - 1)",
      "(first + 8 * j + place.column)"),
    M("one pair read past the end", "place.column, length - 1)", "place.column, length)"),
    M("the last pair read twice", "place.column, length - 1)", "place.column, length - 3)"),
    M("delta left out for queries", "sub_row(ds, row.delta);", ""),
    M("delta left out for keys", "sub_column(ds, column.delta);", ""),
    M("grad_query not scaled", "mul(dq, scale);", ""),
    M("grad_key not scaled", "mul(dk, scale);", ""),
]  # fmt: skip

BACKWARD_TEAM = [
    *TEAMS,
    M("scores not summed", "team.sum(p);", "", count=2),
    M("gradients not summed", "team.sum(ds);", "", count=2),
]


def program(kernel: str, team: bool):
    blocks = TEAM if team else SINGLE
    prefixes = ("",) if kernel == "forward" else ("dq_", "dkv_")
    blocks = {prefix + name: size for prefix in prefixes for name, size in blocks.items()}
    return select(kernel, torch.float32, HEAD_DIM, HEAD_DIM_V, blocks=blocks)


def finding(variant, source: str, team: bool) -> str:
    """What the checker or the comparison says first; nothing, where all is well."""
    kernels = Kernels(variant, "narrow" if team else "wide", source)
    for shape in SHAPES:
        call = Call(shape, variant, kernels.flavour)
        try:
            results = kernels.run(call, seed=1)
        except DispatchError as error:
            if error.status not in FINDINGS:
                raise
            return str(error)
        if found := wrong(call, results):
            return f"{shape}: {', '.join(found)}"
    return ""


GROUPS = {
    ("forward", False): FORWARD,
    ("forward", True): FORWARD_TEAM,
    ("backward", False): BACKWARD,
    ("backward", True): BACKWARD_TEAM,
}


@pytest.mark.parametrize("team", (False, True), ids=("single", "team"))
@pytest.mark.parametrize("kernel", ("forward", "backward"))
def test_nothing_is_found_in_the_kernels_as_they_are(kernel, team):
    variant = program(kernel, team)
    assert finding(variant, source_of(variant), team) == ""


@pytest.mark.parametrize(
    ("kernel", "team", "mutant"),
    [
        pytest.param(kernel, team, m, id=f"{kernel}-{'team' if team else 'single'}-{m}")
        for (kernel, team), mutants in GROUPS.items()
        for m in mutants
    ],
)
def test_every_mutant_is_found(kernel, team, mutant):
    variant = program(kernel, team)
    found = finding(variant, mutant.applied_to(source_of(variant)), team)
    assert bool(found) != bool(mutant.harmless), found or "nothing was found"
