// Products of matrices, computed in tiles that fill the CPU's registers.
#pragma once

#include "operand.h"

namespace orchard {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRegisters = 32;
#else
constexpr int kRegisters = 16;
#endif

/// Height x (Width vectors) of a product. Three quarters of the registers accumulate, the others hold operands.
template <int Height, int Width>
struct Tile {
  static constexpr int kHeight = Height;
  Vector at[Height][Width];

  /// at[r] = sum of left[r][t * step] * right[t] over t < depth, counted in operands.
  ORCHARD_INLINE static Tile product(const Operand* const (&left)[Height], int64_t step,
                                     Rows<const Operand> right, int64_t depth) {
    Tile sum = {};
    ORCHARD_PAIRS
    for (int64_t t = 0; t < depth; t++) {
      OperandVector row[Width];
      ORCHARD_UNROLL
      for (int v = 0; v < Width; v++) row[v] = load_operands(right[t] + v * kLanes);
      ORCHARD_UNROLL
      for (int r = 0; r < Height; r++) {
        const OperandVector factor = left[r][t * step] - OperandVector{};
        ORCHARD_UNROLL
        for (int v = 0; v < Width; v++) multiply_add(sum.at[r][v], factor, row[v]);
      }
    }
    return sum;
  }

  ORCHARD_INLINE void add(const Tile& other) {
    ORCHARD_UNROLL
    for (int r = 0; r < Height; r++) {
      ORCHARD_UNROLL
      for (int v = 0; v < Width; v++) at[r][v] += other.at[r][v];
    }
  }

  /// As rows of another product's operands, whose depth runs along them.
  ORCHARD_INLINE void store_along(Rows<Operand> to) {
    for_each([&](int row, int v, Vector& numbers) { orchard::store_along(to[row] + v * kLanes / kStep, numbers); });
  }
  /// As operands of a product whose depth runs down the rows.
  ORCHARD_INLINE void store_down(Rows<Operand> to) {
    static_assert(Height % kStep == 0);
    ORCHARD_UNROLL
    for (int r = 0; r < Height; r += kStep) {
      ORCHARD_UNROLL
      for (int v = 0; v < Width; v++) {
        Vector numbers[kStep];
        for (int next = 0; next < kStep; next++) numbers[next] = at[r + next][v];
        store_operands(to[r / kStep] + v * kLanes, operands(numbers));
      }
    }
  }

  /// Calls body(row, v, vector) for each vector.
  template <class Body>
  ORCHARD_INLINE void for_each(Body body) {
    ORCHARD_UNROLL
    for (int r = 0; r < Height; r++) {
      ORCHARD_UNROLL
      for (int v = 0; v < Width; v++) body(r, v, at[r][v]);
    }
  }
};

/// For a call that takes a tile. Clang may not inline it, and hands the tile over through memory.
#if defined(__clang__) && __clang_major__ >= 15
#define ORCHARD_INLINE_CALL [[clang::always_inline]]
#else
#define ORCHARD_INLINE_CALL
#endif

/// How many rows make a good tile of so many vectors. A narrow one still needs 8 rows to hide an FMA's latency.
constexpr int tile_height(int width) { return width == 1 ? 8 : kRegisters * 3 / 4 / width; }
constexpr int kTallest = 12;

/// Deeper products (in operands) are summed up in pieces: one long chain of additions would lose digits.
constexpr int kDepth = 128 / kStep;

/// left · right, Width vectors wide, for the first `count` rows of left: body(row, tile) gets some rows at a time.
/// Rows past the end repeat the last one. The depth is counted in operands.
template <int Width, class Body>
ORCHARD_INLINE void multiply(Rows<const Operand> left, int count, Rows<const Operand> right, int depth, Body body) {
  constexpr int kHeight = tile_height(Width);
  for (int first = 0; first < count; first += kHeight) {
    const Operand* rows[kHeight];
    ORCHARD_UNROLL
    for (int r = 0; r < kHeight; r++) rows[r] = left[first + r < count ? first + r : count - 1];
    auto tile = Tile<kHeight, Width>::product(rows, 1, right, min(depth, kDepth));
    for (int t = kDepth; t < depth; t += kDepth) {
      for (const Operand*& row : rows) row += kDepth;
      tile.add(Tile<kHeight, Width>::product(rows, 1, right.from(t), min(depth - t, kDepth)));
    }
    ORCHARD_INLINE_CALL body(first, tile);
  }
}

template <int Height, int Width>
ORCHARD_INLINE Tile<Height, Width> column_tile(Rows<const Operand> left, Rows<const Operand> right, int depth) {
  const Operand* columns[Height];
  ORCHARD_UNROLL
  for (int r = 0; r < Height; r++) columns[r] = left[0] + r;
  return Tile<Height, Width>::product(columns, left.stride, right, depth);
}

/// Transposed left · right, Width vectors wide; left has `Columns` columns and `depth` rows.
template <int Columns, int Width, class Body>
ORCHARD_INLINE void multiply_transposed(Rows<const Operand> left, Rows<const Operand> right, int depth,
                                        Body body) {
  constexpr int kHeight = tile_height(Width), kWhole = Columns / kHeight * kHeight;
  for (int first = 0; first < kWhole; first += kHeight) {
    ORCHARD_INLINE_CALL body(first, column_tile<kHeight, Width>(left.from_column(first), right, depth));
  }
  if constexpr (kWhole < Columns) {
    ORCHARD_INLINE_CALL body(kWhole, column_tile<Columns - kWhole, Width>(left.from_column(kWhole), right, depth));
  }
}

/// Splits so many vectors into chunks of about the same width, at most Widest: body(first, width).
template <int Vectors, int Widest, int First = 0, class Body>
ORCHARD_INLINE void for_each_chunk(Body body) {
  if constexpr (First < Vectors) {
    constexpr int kChunks = (Vectors - First + Widest - 1) / Widest;
    constexpr int kWidth = (Vectors - First + kChunks - 1) / kChunks;
    body(First, std::integral_constant<int, kWidth>{});
    for_each_chunk<Vectors, Widest, First + kWidth>(body);
  }
}

}  // namespace orchard
