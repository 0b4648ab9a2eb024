// The sequences of a call, and which keys a query sees by its place.
#pragma once

#include "numbers.h"
#include "params.h"
#include "variant.h"

namespace orchard {

constexpr bool kBounded = kCausal || kWindow;

/// One sequence of queries, and the keys that go with it.
struct Sequence {
  Sequence(const OrchardCall& call, int64_t index)
      : query_length(call.params.query_length), key_length(call.params.key_length) {
    if constexpr (kVarlen) {
      const int32_t* queries = static_cast<const int32_t*>(call.query_offsets.data) + index;
      const int32_t* keys = static_cast<const int32_t*>(call.key_offsets.data) + index;
      first_query = queries[0], query_length = queries[1] - queries[0];
      first_key = keys[0], key_length = keys[1] - keys[0];
    }
    key_rows = key_length;
    if constexpr (kLengths) {
      key_length = clamp<int64_t>(static_cast<const int32_t*>(call.key_lengths.data)[index], 0, key_length);
    }
  }

  int64_t first_query = 0, first_key = 0;  // their rows in the tensors
  int64_t query_length, key_length;
  int64_t key_rows;  // in the tensors: those beyond key_length are padding
};

/// Keys first..end-1.
struct Range {
  int64_t first, end;

  bool empty() const { return end <= first; }
  bool contains(Range other) const { return first <= other.first && other.end <= end; }
  friend Range operator&(Range a, Range b) { return {max(a.first, b.first), min(a.end, b.end)}; }
};

/// Which keys the queries of a sequence see by their places.
class Bounds {
 public:
  Bounds(const OrchardParams& params, const Sequence& sequence)
      : keys_{0, sequence.key_length}, left_(0), right_(0) {
    const int64_t diagonal = params.lower_right ? sequence.key_length - sequence.query_length : 0;
    const int64_t longest = params.query_length + params.key_length;
    if constexpr (kWindow) left_ = diagonal - clamp(params.left, -longest, longest);
    if constexpr (kBounded) right_ = diagonal + clamp(params.right, -longest, longest) + 1;
  }

  Range keys() const { return keys_; }
  /// Of one query. It may reach beyond the sequence.
  Range seen_by(int64_t query) const {
    return {kWindow ? query + left_ : 0, kBounded ? query + right_ : keys_.end};
  }
  Range seen_by_all(int64_t query, int64_t queries) const {
    return {seen_by(query + queries - 1).first, seen_by(query).end};
  }
  Range seen_by_any(int64_t query, int64_t queries) const {
    return {seen_by(query).first, seen_by(query + queries - 1).end};
  }

 private:
  Range keys_;
  int64_t left_, right_;
};

}  // namespace orchard
