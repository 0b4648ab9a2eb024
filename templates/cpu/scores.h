// What happens to a score between the product of query and key and the softmax: the one place where it becomes final.
#pragma once

#include "meeting.h"
#include "plane.h"

namespace orchard {

/// Whether something is added to the scores, -inf where they are hidden, which has to be brought together first.
constexpr bool kAdds = kMask || kBias || kMasksScore;

/// The scores of one head.
struct Scores {
  explicit Scores(const Head& head)
      : head(head),
        product_scale(orchard::product_scale(head.call)),
        inputs(head.call),
        bias(head_plane<const BiasElement>(head.call.bias, head.call.params.bias, head.batch, head.index)),
        mask(head_plane<const uint8_t>(head.call.mask, head.call.params.mask, head.batch, head.index)) {}

  /// Fills block[key][query] with what `finish` is to add. False: no query sees any of the keys.
  template <int Width>
  bool prepare(const Meeting& meeting, Rows<Real> block) const {
    if constexpr (!kAdds) return true;
    const int rows = round_up(meeting.count, max(tile_height(Width), kRowGrain));  // keys past the last are hidden
    IntegerVector seen = {};
    for (int v = 0; v < Width; v++) {
      for (int first = 0; first < rows; first += kLanes) {
        Vector added[kLanes];
        bring_together(meeting, v, first, added);
        ORCHARD_UNROLL
        for (int key = 0; key < kLanes; key++) {
          if (first + key >= meeting.count) added[key] = broadcast(-kInfinity);
          seen |= (IntegerVector)added[key] ^ (IntegerVector)broadcast(-kInfinity);
          if (first + key < rows) store(block[first + key] + v * kLanes, added[key]);
        }
      }
    }
    return any(seen);
  }

  /// The final score in powers of two, of a row of keys and the v-th vector of queries.
  ORCHARD_INLINE Vector finish(Vector product, const Meeting& meeting, int row, int v,
                               const Real* prepared) const {
    Vector score = score_of(product, product_scale);
    if constexpr (kModifiesScore) score = in_base_2(modify(inputs, score, place(meeting, row, v)));
    if constexpr (kAdds) {
      const Vector added = load(prepared);
      score = added == -kInfinity ? added : score + added;
    }
    return score;
  }

  /// What is added to the scores of kLanes keys and the v-th vector of queries.
  ORCHARD_INLINE void bring_together(const Meeting& meeting, int v, int first,
                                     Vector (&added)[kLanes]) const {
    const int lane = min(v * kLanes, meeting.queries - 1);
    const int queries = meeting.queries - lane, keys = max(meeting.count - first, 0);
    for (Vector& value : added) value = Vector{};
    if constexpr (kBias) {
      load_square(bias.from(meeting.query + lane, meeting.key + first), queries, keys, added);
      for (Vector& value : added) value = in_base_2(value);
    }
    if constexpr (kMask) {
      Vector shown[kLanes];
      load_square(mask.from(meeting.query + lane, meeting.key + first), queries, keys, shown);
      for (int key = 0; key < kLanes; key++)
        added[key] = shown[key] == 0 ? broadcast(-kInfinity) : added[key];
    }
    if constexpr (kMasksScore) {
      for (int key = 0; key < min(kLanes, keys); key++) {
        added[key] = visible(inputs, place(meeting, first + key, v)) ? added[key] : broadcast(-kInfinity);
      }
    }
  }

  /// Rows past the last key and lanes past the last query repeat it.
  ORCHARD_INLINE Coordinates<Integer> place(const Meeting& meeting, int row, int v) const {
    const IntegerVector lane = lane_numbers() + Integer(v * kLanes),
                        last = Integer(meeting.queries - 1) - IntegerVector{};
    return {Integer(head.batch),
            Integer(head.index),
            Integer(meeting.query) + (lane < last ? lane : last),
            Integer(meeting.key + min(row, meeting.count - 1)),
            Integer(head.sequence.query_length),
            Integer(head.sequence.key_length)};
  }

  const Head& head;
  Real product_scale;
  ScoreInputs inputs;
  Plane<const BiasElement> bias;
  Plane<const uint8_t> mask;
};

}  // namespace orchard
