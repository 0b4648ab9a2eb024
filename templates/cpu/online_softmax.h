// The online softmax: strips of queries and what they have summed up of the keys that they have met.
#pragma once

#include "attention.h"

namespace orchard {

/// What the weights of some keys may sum up to, relative to a maximum of others.
constexpr Real kMostWeight = 0x1p30;

/// Some vectors of queries on their way through the keys.
template <int Width>
struct Strip {
  static constexpr int kWidth = Width, kQueries = Width * kLanes;
  static constexpr int kRealsPerQuery = steps(kHeadDim) + kHeadDimV + 2;

  Rows<Operand> query;  // [steps(kHeadDim)][kQueries]
  Rows<Real> out;       // [kHeadDimV][kQueries], still to be divided by `sum`
  Real* maximum;        // [kQueries], the largest score so far, or not much less
  Real* sum;            // [kQueries], of exp2(score - maximum)

  static Strip at(Real* strips, int64_t row) {
    Real* start = strips + row * kRealsPerQuery;
    const Rows<Real> out{start + steps(kHeadDim) * kQueries, kQueries};
    Real* maximum = out[kHeadDimV];
    return {{reinterpret_cast<Operand*>(start), kQueries}, out, maximum, maximum + kQueries};
  }

  /// Some of its vectors.
  template <int Part>
  Strip<Part> part(int v) const {
    const int lane = v * kLanes;
    return {query.from_column(lane), out.from_column(lane), maximum + lane, sum + lane};
  }

  /// Calls body(first, tile) with tiles of keys · query.
  template <class Body>
  ORCHARD_INLINE void multiply_keys(Rows<const Operand> keys, int count, Body body) const {
    multiply<Width>(keys, count, query, steps(kHeadDim), body);
  }
  /// Calls body(first, tile) with tiles of transposed values · weights.
  template <class Body>
  ORCHARD_INLINE void multiply_values(Rows<const Operand> values, Rows<const Operand> weights, int count,
                                      Body body) const {
    multiply_transposed<kHeadDimV, Width>(values, weights, steps(count), body);
  }
  /// Values, weighed.
  ORCHARD_INLINE void add_values(Rows<const Operand> values, Rows<const Operand> weights, int count) const {
    add_transposed_product<kHeadDimV, Width>(values, weights, steps(count), out);
  }
};

/// Before the first key.
inline void clear(Strip<1> strip) {
  for (int d = 0; d < kHeadDimV; d++) store(strip.out[d], Vector{});
  store(strip.maximum, broadcast(-kInfinity));
  store(strip.sum, Vector{});
}

/// Scores to subtract from others: 0 where no key is seen yet and all scores are -inf.
ORCHARD_INLINE Vector reference(Vector maximum) { return maximum == -kInfinity ? Vector{} : maximum; }

/// Of a sum of weights: 0 where no key is seen.
ORCHARD_INLINE Vector inverse(Vector sum) { return sum == 0 ? sum : 1 / sum; }

/// These keys join those that the strip has met before. finish(first, tile) makes a tile of products the final scores
/// of the keys from `first` on; hide(first, tile, hidden) makes those `hidden` that a query does not see, of scores or of
/// weights; weigh(weight, row, v) is what a value is multiplied by. The scores are gone through twice: for their maximum,
/// and for the weights that are relative to it.
template <class AnyStrip, class T, class Finish, class Hide, class Weigh>
ORCHARD_INLINE void attend_twice(AnyStrip strip, Rows<const T> keys, Rows<const T> values, int count,
                                 Rows<Real> scores, Finish finish, Hide hide, Weigh weigh) {
  constexpr int kWidth = AnyStrip::kWidth;
  Vector largest[kWidth];
  for (Vector& score : largest) score = broadcast(-kInfinity);
  strip.multiply_keys(keys, count, [&](int first, auto tile) {
    finish(first, tile);
    hide(first, tile, -kInfinity);
    if constexpr (kAmx) hide_rest(tile, first, count, -kInfinity);  // elsewhere they repeat the last key
    tile.for_each([&](int row, int v, Vector score) {
      largest[v] = max(largest[v], score);
      store(scores[first + row] + v * kLanes, score);
    });
  });

  const Rows<Operand> weights{reinterpret_cast<Operand*>(scores.data), scores.stride};  // in the scores' place
  Vector decay[kWidth];  // of what was summed up relative to the former maximum
  for (int v = 0; v < kWidth; v++) {
    Real *maximum = strip.maximum + v * kLanes, *sum = strip.sum + v * kLanes;
    const Vector highest = max(load(maximum), largest[v]), lowered = reference(highest);
    decay[v] = exp2(load(maximum) - lowered);
    Vector total = {};
    for (int row = 0; row < count; row += kStep) {
      Vector weighed[kStep] = {};
      for (int next = 0; next < min(kStep, count - row); next++) {
        const Vector weight = exp2(load(scores[row + next] + v * kLanes) - lowered);
        total += weight;
        weighed[next] = weigh(weight, row + next, v);
      }
      store_operands(weights[row / kStep] + v * kLanes, operands(weighed));
    }
    store(sum, load(sum) * decay[v] + total);
    store(maximum, highest);
  }

  clear_rest<kWidth>(weights, count);
  strip.multiply_values(values, weights, count, [&](int first, auto tile) {
    tile.for_each([&](int row, int v, Vector product) {
      Real* out = strip.out[first + row] + v * kLanes;
      store(out, load(out) * decay[v] + product);
    });
  });
}

/// The same in one go, while products are still in registers: relative to the maximum of the keys before. False where
/// there were none or these keys go too far beyond it; the strip is then as it was, and `scores` spent.
template <class AnyStrip, class Finish, class Hide, class Weigh>
ORCHARD_INLINE bool attend_once(AnyStrip strip, Rows<const Operand> keys, Rows<const Operand> values, int count,
                                Rows<Real> scores, Finish finish, Hide hide, Weigh weigh) {
  constexpr int kWidth = AnyStrip::kWidth;
  Vector maximum[kWidth], total[kWidth] = {};
  IntegerVector fails = {};
  for (int v = 0; v < kWidth; v++) {
    maximum[v] = load(strip.maximum + v * kLanes);
    fails |= maximum[v] == -kInfinity;
  }
  if (any(fails)) return false;

  const Rows<Operand> weights{reinterpret_cast<Operand*>(scores.data), scores.stride};
  strip.multiply_keys(keys, count, [&](int first, auto tile) {
    finish(first, tile);
    tile.for_each([&](int, int v, Vector& score) { score = exp2_or_huge(score - maximum[v]); });
    hide(first, tile, 0);
    hide_rest(tile, first, count, 0);
    tile.for_each([&](int row, int v, Vector& weight) {
      total[v] += weight;
      weight = weigh(weight, first + row, v);
    });
    tile.template store_down<true>(weights.from(first / kStep));
  });
  for (int v = 0; v < kWidth; v++) fails |= ~(total[v] <= kMostWeight);
  if (any(fails)) return false;

  for (int v = 0; v < kWidth; v++) store(strip.sum + v * kLanes, load(strip.sum + v * kLanes) + total[v]);
  clear_rest<kWidth>(weights, count);
  strip.add_values(values, weights, count);
  return true;
}

}  // namespace orchard
