// A strip of so few queries that most lanes of their vector would idle. In its products lanes are the depth, or the
// values' columns, instead.
#pragma once

#include "online_softmax.h"

namespace orchard {

/// As many as share keys in most models.
constexpr int kMostFew = min(4, kLanes);

/// Whether the head dims are whole vectors.
constexpr bool kFewRows = steps(kHeadDim) % kLanes == 0 && kHeadDimV % kLanes == 0;

/// Numbers are widened on their way.
template <class T>
ORCHARD_INLINE OperandVector load_as_operands(const T* from) {
  if constexpr (std::is_same_v<T, Operand>) {
    return load_operands(from);
  } else {
    return load(from);
  }
}

template <int Few>
struct FewRows : Strip<1> {
  Rows<const Operand> rows;  // [Few][steps(kHeadDim)], the queries once more

  FewRows(Strip<1> strip, Operand* space) : Strip<1>(strip), rows{space, steps(kHeadDim)} {
    for (int row = 0; row < Few; row++) {
      for (int t = 0; t < steps(kHeadDim); t++) space[row * rows.stride + t] = strip.query[t][row];
    }
  }

  /// Lanes of a tile's vectors that are no row hold anything.
  template <class T, class Body>
  ORCHARD_INLINE void multiply_keys(Rows<const T> keys, int count, Body body) const {
    constexpr int kHeight = tile_height(1), kAtOnce = min(4, kLanes / Few);
    for (int first = 0; first < count; first += kHeight) {
      Tile<kHeight, 1> tile;
      ORCHARD_UNROLL
      for (int r = 0; r < kHeight; r += kAtOnce) multiply_some<kAtOnce>(keys, count, first + r, &tile.at[r]);
      body(first, tile);
    }
  }

  /// The products of `Keys` keys from `first` on: each a sum over lanes, all of which are added up together.
  template <int Keys, class T>
  ORCHARD_INLINE void multiply_some(Rows<const T> keys, int count, int first, Vector (*products)[1]) const {
    Vector sums[kLanes] = {};  // [key][row]
    ORCHARD_UNROLL
    for (int r = 0; r < Keys; r++) {
      const T* key = keys[min(first + r, count - 1)];
      prefetch_ahead<steps(kHeadDim)>(keys, first + r);
      ORCHARD_UNROLL
      for (int t = 0; t < steps(kHeadDim); t += kLanes) {
        const OperandVector depth = load_as_operands(key + t);
        for (int row = 0; row < Few; row++) multiply_add(sums[r * Few + row], depth, load_operands(rows[row] + t));
      }
    }
    hand_out(orchard::sums(sums), products, std::make_integer_sequence<int, Keys>{});
  }
  template <int... Keys>
  ORCHARD_INLINE static void hand_out(Vector sums, Vector (*products)[1], std::integer_sequence<int, Keys...>) {
    ((products[Keys][0] = rotate<Keys * Few>(sums)), ...);
  }

  template <class T, class Body>
  ORCHARD_INLINE void multiply_values(Rows<const T> values, Rows<const Operand> weights, int count,
                                      Body body) const {
    for_each_chunk<kHeadDimV / kLanes, kRegisters / 2 / Few>([&](int chunk, auto width) {
      const Rows<const T> columns = values.from_column(chunk * kLanes);
      Vector sums[Few][width] = {};
      for (int t = 0; t < steps(count); t++) {
        if (kStep == 1) prefetch_ahead<width * kLanes>(columns, t);
        for (int row = 0; row < Few; row++) {
          const OperandVector weight = weights[t][row] - OperandVector{};
          ORCHARD_UNROLL
          for (int v = 0; v < width; v++)
            multiply_add(sums[row][v], weight, load_as_operands(columns[t] + v * kLanes));
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
