// What the products over queries take of the scores, and where AMX multiplies, how they wait for more queries.
#pragma once

#include "backward_strip.h"

namespace orchard {

/// The weights of some keys and the gradients of their scores, [key][query / kStep].
struct ScoreRows {
  Rows<Operand> weights, grads;

  ScoreRows from(int64_t key, int64_t query) const {
    return {weights.from(key).from_column(query / kStep), grads.from(key).from_column(query / kStep)};
  }
};

/// Those of a block of keys, of all strips of a task side by side: the sums of a product over queries pass through memory,
/// so it should be deep.
class GatheredRows {
 public:
  GatheredRows(Arena& arena, int64_t keys, int64_t queries)
      : rows_{take(arena, keys, queries), take(arena, keys, queries)},
        tiles_(divide_up(keys, kRowGrain)),
        met_(arena.take<Range>(tiles_)) {}

  /// Before the first block.
  void clear() const {
    for (int64_t tile = 0; tile < tiles_; tile++) met_[tile] = {};
  }
  ScoreRows of(const Meeting& meeting) const {
    return rows_.from(meeting.key % kBlockK, meeting.query % kBlockQ);
  }
  /// So many queries of a strip have met some keys, a part of the block that ends a tile. Strips that meet the same keys
  /// follow each other.
  void add(const Meeting& meeting, int queries, bool seen) const {
    const int64_t key = meeting.key % kBlockK, query = meeting.query % kBlockQ;
    for (int64_t tile = key / kRowGrain; tile < divide_up(key + meeting.count, kRowGrain); tile++)
      met_[tile] = {met_[tile].empty() ? query : met_[tile].first, query + queries};
    if (seen) return;
    const ScoreRows rows = of(meeting);
    for (int64_t row = 0; row < operand_rows(meeting.count); row++) {
      for (Operand* unseen : {rows.weights[row], rows.grads[row]})
        __builtin_memset(unseen, 0, queries / kStep * sizeof(Operand));
    }
  }
  /// Calls body(keys, rows, queries) with all that has been added of the block, and forgets it.
  template <class Body>
  void hand_over(Range block, Body body) const {
    const int64_t start = block.first / kBlockK * kBlockK;
    for (int64_t tile = 0; tile < tiles_;) {
      const Range queries = met_[tile];
      int64_t end = tile;
      while (end < tiles_ && met_[end].first == queries.first && met_[end].end == queries.end) met_[end++] = {};
      const Range keys{start + tile * kRowGrain, min(block.end, start + end * kRowGrain)};
      if (!queries.empty()) body(keys, rows_.from(tile * kRowGrain, queries.first), queries);
      tile = end;
    }
  }

 private:
  static Rows<Operand> take(Arena& arena, int64_t keys, int64_t queries) {
    const int64_t row = pitch(steps(strip_rows(queries)));
    return {arena.take<Operand>(operand_rows(keys) * row), row};
  }

  ScoreRows rows_;
  int64_t tiles_;
  Range* met_;  // [tile of keys], the queries that have
};

}  // namespace orchard
