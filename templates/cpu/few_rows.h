// A strip of so few queries that most lanes of their vector would idle. In its products lanes are the depth, or the
// values' columns, instead.
#pragma once

#include "online_softmax.h"

namespace orchard {

/// With more, it is the keys' memory that takes the time.
constexpr int kMostFew = max(kLanes / 4, 1);

/// Whether the head dims are whole vectors.
constexpr bool kFewRows = steps(kHeadDim) % kLanes == 0 && kHeadDimV % kLanes == 0;

template <int Few>
struct FewRows : Strip<1> {
  Rows<const Operand> rows;  // [Few][steps(kHeadDim)], the queries once more

  FewRows(Strip<1> strip, Operand* space) : Strip<1>(strip), rows{space, steps(kHeadDim)} {
    for (int row = 0; row < Few; row++) {
      for (int t = 0; t < steps(kHeadDim); t++) space[row * rows.stride + t] = strip.query[t][row];
    }
  }

  template <class Body>
  ORCHARD_INLINE void multiply_keys(Rows<const Operand> keys, int count, Body body) const {
    constexpr int kHeight = tile_height(1);
    for (int first = 0; first < count; first += kHeight) {
      Tile<kHeight, 1> tile = {};
      ORCHARD_UNROLL
      for (int r = 0; r < kHeight; r++) {
        const Operand* key = keys[min(first + r, count - 1)];
        Vector sums[Few] = {};
        if (kRowsInPlace<kHeadDim>) prefetch<steps(kHeadDim)>(keys, first + r);
        ORCHARD_UNROLL
        for (int t = 0; t < steps(kHeadDim); t += kLanes) {
          const OperandVector depth = load_operands(key + t);
          for (int row = 0; row < Few; row++) multiply_add(sums[row], depth, load_operands(rows[row] + t));
        }
        for (int row = 0; row < Few; row++) tile.at[r][0][row] = orchard::sum(sums[row]);
      }
      body(first, tile);
    }
  }

  template <class Body>
  ORCHARD_INLINE void multiply_values(Rows<const Operand> values, Rows<const Operand> weights, int count,
                                      Body body) const {
    for_each_chunk<kHeadDimV / kLanes, kRegisters / 2 / Few>([&](int chunk, auto width) {
      const Rows<const Operand> columns = values.from_column(chunk * kLanes);
      Vector sums[Few][width] = {};
      for (int t = 0; t < steps(count); t++) {
        if (kInPlace) prefetch<width * kLanes>(columns, t);
        for (int row = 0; row < Few; row++) {
          const OperandVector weight = weights[t][row] - OperandVector{};
          ORCHARD_UNROLL
          for (int v = 0; v < width; v++)
            multiply_add(sums[row][v], weight, load_operands(columns[t] + v * kLanes));
        }
      }
      for (int v = 0; v < width; v++) {
        Vector square[kLanes] = {};
        for (int row = 0; row < Few; row++) square[row] = sums[row][v];
        transpose(square);
        Tile<kLanes, 1> tile;
        for (int d = 0; d < kLanes; d++) tile.at[d][0] = square[d];
        body((chunk + v) * kLanes, tile);
      }
    });
  }
};

}  // namespace orchard
