// Products of matrices, a tile at a time.
#pragma once

#include "tile.h"

namespace orchard {

/// Asks for the next rows while what these have summed up is gone through. They may be past the last.
ORCHARD_INLINE void prefetch_tiles(Rows<const Operand> left, int depth) {
  for (int row = 0; row < kRowGrain; row++) {
    for (int t = 0; t < depth; t += kDepthGrain) __builtin_prefetch(left[row] + t, 0, 3);
  }
}

/// left · right, Width vectors wide, for the first `count` rows of left: body(row, tile) gets some rows at a time.
/// Rows past the end repeat the last one, or are those that follow it. The depth is counted in operands.
template <int Width, class Body>
ORCHARD_INLINE void multiply(Rows<const Operand> left, int count, Rows<const Operand> right, int depth, Body body) {
  constexpr int kHeight = tile_height(Width), kAcross = tile_width(Width);
  if constexpr (kAmx) {
    for (int first = 0; first < count; first += kRowGrain) {
      const AmxSums<Width> sums(left.from(first), right, depth);
      prefetch_tiles(left.from(first + kRowGrain), depth);
      for (int r = 0; r < kRowGrain; r += kHeight) {
        auto tile = Tile<kHeight, Width>::loaded(sums.rows + r);
        ORCHARD_INLINE_CALL body(first + r, tile);
      }
    }
  } else {
    static_assert(Width % kAcross == 0);
    for (int first = 0; first < count; first += kHeight) {
      for (int column = 0; column < Width; column += kAcross) {
        const Rows<const Operand> columns = right.from_column(column * kLanes);
        const Operand* rows[kHeight];
        ORCHARD_UNROLL
        for (int r = 0; r < kHeight; r++) rows[r] = left[first + r < count ? first + r : count - 1];
        auto tile = Tile<kHeight, kAcross>::product(rows, 1, columns, min(depth, kDepth));
        for (int t = kDepth; t < depth; t += kDepth) {
          for (const Operand*& row : rows) row += kDepth;
          tile.add(Tile<kHeight, kAcross>::product(rows, 1, columns.from(t), min(depth - t, kDepth)));
        }
        tile.column = column;
        ORCHARD_INLINE_CALL body(first, tile);
      }
    }
  }
}

/// The operands of a product.
struct Factors {
  Rows<const Operand> left, right;
  int depth;
};

/// Rows of two products of the same size, from `first` on: see `multiply_both`.
template <int Width, int Down, class Body>
ORCHARD_INLINE void multiply_some(const Factors& one, const Factors& other, int first, Body body) {
  constexpr int kHeight = kStep, kRows = Down * kRowGrain;
  const AmxSums<Width, Down> sums(one.left.from(first), one.right, one.depth),
      other_sums(other.left.from(first), other.right, other.depth);
  prefetch_tiles(one.left.from(first + kRows), one.depth);
  prefetch_tiles(other.left.from(first + kRows), other.depth);
  for (int r = 0; r < kRows; r += kHeight) {
    auto tile = Tile<kHeight, Width>::loaded(sums.rows + r), other = Tile<kHeight, Width>::loaded(other_sums.rows + r);
    ORCHARD_INLINE_CALL body(first + r, tile, other);
  }
}

/// Two products of the same size at once, where AMX multiplies: body(row, tile, tile) gets a few rows at a time of both.
template <int Width, class Body>
ORCHARD_INLINE void multiply_both(const Factors& one, const Factors& other, int count, Body body) {
  // As squares where the factors on the right fill the first cache: those are read half as often.
  constexpr bool kSquares = (steps(kHeadDim) + steps(kHeadDimV)) * Width * kVectorBytes >= 32 << 10;
  int first = 0;
  if constexpr (kSquares) {
    for (; first + 2 * kRowGrain <= count; first += 2 * kRowGrain) multiply_some<Width, 2>(one, other, first, body);
  }
  for (; first < count; first += kRowGrain) multiply_some<Width, 1>(one, other, first, body);
}

template <int Height, int Width>
ORCHARD_INLINE Tile<Height, Width> column_tile(Rows<const Operand> left, Rows<const Operand> right, int depth,
                                               int column) {
  const Operand* columns[Height];
  ORCHARD_UNROLL
  for (int r = 0; r < Height; r++) columns[r] = left[0] + r;
  auto tile = Tile<Height, Width>::product(columns, left.stride, right.from_column(column * kLanes), depth);
  tile.column = column;
  return tile;
}

/// Transposed left · right, Width vectors wide; left has `Columns` columns and `depth` rows.
template <int Columns, int Width, class Body>
ORCHARD_INLINE void multiply_transposed(Rows<const Operand> left, Rows<const Operand> right, int depth,
                                        Body body) {
  constexpr int kHeight = tile_height(Width), kAcross = tile_width(Width), kWhole = Columns / kHeight * kHeight;
  if constexpr (kAmx) {  // `left` is turned: see `packed_down`
    for (int row = 0; row < Columns; row += kRowGrain) {
      const AmxSums<Width> sums(left.from(row), right, depth);
      for (int first = row; first < min(row + kRowGrain, kWhole); first += kHeight) {
        auto tile = Tile<kHeight, Width>::loaded(sums.rows + first - row);
        ORCHARD_INLINE_CALL body(first, tile);
      }
      if constexpr (kWhole < Columns) {
        if (row + kRowGrain <= kWhole) continue;
        auto tile = Tile<Columns - kWhole, Width>::loaded(sums.rows + kWhole - row);
        ORCHARD_INLINE_CALL body(kWhole, tile);
      }
    }
  } else {
    for (int first = 0; first < kWhole; first += kHeight) {
      for (int column = 0; column < Width; column += kAcross) {
        auto tile = column_tile<kHeight, kAcross>(left.from_column(first), right, depth, column);
        ORCHARD_INLINE_CALL body(first, tile);
      }
    }
    if constexpr (kWhole < Columns) {
      for (int column = 0; column < Width; column += kAcross) {
        auto tile = column_tile<Columns - kWhole, kAcross>(left.from_column(kWhole), right, depth, column);
        ORCHARD_INLINE_CALL body(kWhole, tile);
      }
    }
  }
}

/// target += left · right, Width vectors wide, for the first `count` rows of left.
template <int Width>
ORCHARD_INLINE void add_product(Rows<const Operand> left, int count, Rows<const Operand> right, int depth,
                                Rows<Real> target) {
  int whole = 0;
  if constexpr (kAmx) {
    for (; whole + kRowGrain <= count; whole += kRowGrain)
      AmxSums<Width>::add(left.from(whole), right, depth, target.from(whole));
  }
  multiply<Width>(left.from(whole), count - whole, right, depth, [&](int first, auto tile) {
    tile.for_each([&](int row, int v, Vector product) {
      if (whole + first + row >= count) return;
      Real* sum = target[whole + first + row] + v * kLanes;
      store(sum, load(sum) + product);
    });
  });
}

/// target += transposed left · right, Width vectors wide; left has `Columns` columns and `depth` rows.
template <int Columns, int Width>
ORCHARD_INLINE void add_transposed_product(Rows<const Operand> left, Rows<const Operand> right, int depth,
                                           Rows<Real> target) {
  if constexpr (kAmx) return add_product<Width>(left, Columns, right, depth, target);
  multiply_transposed<Columns, Width>(left, right, depth, [&](int first, auto tile) {
    tile.for_each([&](int row, int v, Vector product) {
      Real* sum = target[first + row] + v * kLanes;
      store(sum, load(sum) + product);
    });
  });
}

/// sum of left[t][lane] * right[t][lane] over t < depth, counted in operands, in the order in which products sum up.
ORCHARD_INLINE Vector column_products(Rows<const Operand> left, Rows<const Operand> right, int depth) {
  constexpr int kPiece = kAmx ? kDepthGrain : kDepth, kApart = kAmx ? kStep : 1;
  Vector total = {};
  for (int first = 0; first < depth; first += kPiece) {
    Vector sums[kApart] = {};
    for (int t = first; t < min(depth, first + kPiece); t++) {
      const OperandVector a = load_operands(left[t]), b = load_operands(right[t]);
      for (int next = 0; next < kApart; next++)
        multiply_add(sums[next], kAmx ? one_of(a, next) : a, kAmx ? one_of(b, next) : b);
    }
    for (int next = 1; next < kApart; next++) sums[0] += sums[next];
    total += sums[0];
  }
  return total;
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
