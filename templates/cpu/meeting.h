// Strips of queries meet the keys that they see.
#pragma once

#include "attention.h"

namespace orchard {

/// The keys and values of the next block, asked for a row at a time while tiles of this one are summed up: asked for all
/// at once, they would be waited for. What is packed is asked for by the packing.
class NextBlock {
 public:
  /// `tiles` will ask.
  NextBlock(Rows<const Element> keys, Rows<const Element> values, int64_t count, int64_t tiles)
      : keys_(keys), values_(values), rows_(2 * max<int64_t>(count, 0)), each_(divide_up(rows_, tiles)) {}

  ORCHARD_INLINE void ask() {
    if constexpr (!kInPlace) return;
    for (const int64_t end = min(asked_ + each_, rows_); asked_ < end; asked_++) {
      if (asked_ % 2) {
        prefetch<kHeadDimV>(values_, asked_ / 2);
      } else {
        prefetch<kHeadDim>(keys_, asked_ / 2);
      }
    }
  }

 private:
  Rows<const Element> keys_, values_;
  int64_t rows_, each_, asked_ = 0;  // of both: in all, by a tile, so far
};

/// Keys and values as the products want them: those along their rows, and those down their columns.
struct KeyOperands {
  Rows<const Operand> key_rows, key_columns, value_rows, value_columns;

  /// From an operand's first key on.
  KeyOperands from(int64_t key) const {
    return {key_rows.from(key), from_depth(key_columns, key), value_rows.from(key),
            from_depth(value_columns, key)};
  }
};

/// A strip of queries and some keys, all of which some of its queries see.
struct Meeting {
  KeyOperands operands;
  int64_t query, key;  // the first ones' places in the sequence
  int queries, count;
  Range seen;  // by the first query, relative to `key`; by the one after it, a key further
  NextBlock& next;

  /// Whether some of these keys are hidden from some query. A meeting on the border is that of a narrow strip, unless AMX
  /// multiplies: to it, half a strip in vain is less than many narrow ones.
  template <int Width>
  ORCHARD_INLINE bool on_border(int first, int end) const {
    if constexpr (!kAmx && Width > kNarrowVectors) return false;
    return (kBounded && end > seen.end) || (kWindow && first < seen.first + Width * kLanes - 1);
  }
  /// Whether the v-th vector of queries sees the key. Rows past the last key count as it.
  ORCHARD_INLINE IntegerVector sees(int row, int v) const {
    row = min(row, count - 1) - v * kLanes;
    IntegerVector sees = lane_numbers() > Integer(row - seen.end);
    if constexpr (kWindow) sees &= lane_numbers() <= Integer(row - seen.first);
    return sees;
  }
  /// What a tile of scores or weights, from key `first` on, holds where a query does not see the key, becomes `hidden`.
  template <int Width, class AnyTile>
  ORCHARD_INLINE void hide(int first, AnyTile& tile, Real hidden) const {
    if (!on_border<Width>(first, first + AnyTile::kHeight)) return;
    tile.for_each([&](int row, int v, Vector& number) {
      number = sees(first + row, v) ? number : broadcast(hidden);
    });
  }
};

/// Lets `rows` queries from `start` on meet a block of keys: attend(strip, meeting). A whole strip meets the keys that
/// all its queries see, and its narrow parts those on the borders.
template <template <int> class Strip, class Attend>
ORCHARD_INLINE void meet_block(const Bounds& bounds, const KeyOperands& operands, Range block, int64_t start,
                               int64_t rows, Real* strips, NextBlock& next, Attend attend) {
  for_each_strip(rows, [&](auto width, int64_t row) {
    const auto strip = Strip<width>::at(strips, row);
    const int64_t query = start + row;
    const int queries = min<int64_t>(strip.kQueries, rows - row);
    const auto meet = [&](auto strip, int lane, Range part) {
      const int64_t first = part.first - block.first;
      const Range seen = bounds.seen_by(query + lane);
      attend(strip, Meeting{operands.from(first),
                            query + lane,
                            part.first,
                            min(strip.kQueries, queries - lane),
                            int(part.end - part.first),
                            {seen.first - part.first, seen.end - part.first},
                            next});
    };

    // A part begins where an operand does, or a tile.
    constexpr int kGrain = kStep * kDepthGrain;
    static_assert(kGrain % kRowGrain == 0);
    const auto aligned = [&](int64_t key) { return key - (key - block.first) % kGrain; };
    if constexpr (kAmx) {
      const Range part = block & bounds.seen_by_any(query, queries);
      if (!part.empty()) meet(strip, 0, {aligned(part.first), part.end});
      return;
    }
    Range shared = block & bounds.seen_by_all(query, queries);
    shared.first = aligned(shared.first + kGrain - 1);
    constexpr int kHeight = tile_height(width);  // on the border, whole tiles
    if (shared.end < block.end)
      shared.end = shared.first + max<int64_t>(shared.end - shared.first, 0) / kHeight * kHeight;
    if (shared.empty()) shared = {block.first, block.first};
    if (!shared.empty()) meet(strip, 0, shared);
    if (shared.end == block.end && shared.first == block.first) return;
    for (int lane = 0; lane < queries; lane += kNarrow) {
      const Range seen = bounds.seen_by_any(query + lane, min(kNarrow, queries - lane));
      for (Range border : {Range{block.first, shared.first}, Range{shared.end, block.end}}) {
        const Range part = border & seen;
        if (!part.empty()) meet(strip.template part<kNarrowVectors>(lane / kLanes), lane, {aligned(part.first), part.end});
      }
    }
  });
}

/// Of the scores of so many queries and keys.
inline int64_t tiles(int64_t queries, int64_t keys) {
  return divide_up(queries, tile_width(kStripVectors) * kLanes) * divide_up(keys, tile_height(kStripVectors));
}

/// Lets the queries meet a range of keys, a block at a time. The blocks are those of the whole sequence, whichever queries
/// meet them. met(block) comes after each.
template <template <int> class Strip, class Space, class Attend, class Met>
void meet_range(const Head& head, const Bounds& bounds, Range range, int64_t start, int64_t rows,
                const Space& space, Attend attend, Met met) {
  const auto keys = head.keys<const Element>(head.call.key, head.call.params.key);
  const auto values = head.keys<const Element>(head.call.value, head.call.params.value);
  constexpr int64_t kSkipped = 32;  // keys at once: parts of the block begin where they would
  for (int64_t first = range.first / kBlockK * kBlockK; first < range.end; first += kBlockK) {
    const int64_t unseen = max<int64_t>(range.first - first, 0) / kSkipped * kSkipped;
    const Range block{first + unseen, min(range.end, first + kBlockK)};
    const int64_t count = block.end - block.first;
    NextBlock next(keys.from(block.end), values.from(block.end), min<int64_t>(kBlockK, range.end - block.end),
                   tiles(rows, count));
    meet_block<Strip>(bounds, space.pack(keys.from(block.first), values.from(block.first), count), block, start, rows,
                      space.strips, next, attend);
    met(block);
  }
}

struct Nothing {
  void operator()(Range) const {}
};

/// Lets the queries meet all keys that they see.
template <template <int> class Strip, class Space, class Attend, class Met = Nothing>
void meet_keys(const Head& head, int64_t start, int64_t rows, const Space& space, Attend attend, Met met = {}) {
  const Bounds bounds(head.call.params, head.sequence);
  meet_range<Strip>(head, bounds, bounds.keys() & bounds.seen_by_any(start, rows), start, rows, space, attend, met);
}

}  // namespace orchard
