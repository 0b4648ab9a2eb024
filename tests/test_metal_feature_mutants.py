"""The same for features: each of their masks and bounds is broken, in a variant that has little else."""

from __future__ import annotations

import pytest
from metal_calls import Shape
from metal_mutants import Mutant, Program

# A window on either side, batches whose lengths differ, and what bias and mask may share.
SHAPES = (
    Shape(21, 45, batch=2, left=6, right=3, key_lengths=(45, 30)),
    Shape(45, 36, batch=2, left=9, right=2, key_lengths=(35, 0), broadcast=(0, 1)),
    Shape(40, 44, left=8, right=-1, key_lengths=(50,), lower_right=False, broadcast=(2,)),
    Shape(18, 33, batch=2, left=2**32 - 40, right=5, key_lengths=(-1, 33), broadcast=(1, 3)),
    Shape(33, 60, left=6, right=50, key_lengths=(60,), lower_right=False),
)

# Packed rows of several heads, in one tile and more; windows that end inside of blocks and parts.
DECODE_SHAPES = (
    Shape(3, 300, heads=4, kv_heads=2, batch=2, left=2**32 - 40, right=3),
    Shape(1, 320, left=2**32 - 40),
    Shape(5, 170, left=61, right=-1),
    Shape(2, 90, left=20, right=-100, lower_right=False),
)

M = Mutant
MORE_WORK = "only work: hide takes what it adds"

WINDOW = [
    M("no left bound", "has_before && column < row - before", "false"),
    M("the left bound itself hidden", "column < row - before", "column <= row - before"),
    M("a left bound that ends at the right", "left - shift", "left"),
    M("a left bound cut to an int", "int(clamp(long(call.params->left), -limit, limit))",
      "int(call.params->left)"),
    M("keys begin below 0", "max(0, position.from - band.before)", "(position.from - band.before)"),
    M("keys begin too late", "max(0, position.from - band.before)",
      "max(0, position.from - band.before + 8)"),
    M("keys begin at 0", "max(0, position.from - band.before) / 8 * 8", "0", harmless=MORE_WORK),
    M("sees all, one too early", "position.last - band.before", "position.last - 1 - band.before"),
    M("the sink has no weight", "place.column == 0 ? 1 : 0", "0"),
    M("the sink counts four times", "place.column == 0 ? 1 : 0", "1"),
    M("the sink in another base", "sinks[head] * M_LOG2E_F", "sinks[head]"),
    M("one sink for all heads", "sinks[head]", "sinks[0]"),
]  # fmt: skip

VARLEN = [
    M("all queries from the first on", "- query, query}", "- query, 0}"),
    M("all keys from the first on", "- key, key}", "- key, 0}"),
    M("one query too many", "call.query_offsets[batch + 1] - query,",
      "call.query_offsets[batch + 1] - query + 1,"),
    M("one key too many", "call.key_offsets[batch + 1] - key,", "call.key_offsets[batch + 1] - key + 1,"),
    M("rows of the first sequence", "tensor + extent.first * strides.row", "tensor"),
    M("statistics of sequences overlap", "(queries.first + queries.batch) / 2 * 2", "queries.first / 2 * 2"),
    M("statistics begin at odd rows", "(queries.first + queries.batch) / 2 * 2",
      "(queries.first + queries.batch)"),
    M("heads overlap", "(call.params->lse.head + call.params->batch) / 2 * 2", "call.params->lse.head"),
    M("statistics beyond the scratch", "(call.params->lse.head + call.params->batch) / 2 * 2",
      "(call.params->lse.head + call.params->batch + 2) / 2 * 2"),
]  # fmt: skip

LENGTHS = [
    M("lengths below 0", "clamp(call.key_lengths[batch], 0, longest)",
      "min(call.key_lengths[batch], longest)", harmless="less than no keys are none"),
    M("lengths beyond the keys", "clamp(call.key_lengths[batch], 0, longest)",
      "max(call.key_lengths[batch], 0)"),
    M("one length for all", "call.key_lengths[batch]", "call.key_lengths[0]"),
    M("gradients of absent keys left as they were",
      "Extent existing = Extent{sequence.keys.batch, int(params.key_length)}",
      "Extent existing = sequence.keys"),
    M("gradients of absent keys", "clear_rows(dk, sequence.keys.length - my.first, my.place);", ""),
    M("the gradient of one absent key", "8 * i + place.row >= first", "8 * i + place.row > first"),
    M("gradients of absent values", "clear_rows(dv, sequence.keys.length - my.first, my.place);", ""),
    M("blocks of absent keys", "if (my.from >= sequence.keys.length) span.end = 0;", "",
      harmless="only work: clear_rows takes what it adds"),
]  # fmt: skip

MASK = [
    M("the mask ignored", "seen = seen && scores.mask.at(query, key) != 0;", ""),
    M("the mask read where no query is", "query < scores.query_length && ", ""),
    M("the mask read where no key is", "key < scores.key_length &&", ""),
    M("the bounds ignored", "band.has(origin.row + 8 * i, origin.column + 8 * j + e)", "true"),
    M("rows and columns of the mask confused", "query * row + key * column", "key * row + query * column"),
    M("the mask of the first head", "tensor + batch * strides.batch + head * strides.head",
      "tensor + batch * strides.batch"),
    M("the mask of the first batch", "tensor + batch * strides.batch + head", "tensor + head"),
    M("the bit of another element", "(columns / 8) + j) * 2 + e", "(columns / 8) + j) * 2"),
    M("a tile skipped if one lane sees nothing", "simd_any(all != 0)", "simd_all(all != 0)"),
    M("a tile skipped as one lane wishes", "simd_any(all != 0)", "(all != 0)"),
    M("no tile skipped", "simd_any(all != 0)", "true",
      harmless="only work: the scores are hidden all the same"),
    M("hidden scores 0", "select(s, visible, -INFINITY)", "select(s, visible, 0)"),
]  # fmt: skip

MASK_TEAM = [
    M("a team that sees nothing leaves early", "    team.sum(s);\n    if (!seen) continue;\n",
      "    if (!seen) continue;\n    team.sum(s);\n"),
    M("the sum of a tile that nobody sees", "if (!seen) continue;", "",
      harmless="only work: the scores are hidden"),
]  # fmt: skip

DROPOUT = [
    M("one round less", "round < 10", "round < 9"),
    M("the halves of the key confused", "uint2(call.seed[0], call.seed[1])",
      "uint2(call.seed[1], call.seed[0])"),
    M("all keys of a draw alike", "transpose(low, high, lane == 1, 1);", ""),
    M("lanes exchange their own half", "is_second ? x : y, distance", "is_second ? y : x, distance"),
    M("one fragment for both", "origin.key(i, j + lane, 0)", "origin.key(i, j, 0)"),
    M("a threshold that drops itself", ">= dropout.threshold", "> dropout.threshold", count=2,
      harmless="one of 2^32 words; no call here draws it"),
    M("kept and dropped confused", ">= dropout.threshold", "< dropout.threshold", count=2),
    M("weights not scaled", "  mul(result, factor);\n", ""),
    M("one pattern for all heads", "threshold), batch, head}", "threshold), batch, 0}"),
    M("one pattern for all batches", "threshold), batch, head}", "threshold), 0, head}"),
]  # fmt: skip

DROPOUT_BACKWARD = [
    M("other lanes exchange", "transpose(low, high, lane / 2 == 1, 4)",
      "transpose(low, high, lane / 2 == 1, 2)"),
    M("words of the wrong query", "return uint4(even.x, odd.x, even.y, odd.y);",
      "return uint4(odd.x, even.x, odd.y, even.y);"),
    M("the same query for both", "lane / 2, lane % 2)", "lane / 2, 0)"),
    M("gradients of dropped values", "cast<Factor>(dropped(p, weights, numbers.keep_scale))",
      "cast<Factor>(p)"),
    M("gradients through dropped weights", "ds = dropped(ds, weights, numbers.keep_scale);", ""),
    M("gradients through dropped weights to queries",
      "ds = dropped(ds, kept<rows, columns>(dropout, origin), numbers.keep_scale);",
      ""),
]  # fmt: skip

BIAS = [
    M("bias left out", "score += float(scores.bias.at(", "score += 0 * float(scores.bias.at("),
    M("bias read where no query is", "min(query, scores.query_length - 1)", "query"),
    M("bias read where no key is", "min(key, scores.key_length - 1)", "key"),
]  # fmt: skip

BIAS_GRADIENT = [
    M("rows and columns confused", "transposed ? column + 8 * j + e : row + 8 * i;", "row + 8 * i;"),
    M("one batch of those that share it", "sharing(strides.batch, batch, 1, params.batch)",
      "Range{batch, batch + 1}"),
    M("one head of those that share it", "sharing(strides.head, head, 1, params.heads)",
      "Range{head, head + 1}"),
    M("some queries of those that share it", "sharing(strides.row, first_row, rows, params.query_length)",
      "Range{first_row, min(first_row + rows, int(params.query_length))}"),
    M("some keys of those that share it", "sharing(strides.column, first_column, columns, params.key_length)",
      "Range{first_column, min(first_column + columns, int(params.key_length))}"),
    M("queries not summed", "if (strides.row == 0) sum_rows(sum);", ""),
    M("keys not summed", "if (strides.column == 0) sum_columns(sum);", ""),
    M("queries of eight rows summed", "sum + simd_shuffle_xor(sum, 16)", "sum"),
    M("the gradient of queries that do not exist", "clear_rows(ds, sequence.queries.length - i, place);", ""),
    M("written past the last row", "r < end && ", ""),
    M("written past the last column", " && c < end_column", ""),
    M("blocks that are in no sum", "if (j >= span.end || j + columns <= span.begin) continue;", "",
      harmless=MORE_WORK),
    M("the last block in no sum", "j >= span.end || j + columns", "j + columns >= span.end || j + columns"),
    M("a slice of the head dim", "my.member < slices;", "my.member < 0;"),
    M("a slice of the value's head dim", "my.member < slices_v;", "my.member < 0;"),
]  # fmt: skip

SCORE = [
    M("scores not modified", "score = modify(scores.inputs, score, scores.at(query, key));", ""),
    M("slopes of the modified scores",
      "    const auto slope = slopes(p, scores, origin);\n    finish(p, scores, origin);",
      "    finish(p, scores, origin);\n    const auto slope = slopes(p, scores, origin);"),
    M("no slopes", "mul_slope(ds, slope, p);", "", count=2),
    M("slopes of scores not scaled", "slope(scores.inputs, scores.scale * products",
      "slope(scores.inputs, products"),
    M("nobody hidden", "seen = seen && visible(scores.inputs, scores.at(query, key));", ""),
]  # fmt: skip

DECODE = [
    M("rows that do not exist", "min(first + place.row, packing.count - 1)", "(first + place.row)"),
    M("softmaxes of rows that do not exist", " && first + place.row < packing.count", ""),
    M("sums of rows that do not exist", "0, packing.count - first,", "0, 8,"),
    M("softmaxes by all lanes of a row", "place.column == 0 && first", "first"),
    M("softmaxes by all of a team", "my.member == 0 && place.column == 0 && first",
      "place.column == 0 && first"),
    M("one head for all rows", "packing.heads + row / sequence.queries.length, i", "packing.heads, i"),
    M("one query for all rows", "i = row % sequence.queries.length", "i = 0"),
    M("a row of another lane", "rows.data + row * rows.stride", "rows.data"),
    M("the keys of the first query alone", "0, sequence.queries.length, int(simdgroup",
      "0, 1, int(simdgroup"),
    M("bounds of the first query alone", "{0, sequence.queries.length - 1, 0,", "{0, 0, 0,",
      harmless="hide asks for every element"),
    M("a part in two", "% packing.shares * teams + int(simdgroup / split)", "% packing.shares * teams"),
    M("a part left out", "packing.parts() - 1) / packing.parts() * columns",
      "packing.parts() - 1) / (packing.parts() + 1) * columns"),
    M("a block left out", "(max(0, span.end - span.begin) + columns - 1) / columns",
      "max(0, span.end - span.begin) / columns"),
    M("blocks beyond the keys", "const bool seen = j < span.end;", "const bool seen = true;",
      harmless="only work: hide takes what it adds"),
    M("teams that end apart", "if (seen) mma_ABt(s, q, keys.from(j));",
      "if (!seen) continue;\n    mma_ABt(s, q, keys.from(j));"),
    M("scores not summed", "team.sum(s);", ""),
    M("partial sums in one place", "my.member * width, head_dim_v", "0, head_dim_v"),
    M("sums in parts", "row_sum(softmax.sum)", "softmax.sum"),
    M("parts not weighed", "total += fast::exp2(softmaxes[p].x - shift) *", "total +="),
    M("sums not weighed", "softmaxes[p].y * fast::exp2(softmaxes[p].x - shift)", "softmaxes[p].y"),
    M("one part less", "p < parts; p += 32) largest", "p < parts - 1; p += 32) largest",
      harmless="any shift will do"),
    M("one sum less", "p < parts; p += 32) sum", "p < parts - 1; p += 32) sum"),
    M("the combined shift of -inf", "largest == -INFINITY ? 0 : largest;  //", "largest;  //"),
    M("nothing divided by 0", "sum == 0 ? 0 : 1 / sum", "1 / sum"),
    M("totals read before they are written",
      "totals[simdgroup][lane] = total;\n    threadgroup_barrier(mem_flags::mem_threadgroup);",
      "totals[simdgroup][lane] = total;"),
    M("the parts of three simdgroups", "(totals[2][lane] + totals[3][lane])", "totals[2][lane]"),
    M("written past the last column", "if (column + e < head_dim_v) ", ""),
    M("the log-sum-exp by all threads", "if (simdgroup == 0 && lane == 0) ", ""),
]  # fmt: skip

PROGRAMS = {
    Program("forward", False, "window sinks", SHAPES): WINDOW,
    Program("backward", False, "varlen causal", SHAPES[:1]): VARLEN,
    Program("backward", False, "lengths", SHAPES): LENGTHS,
    Program("forward", False, "mask window", SHAPES): MASK,
    Program("forward", True, "mask", SHAPES): MASK_TEAM,
    Program("forward", False, "dropout", SHAPES): DROPOUT,
    Program("backward", False, "dropout", SHAPES): DROPOUT_BACKWARD,
    Program("forward", False, "bias", SHAPES): BIAS,
    Program("backward", False, "bias bias_grad", SHAPES): BIAS_GRADIENT,
    Program("backward", False, "score bias_f32 bias_grad", SHAPES): SCORE,
    Program("decode", True, "window", DECODE_SHAPES): DECODE,
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
