"""Would the tests notice? Each barrier, mask and bound of the Metal kernels is broken in turn, and the
checker or a comparison with float64 must find it. What has no effect is listed, with the reason."""

from __future__ import annotations

import pytest
from metal_calls import Shape
from metal_mutants import Mutant, Program

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
    Shape(21, 34, lower_right=False),
    Shape(21, 45, right=2**32 - 40, lower_right=False),
)

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
    M("all slices the first", "split == 1 ? 0 : position.member * width", "0"),
    M("every slice whole", "dim == width * split ? width : dim - first", "width"),
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
    M("rows that do not exist", "min(8 * i + r, max(rows.count - 1, 0))", "8 * i + r"),
    M("one row that does not exist", "max(rows.count - 1, 0)", "max(rows.count, 0)"),
    M("stores of rows that do not exist", "if (8 * i + target.place.row < target.count) ", ""),
    M("a store of one row that does not exist", "target.place.row < target.count",
      "target.place.row <= target.count"),
    M("row sums of half a row", "half_row + simd_shuffle_xor(half_row, 8)", "half_row"),
]  # fmt: skip

# The bounds, once: the same functions serve both passes.
BOUNDS = [
    M("columns that do not exist", "column >= existing_columns || ", ""),
    M("one column that does not exist", "column >= existing_columns", "column > existing_columns"),
    M("no diagonal", " || !met", ""),
    M("one diagonal for all fragments", "band.has(origin.row, column - 8 * i)", "band.has(origin.row, column)"),
    M("the diagonal itself hidden", "column > row + after", "column >= row + after"),
    M("the diagonal's sign", "column > row + after", "column > row - after"),
    M("a diagonal cut to an int", "int(clamp(long(call.params->right), -limit, limit))",
      "int(call.params->right)"),
    M("every diagonal begins at the left", "call.params->lower_right != 0 ?", "false ?"),
    M("every diagonal ends at the right", "call.params->lower_right != 0 ?", "true ?"),
    M("a place that is another lane's row", "position.first + position.place.row", "position.first"),
    M("a place that is another lane's column", "column + position.place.column}", "column}"),
]  # fmt: skip

# Loops over the keys: forward and grad_query.
KEY_LOOP = [
    M("the last key lost", "min(length, position.to + band.after)",
      "min(length, position.to + band.after - 1)"),
    M("the last block lost", "j < span.end; j", "j + columns < span.end; j"),
    M("a block too many", "j < span.end; j", "j < span.end + columns; j", harmless=MORE_WORK),
    M("blocks beyond the diagonal", "span.end = min(length, position.to + band.after)", "span.end = length",
      harmless=MORE_WORK),
    M("blocks beyond the keys", "min(length, position.to + band.after)",
      "min(length + 16, position.to + band.after)", harmless=MORE_WORK),
    M("seen by all, one too many", "position.first + band.after + 1)", "position.first + band.after + 2)"),
    M("seen by all, one too few", "position.first + band.after + 1)",
      "position.first + band.after)", harmless="hide is exact"),
    M("seen by all, keys forgotten", "span.inner_end = min(length, ", "span.inner_end = max(0, "),
    M("hide from the next block on", "column + columns > inner_end", "column > inner_end"),
    M("hide more than needed", "if (span.has_border<columns>(j))", "if (true)", harmless="hide is exact"),
    M("the origin of the first block", "origin_of<false>(my, j)", "origin_of<false>(my, 0)"),
    M("the first key head for all", "head / heads_a_key(call)", "0"),
    M("a key head for each head", "head / heads_a_key(call)", "head"),
    M("blocks shifted by one", "int(groups.x) - 1 - place.number", "int(groups.x) - place.number"),
    M("blocks in another order", "int(groups.x) - 1 - place.number", "place.number",
      harmless="only the order of threadgroups, by which long rows start early"),
    M("as many heads as blocks", "int(place % groups.y)", "int(place % groups.x)"),
]  # fmt: skip

RETURN = "if (my.from >= sequence.queries.length) return;"
IDLE = "only work: loads clamp and stores check their rows"

FORWARD = [
    *MEMORY, *BOUNDS, *KEY_LOOP,
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
    M("no early return for keys", "if (my.from >= existing.length) return;", "", harmless=IDLE),
    M("no early return in prepare", "if (my.first >= sequence.length) return;", "", harmless=IDLE),
    M("bounds not transposed", "{band.after, band.before}", "{band.before, band.after}"),
    M("queries begin at an odd one", "(0, position.from - band.before) / 8 * 8",
      "(0, position.from - band.before)"),
    M("queries begin below 0", "max(0, position.from - band.before)", "(position.from - band.before)"),
    M("queries begin too late", "max(0, position.from - band.before)",
      "max(0, position.from - band.before + 8)"),
    M("queries begin at the other diagonal", "max(0, position.from - band.before)",
      "max(0, position.from + band.before)"),
    M("queries begin at 0", "max(0, position.from - band.before) / 8 * 8", "0", harmless=MORE_WORK),
    M("the last block of queries lost", "i < span.end; i", "i + columns < span.end; i"),
    M("a block of queries too many", "i < span.end; i", "i < span.end + columns; i", harmless=MORE_WORK),
    M("sees all, one too early", "position.last - band.before", "position.last - 1 - band.before"),
    M("sees all, one too late", "position.last - band.before", "position.last + 1 - band.before",
      harmless="hide is exact"),
    M("queries that do not exist", "column < inner_begin || column + columns > inner_end",
      "column < inner_begin",),
    M("keys hidden in the wrong queries", "hide(p, origin, band, sequence.queries.length)",
      "hide(p, origin, band, sequence.queries.length + 1)"),
    M("one head of the group", "head < (kv_head + 1) * heads;", "head < kv_head * heads + 1;"),
    M("no gradient of the log-sum-exp", "M_LOG2E_F * rows_of(grad_lse", "0 * rows_of(grad_lse"),
    M("that gradient in another base", "M_LOG2E_F * rows_of(grad_lse", "rows_of(grad_lse"),
    M("that gradient's sign", ".y -=", ".y +="),
    M("that gradient of rows that do not exist", "if (row < sequence.length)\n", "\n"),
    M("statistics by all lanes of a row", "my.place.column == 0 && row < padded", "row < padded"),
    M("statistics of rows that do not exist", "&& row < padded(sequence.length)", ""),
    M("log-sum-exp of rows that do not exist",
      "row < sequence.length ? row_statistics(lses[row], delta) : float2(0)",
      "row_statistics(lses[row], delta)"),
    M("statistics of all heads in one place", "params->heads + head) * padded", "params->heads) * padded"),
    M("heads not padded", "+ head) * padded(queries.length)", "+ head) * queries.length"),
    M("a probability of -inf - -inf", "lse == -INFINITY ? INFINITY : lse", "lse"),
    M("statistics read past the end", "min(first + 8 * i + place.row, length - 1)",
      "first + 8 * i + place.row"),
    M("pairs read past the end", "min(first + 8 * j + place.column, length - 1)",
      "(first + 8 * j + place.column)"),
    M("one pair read past the end", "place.column, length - 1)", "place.column, length)"),
    M("the last pair read twice", "place.column, length - 1)", "place.column, length - 3)"),
    M("delta left out for queries", "sub_row(ds, row.delta);", ""),
    M("delta left out for keys", "sub_column(ds, column.delta);", ""),
    M("grad_query not scaled", "mul(dq, numbers.scale);", ""),
    M("grad_key not scaled", "mul(dk, numbers.scale);", ""),
]  # fmt: skip

BACKWARD_TEAM = [
    *TEAMS,
    M("scores not summed", "team.sum(p);", "", count=2),
    M("gradients not summed", "team.sum(ds);", "", count=2),
]

PROGRAMS = {
    Program("forward", False, "causal", SHAPES): FORWARD,
    Program("forward", True, "causal", SHAPES): FORWARD_TEAM,
    Program("backward", False, "causal", SHAPES): BACKWARD,
    Program("backward", True, "causal", SHAPES): BACKWARD_TEAM,
}


@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_nothing_is_found_in_the_kernels_as_they_are(program):
    assert program.finding(program.source) == ""


@pytest.mark.parametrize(
    ("program", "mutant"),
    [pytest.param(p, m, id=f"{p}-{m}") for p, mutants in PROGRAMS.items() for m in mutants],
)
def test_every_mutant_is_found(program, mutant):
    found = program.finding(mutant.applied_to(program.source))
    assert bool(found) != bool(mutant.harmless), found or "nothing was found"
