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
    key = arena.take<Real>(kWidens ? keys * kHeadDim : 0);
    value = arena.take<Real>(kWidens ? keys * kHeadDimV : 0);
  }

  Real* strips;
  Real *weights, *grad_scores, *kept;  // of a strip and a block of keys, [key][query]
  Real *key, *value;
};

/// Calls body(row, v, grad_score) with the gradient of each final natural score. Leaves in `weights` what values were
/// multiplied by, and in `grad_scores` the derivatives of an expression. False: no query sees any of the keys.
template <int Width, class Body>
ORCHARD_INLINE bool differentiate(Strip<Width> strip, const Meeting& meeting, const Softmax& softmax,
                                  const Space& space, Body body) {
  const Rows<Real> weights{space.weights, strip.kQueries}, slopes{space.grad_scores, strip.kQueries},
      kept{space.kept, strip.kQueries};
  const auto on_border = [&](int first, int height) {
    return Width == 1 && meeting.on_border(first, first + height);
  };
  if (!softmax.scores.prepare<Width>(meeting, weights)) return false;
  if constexpr (kDropout) softmax.dropout.draw<Width>(meeting, kept);

  multiply<Width>(meeting.keys, meeting.count, strip.query, kHeadDim, [&](int first, auto tile) {
    const bool border = on_border(first, tile.kHeight);
    tile.for_each([&](int row, int v, Vector product) {
      Real* place = weights[first + row] + v * kLanes;
      const Vector lse = load(strip.lse + v * kLanes);
      Vector score = softmax.scores.finish(product, meeting, first + row, v, place);
      if (border) score = meeting.bounded(score, first + row);
      Vector weight = exp2(score - lse);
      if constexpr (kModifiesScore) {
        // An expression may make anything of a query that is none.
        weight = lse == kInfinity ? Vector{} : weight;
        const auto at = softmax.scores.place(meeting, first + row, v);
        store(slopes[first + row] + v * kLanes, slope(softmax.scores.inputs, product, at));
      }
      store(place, weight);
    });
  });
  multiply<Width>(meeting.values, meeting.count, strip.grad_out, kHeadDimV, [&](int first, auto tile) {
    const bool hides = kAdds || kModifiesScore || on_border(first, tile.kHeight);
    tile.for_each([&](int row, int v, Vector grad_weight) {
      Real* place = weights[first + row] + v * kLanes;
      const Vector weight = load(place);
      if constexpr (kDropout) {
        const Vector factor = load(kept[first + row] + v * kLanes);
        grad_weight *= factor;
        store(place, weight * factor);
      }
      Vector grad_score = weight * (grad_weight - load(strip.delta + v * kLanes));
      // Whatever the value of a hidden key holds.
      if (hides) grad_score = weight == 0 ? Vector{} : grad_score;
      body(first + row, v, grad_score);
    });
  });
  return true;
}

}  // namespace orchard
