// What the forward and the backward pass share: heads, strips of queries, and the keys that they meet.
#pragma once

#include "exp2.h"
#include "params.h"
#include "tile.h"
#include "workers.h"

namespace orchard {

constexpr Real kLog2E = 1.44269504088896340736;
constexpr Real kInfinity = __builtin_inf();

/// A strip is as many vectors of queries as make a good tile. Its matrices are transposed: lanes are queries.
constexpr int kStripVectors = kRegisters == 32 ? 4 : 2;
constexpr int kStrip = kStripVectors * kLanes;

template <class T>
Rows<T> head_rows(const OrchardBuffer& buffer, const OrchardStrides& strides, int64_t batch, int64_t head) {
  return {static_cast<T*>(buffer.data) + batch * strides.batch + head * strides.head, strides.row};
}

/// One head's numbers in a dense (batch, heads, query_length) tensor; null if there is no tensor.
inline Real* head_numbers(const OrchardBuffer& buffer, const OrchardParams& params, int64_t batch,
                          int64_t head) {
  Real* data = static_cast<Real*>(buffer.data);
  return data ? data + (batch * params.heads + head) * params.query_length : nullptr;
}

/// How many keys the query sees, if there are as many; negative when the causal border lies before the first.
inline int64_t visible_keys(const OrchardParams& params, int64_t query) {
  if (!kCausal) return params.key_length;
  return query + 1 + clamp(params.diagonal, -params.query_length, params.key_length);
}

/// Keys that a strip meets at once.
struct Keys {
  Rows<const Real> key, value;
  int64_t first;  // where they start in the sequence
  int count;
  int visible;  // on the causal border, lane i of a single vector sees only the first visible + i

  bool on_border(int end) const { return kCausal && end > visible; }
  ORCHARD_INLINE Vector masked(Vector score, int row, Real hidden) const {
    return lane_numbers() > Integer(row - visible) ? score : broadcast(hidden);
  }
};

/// Calls body(width, row) for the strips of `rows` queries: whole ones, then single vectors for a short rest.
template <class Body>
ORCHARD_INLINE void for_each_strip(int64_t rows, Body body) {
  int64_t row = 0;
  for (; rows - row > kStrip / 2; row += kStrip) body(std::integral_constant<int, kStripVectors>{}, row);
  for (; row < rows; row += kLanes) body(std::integral_constant<int, 1>{}, row);
}

/// Calls body(strip, row) for each single vector of the strips.
template <template <int> class Strip, class Body>
ORCHARD_INLINE void for_each_vector(int64_t rows, Real* strips, Body body) {
  for_each_strip(rows, [&](auto width, int64_t row) {
    const auto strip = Strip<width>::at(strips, row);
    for (int v = 0; v < width; v++) body(strip.vector(v), row + v * kLanes);
  });
}

/// Lets `rows` queries from `start` on meet the keys that they see: attend(strip, keys), a block of keys at a time.
/// A whole strip meets the keys that all its queries see, and its single vectors those on the causal border.
template <template <int> class Strip, class Space, class Attend>
void meet_keys(const OrchardParams& params, Rows<const Element> key, Rows<const Element> value, int64_t start,
               int64_t rows, const Space& space, Attend attend) {
  const int64_t end = min(params.key_length, visible_keys(params, start + rows - 1));
  for (int64_t first = 0; first < end; first += kBlockK) {
    const int count = min<int64_t>(kBlockK, end - first);
    const auto keys = widened<kHeadDim>(key.from(first), count, space.key);
    const auto values = widened<kHeadDimV>(value.from(first), count, space.value);
    for_each_strip(rows, [&](auto width, int64_t row) {
      const auto strip = Strip<width>::at(space.strips, row);
      const int64_t visible = visible_keys(params, start + row) - first;
      constexpr int kHeight = tile_height(width);
      const int shared = visible < count ? max<int64_t>(visible, 0) / kHeight * kHeight : count;
      if (shared > 0) attend(strip, Keys{keys, values, first, shared, shared});
      if (shared == count) return;
      for (int lane = 0; lane < min<int64_t>(strip.kQueries, rows - row); lane += kLanes) {
        const int64_t seen = visible + lane - shared;  // of the border's keys, by lane 0
        const int64_t seen_by_last = seen + min<int64_t>(kLanes, rows - row - lane) - 1;
        if (seen_by_last <= 0) continue;
        attend(strip.vector(lane / kLanes),
               Keys{keys.from(shared), values.from(shared), first + shared,
                    int(min<int64_t>(seen_by_last, count - shared)), int(min<int64_t>(seen, count))});
      }
    });
  }
}

}  // namespace orchard
