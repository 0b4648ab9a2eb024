// What the passes share: heads, and strips of queries.
#pragma once

#include "exp2.h"
#include "products.h"
#include "rows.h"
#include "score.h"
#include "sequence.h"
#include "workers.h"

namespace orchard {

constexpr Real kLog2E = 1.44269504088896340736;
constexpr Real kInfinity = __builtin_inf();
constexpr Real kLargest = sizeof(Real) == 4 ? __FLT_MAX__ : __DBL_MAX__;

/// A natural score in base 2. What is finite stays so: the lowest number hides no key, only -inf does.
ORCHARD_INLINE Vector in_base_2(Vector score) {
  Vector power = score * kLog2E;
  power = max(broadcast(-kLargest), min(broadcast(kLargest), power));
  return score - score == 0 ? power : score;
}

/// What makes a product of query and key a score, besides the scale: expressions want natural scores, the softmax
/// powers of two. Queries are multiplied by it, unless they would be rounded once more: then the products are.
constexpr Real kScoreFactor = kModifiesScore ? Real(1) : kLog2E;
constexpr bool kScalesQueries = kStep == 1;

/// operands[d / kStep][lane] = rows[lane][d]; lanes from `count` on become zero.
template <class T>
void load_queries(Rows<const T> rows, int64_t count, Real scale, Rows<Operand> operands) {
  if constexpr (kScalesQueries)
    load_transposed<kHeadDim>(rows, count, scale * kScoreFactor, operands);
  else
    pack_transposed<kHeadDim>(rows, count, operands);
}

/// What a product of a query and a key is to be multiplied by, so that it becomes a score.
inline Real product_scale(const OrchardCall& call) { return call.scale * kScoreFactor; }
ORCHARD_INLINE Vector score_of(Vector product, Real product_scale) {
  return kScalesQueries ? product : product * product_scale;
}

/// A strip is as many vectors of queries as make a good tile; where products sum up over queries, as many as make a good
/// depth. Its matrices are transposed: lanes are queries.
constexpr int kStripVectors = kBackward ? max(64 / kLanes, kTileVectors) : kTileVectors;
constexpr int kStrip = kStripVectors * kLanes;
/// A narrow strip takes a short rest or a border.
constexpr int kNarrowVectors = kAmx ? 2 : kStripVectors > kTileVectors ? kTileVectors : 1;
constexpr int kNarrow = kNarrowVectors * kLanes;

/// One query head of one sequence, and where its rows lie.
struct Head {
  Head(const OrchardCall& call, int64_t batch, int64_t index)
      : call(call),
        sequence(call, batch),
        batch(batch),
        index(index),
        kv(index / (call.params.heads / call.params.kv_heads)) {}

  const OrchardCall& call;
  Sequence sequence;
  int64_t batch, index;
  int64_t kv;  // the head of its keys and values

  /// Of `query` or a tensor with the same rows.
  template <class T>
  Rows<T> queries(const OrchardBuffer& buffer, const OrchardStrides& strides) const {
    return rows<T>(buffer, strides, index).from(sequence.first_query);
  }
  /// Of `key` or a tensor with the same rows.
  template <class T>
  Rows<T> keys(const OrchardBuffer& buffer, const OrchardStrides& strides) const {
    return rows<T>(buffer, strides, kv).from(sequence.first_key);
  }
  /// Of `lse` or a tensor with the same rows; null if there is none.
  Real* numbers(const OrchardBuffer& buffer) const {
    return buffer.data ? rows<Real>(buffer, call.params.lse, index).data + sequence.first_query : nullptr;
  }

 private:
  template <class T>
  Rows<T> rows(const OrchardBuffer& buffer, const OrchardStrides& strides, int64_t head) const {
    return {static_cast<T*>(buffer.data) + batch * strides.batch + head * strides.head, strides.row};
  }
};

/// Calls body(width, row) for the strips of `rows` queries: whole ones, then narrow ones for a short rest.
template <class Body>
ORCHARD_INLINE void for_each_strip(int64_t rows, Body body) {
  int64_t row = 0;
  for (; rows - row > kStrip / 2; row += kStrip) body(std::integral_constant<int, kStripVectors>{}, row);
  for (; row < rows; row += kNarrow) body(std::integral_constant<int, kNarrowVectors>{}, row);
}

/// Queries that the strips of so many have room for.
inline int64_t strip_rows(int64_t rows) {
  const int64_t rest = rows % kStrip;
  return rows - rest + (rest > kStrip / 2 ? kStrip : round_up(rest, kNarrow));
}

/// Calls body(strip, row) for each single vector of the strips.
template <template <int> class Strip, class Body>
ORCHARD_INLINE void for_each_vector(int64_t rows, Real* strips, Body body) {
  for_each_strip(rows, [&](auto width, int64_t row) {
    const auto strip = Strip<width>::at(strips, row);
    for (int v = 0; v < width; v++) body(strip.template part<1>(v), row + v * kLanes);
  });
}

}  // namespace orchard
