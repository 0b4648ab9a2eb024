// The query heads that share keys and values, with their queries side by side, and the scores of these.
#pragma once

#include "attention.h"

namespace orchard {

/// Its rows are the queries of one sequence, those of all its heads side by side.
struct Group {
  Group(const OrchardCall& call, int64_t batch, int64_t kv_head)
      : call(call),
        heads(call.params.heads / call.params.kv_heads),
        first(call, batch, kv_head * heads),
        bounds(call.params, first.sequence),
        rows(heads * first.sequence.query_length) {}

  const OrchardCall& call;
  int64_t heads;
  Head first;
  Bounds bounds;
  int64_t rows;

  int64_t head(int64_t row) const { return first.index + row % heads; }
  int64_t query(int64_t row) const { return row / heads; }

  template <class T>
  T* row_of(const OrchardBuffer& buffer, const OrchardStrides& strides, int64_t row) const {
    return first.queries<T>(buffer, strides)[query(row)] + row % heads * strides.head;
  }
  /// The keys that some query sees, cut into equal parts.
  Range part(int64_t index, int64_t parts) const {
    const Range seen = bounds.keys() & bounds.seen_by_any(0, first.sequence.query_length);
    const int64_t length = divide_up(max<int64_t>(seen.end - seen.first, 0), parts);
    return seen & Range{seen.first + index * length, seen.first + (index + 1) * length};
  }
};

/// Where a vector of rows lies. Lanes past the last row repeat it.
struct Places {
  IntegerVector head, query;
};

inline Places places(const Group& group, int64_t first) {
  Places at{};
  for (int lane = 0; lane < kLanes; lane++) {
    const int64_t row = min(first + lane, group.rows - 1);
    at.head[lane] = group.head(row);
    at.query[lane] = group.query(row);
  }
  return at;
}

/// The scores of a strip of rows and a block of keys.
template <int Width>
class GroupScores {
 public:
  GroupScores(const Group& group, int64_t first_row, Range keys)
      : group_(group),
        product_scale_(product_scale(group.call)),
        inputs_(group.call),
        keys_(keys),
        seen_(group.bounds.seen_by(0)),
        border_(!group.bounds.seen_by_all(0, group.first.sequence.query_length).contains(keys)) {
    if (!border_ && !kModifiesScore && !kMasksScore) return;
    for (int v = 0; v < Width; v++) at_[v] = places(group, first_row + v * kLanes);
  }

  /// Fills block[key][row] with what `finish` is to add. False: no row sees any of the keys.
  bool prepare(Rows<Real> block) const {
    if constexpr (!kMasksScore) return true;
    IntegerVector seen = {};
    for (int key = 0; key < keys_.end - keys_.first; key++) {
      for (int v = 0; v < Width; v++) {
        const IntegerVector sees = visible(inputs_, place(key, v));
        seen |= sees;
        store(block[key] + v * kLanes, sees ? Vector{} : broadcast(-kInfinity));
      }
    }
    return any(seen);
  }

  /// The final score in powers of two, of a key and the v-th vector of rows. Keys past the last repeat it.
  ORCHARD_INLINE Vector finish(Vector product, int key, int v, Rows<Real> prepared) const {
    Vector score = score_of(product, product_scale_);
    key = min<int64_t>(key, keys_.end - keys_.first - 1);
    if constexpr (kModifiesScore) score = in_base_2(modify(inputs_, score, place(key, v)));
    if constexpr (kMasksScore) {
      const Vector added = load(prepared[key] + v * kLanes);
      score = added == -kInfinity ? added : score;
    }
    if (!kBounded || !border_) return score;
    IntegerVector sees = at_[v].query > Integer(keys_.first + key - seen_.end);
    if constexpr (kWindow) sees &= at_[v].query <= Integer(keys_.first + key - seen_.first);
    return sees ? score : broadcast(-kInfinity);
  }

 private:
  ORCHARD_INLINE Coordinates<IntegerVector> place(int key, int v) const {
    const Sequence& sequence = group_.first.sequence;
    return {Integer(group_.first.batch),
            at_[v].head,
            at_[v].query,
            Integer(keys_.first + key),
            Integer(sequence.query_length),
            Integer(sequence.key_length)};
  }

  const Group& group_;
  Real product_scale_;
  ScoreInputs inputs_;
  Range keys_;
  Range seen_;   // by the first query; by the one after it, a key further
  bool border_;  // some of the keys are hidden from some query
  Places at_[Width] = {};
};

}  // namespace orchard
