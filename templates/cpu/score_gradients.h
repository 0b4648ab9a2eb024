// The gradients of the scores of a strip and a block of keys, from recomputed weights.
#pragma once

#include "score_rows.h"
#include "softmax.h"

namespace orchard {

/// The memory that a block of queries works in.
struct Space {
  Space(Arena& arena, const OrchardParams& params)
      : Space(arena, min<int64_t>(kBlockQ, params.query_length), min<int64_t>(kBlockK, params.key_length)) {}

  Space(Arena& arena, int64_t queries, int64_t keys)
      : columns(arena, strip_rows(queries)), gathered(arena, kAmx ? keys : 0, queries) {
    strips = arena.take<Real>(strip_rows(queries) * Strip<1>::kRealsPerQuery);
    weights = arena.take<Real>((keys + kTallest) * kStrip);
    grad_scores = arena.take<Real>((keys + kTallest) * kStrip);
    kept = arena.take<Real>(kDropout ? (keys + kTallest) * kStrip : 0);
    grad_columns = arena.take<Operand>(kStep == 1 ? 0 : steps(keys + kTallest) * kStrip);
    key = arena.take<Operand>(kStep == 1 ? 0 : operand_rows(keys) * steps(kHeadDim));
    key_columns = arena.take<Operand>(operands_down<kHeadDim>(keys));
    value = arena.take<Operand>(kInPlace ? 0 : operand_rows(keys) * steps(kHeadDimV));
  }

  /// A block of keys and values.
  KeyOperands pack(Rows<const Element> keys, Rows<const Element> values, int64_t count) const {
    const Rows<const Operand> columns = packed_down<kHeadDim>(keys, count, key_columns);
    return {kStep == 1 ? columns : packed_along<kHeadDim>(keys, count, key), columns,
            packed_along<kHeadDimV>(values, count, value), {}};
  }

  // Unless they are gathered: in the place of weights and gradients, [key][query / kStep]. All of a row is read before a
  // shorter one is written.
  static_assert(kStep == 1 || tile_width(kStripVectors) == kStripVectors);
  template <int Width>
  ScoreRows rows(const Strip<Width>&, const Meeting& meeting) const {
    if constexpr (kAmx) return gathered.of(meeting);
    constexpr int64_t kPitch = Width * kLanes / kStep;
    return {{reinterpret_cast<Operand*>(weights), kPitch}, {reinterpret_cast<Operand*>(grad_scores), kPitch}};
  }

  QueryColumns columns;
  GatheredRows gathered;
  Real* strips;
  Real *weights, *grad_scores, *kept;  // of a strip and a block of keys, [key][query]
  Operand* grad_columns;               // [key / kStep][query]
  Operand *key, *key_columns, *value;
};

/// Calls body(first, tile) with tiles of the gradients of the final natural scores. Leaves the weights' rows and, in
/// `grad_scores`, the derivatives of an expression. False: no query sees any of the keys.
template <int Width, class Body>
ORCHARD_INLINE bool differentiate(Strip<Width> strip, const Meeting& meeting, const Softmax& softmax,
                                  const Space& space, Body body) {
  const Rows<Real> weights{space.weights, strip.kQueries}, slopes{space.grad_scores, strip.kQueries},
      kept{space.kept, strip.kQueries};
  const Rows<Operand> weight_rows = space.rows(strip, meeting).weights;
  const KeyOperands& operands = meeting.operands;
  if (!softmax.scores.prepare<Width>(meeting, weights)) return false;
  if constexpr (kDropout) softmax.dropout.draw<Width>(meeting, kept);

  const auto weigh = [&](int first, auto& tile) ORCHARD_INLINED {
    meeting.next.ask();
    const bool border = meeting.on_border<Width>(first, first + tile.kHeight);
    tile.for_each([&](int row, int v, Vector& product) {
      row += first;
      const Vector lse = load(strip.lse + v * kLanes);
      const Vector score = softmax.scores.finish(product, meeting, row, v, weights[row] + v * kLanes);
      Vector weight = exp2(score - lse);
      if (border) weight = meeting.sees(row, v) ? weight : Vector{};
      if constexpr (kModifiesScore) {
        // An expression may make anything of a query that is none.
        weight = lse == kInfinity ? Vector{} : weight;
        const auto at = softmax.scores.place(meeting, row, v);
        const Vector score = score_of(product, softmax.scores.product_scale);
        store(slopes[row] + v * kLanes, slope(softmax.scores.inputs, score, at));
      }
      product = weight;
    });
  };
  const auto factor = [&](int row, int v) { return kDropout ? load(kept[row] + v * kLanes) : broadcast(1); };
  // From the gradients of the weights.
  const auto derive = [&](int first, auto& tile, auto weight_at) ORCHARD_INLINED {
    // Whatever the value of a hidden key holds. A key past the last one is hidden too: a pair may need it.
    const bool hides = kAdds || kModifiesScore || meeting.on_border<Width>(first, first + tile.kHeight) ||
                       (kStep > 1 && first + tile.kHeight > meeting.count);
    tile.for_each([&](int row, int v, Vector& grad) {
      const Vector weight = weight_at(row, v);
      grad = weight * (grad * factor(first + row, v) - load(strip.delta + v * kLanes));
      if (hides) grad = weight == 0 ? Vector{} : grad;
    });
  };

  if constexpr (kAmx) {
    const Factors scores{operands.key_rows, strip.query, steps(kHeadDim)},
        weight_grads{operands.value_rows, strip.grad_out, steps(kHeadDimV)};
    multiply_both<Width>(scores, weight_grads, meeting.count, [&](int first, auto tile, auto grads) ORCHARD_INLINED {
      weigh(first, tile);
      hide_rest(tile, first, meeting.count, 0);
      derive(first, grads, [&](int row, int v) { return tile.at[row][v]; });
      if constexpr (kDropout)
        tile.for_each([&](int row, int v, Vector& weight) { weight *= factor(first + row, v); });
      tile.store_along(weight_rows.from(first));
      body(first, grads);
    });
  } else {
    multiply<Width>(operands.key_rows, meeting.count, strip.query, steps(kHeadDim), [&](int first, auto tile) {
      weigh(first, tile);
      if constexpr (kStep > 1) hide_rest(tile, first, meeting.count, 0);
      tile.for_each([&](int row, int v, Vector weight) { store(weights[first + row] + v * kLanes, weight); });
    });
    multiply<Width>(operands.value_rows, meeting.count, strip.grad_out, steps(kHeadDimV), [&](int first, auto tile) {
      derive(first, tile, [&](int row, int v) { return load(weights[first + row] + v * kLanes); });
      if constexpr (kStep > 1 || kDropout) {
        tile.for_each([&](int row, int v, Vector) {
          const Vector weight = load(weights[first + row] + v * kLanes);
          store_along(weight_rows[first + row] + v * kLanes / kStep, weight * factor(first + row, v));
        });
      }
      body(first, tile);
    });
  }
  return true;
}

}  // namespace orchard
