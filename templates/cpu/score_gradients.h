// The gradients of the scores of a strip and a block of keys, from recomputed weights.
#pragma once

#include "backward_strip.h"
#include "softmax.h"

namespace orchard {

/// The memory that a block of queries works in.
struct Space {
  Space(Arena& arena, const OrchardParams& params) {
    const int64_t queries = min<int64_t>(kBlockQ, params.query_length),
                  keys = min<int64_t>(kBlockK, params.key_length);
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

  // What weights and gradients become when the next products take them, [key][query / kStep]: in their place. All of a
  // row is read before a shorter one is written.
  static_assert(kStep == 1 || tile_width(kStripVectors) == kStripVectors);
  template <int Width>
  Rows<Operand> weight_rows(const Strip<Width>&) const {
    return {reinterpret_cast<Operand*>(weights), Width * kLanes / kStep};
  }
  template <int Width>
  Rows<Operand> grad_rows(const Strip<Width>&) const {
    return {reinterpret_cast<Operand*>(grad_scores), Width * kLanes / kStep};
  }

  Real* strips;
  Real *weights, *grad_scores, *kept;  // of a strip and a block of keys, [key][query]
  Operand* grad_columns;               // [key / kStep][query]
  Operand *key, *key_columns, *value;
};

/// Calls body(first, tile) with tiles of the gradients of the final natural scores. Leaves weight_rows and, in
/// `grad_scores`, the derivatives of an expression. False: no query sees any of the keys.
template <int Width, class Body>
ORCHARD_INLINE bool differentiate(Strip<Width> strip, const Meeting& meeting, const Softmax& softmax,
                                  const Space& space, Body body) {
  const Rows<Real> weights{space.weights, strip.kQueries}, slopes{space.grad_scores, strip.kQueries},
      kept{space.kept, strip.kQueries};
  if (!softmax.scores.prepare<Width>(meeting, weights)) return false;
  if constexpr (kDropout) softmax.dropout.draw<Width>(meeting, kept);

  multiply<Width>(meeting.operands.key_rows, meeting.count, strip.query, steps(kHeadDim), [&](int first, auto tile) {
    const bool border = meeting.on_border<Width>(first, first + tile.kHeight);
    tile.for_each([&](int row, int v, Vector product) {
      Real* place = weights[first + row] + v * kLanes;
      const Vector lse = load(strip.lse + v * kLanes);
      Vector score = softmax.scores.finish(product, meeting, first + row, v, place);
      if (border) score = meeting.bounded(score, first + row, v);
      Vector weight = exp2(score - lse);
      if constexpr (kModifiesScore) {
        // An expression may make anything of a query that is none.
        weight = lse == kInfinity ? Vector{} : weight;
        const auto at = softmax.scores.place(meeting, first + row, v);
        const Vector score = score_of(product, softmax.scores.product_scale);
        store(slopes[first + row] + v * kLanes, slope(softmax.scores.inputs, score, at));
      }
      store(place, weight);
    });
  });
  const auto weigh_gradients = [&](int first, auto tile) {
    const bool hides = kAdds || kModifiesScore || meeting.on_border<Width>(first, first + tile.kHeight);
    tile.for_each([&](int row, int v, Vector& grad) {  // of the weight, then of the score
      row += first;
      Vector weight = load(weights[row] + v * kLanes), factor = broadcast(1);
      if constexpr (kDropout) factor = load(kept[row] + v * kLanes);
      grad = weight * (grad * factor - load(strip.delta + v * kLanes));
      // Whatever the value of a hidden key holds. A key past the last one has no operand of its own.
      if (hides) grad = weight == 0 ? Vector{} : grad;
      if (kStep > 1 && row >= meeting.count) grad = Vector{};
      if constexpr (kStep > 1 || kDropout)
        store_along(space.weight_rows(strip)[row] + v * kLanes / kStep, weight * factor);
    });
    body(first, tile);
  };
  multiply<Width>(meeting.operands.value_rows, meeting.count, strip.grad_out, steps(kHeadDimV),
                  weigh_gradients);
  return true;
}

}  // namespace orchard
