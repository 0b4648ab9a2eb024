// Products of matrices, computed in tiles that fill the CPU's registers.
#pragma once

#include "operand.h"

namespace orchard {

#ifdef __aarch64__
constexpr int kRegisters = 32;
#else
constexpr int kRegisters = kVectorBytes == 64 ? 32 : 16;
#endif

/// Height x (Width vectors) of a product. Three quarters of the registers accumulate, the others hold operands.
template <int Height, int Width>
struct Tile {
  static constexpr int kHeight = Height;
  Vector at[Height][Width];
  int column = 0;  // the place of the first vector in the strip

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

  ORCHARD_INLINE static Tile loaded(const Real (*rows)[Width * kLanes]) {
    Tile tile;
    tile.for_each([&](int row, int v, Vector& numbers) { numbers = load(rows[row] + v * kLanes); });
    return tile;
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
        store_operands(to[r / kStep] + (column + v) * kLanes, operands(numbers));
      }
    }
  }

  /// Calls body(row, v, vector) for each vector.
  template <class Body>
  ORCHARD_INLINE void for_each(Body body) {
    ORCHARD_UNROLL
    for (int r = 0; r < Height; r++) {
      ORCHARD_UNROLL
      for (int v = 0; v < Width; v++) body(r, column + v, at[r][v]);
    }
  }
};

/// For a call that takes a tile. Clang may not inline it, and hands the tile over through memory.
#if defined(__clang__) && __clang_major__ >= 15
#define ORCHARD_INLINE_CALL [[clang::always_inline]]
#else
#define ORCHARD_INLINE_CALL
#endif

/// Vectors that make a good tile. A product of some more is one tile, a wide one several.
constexpr int kTileVectors = kAmx || kRegisters == 32 ? 4 : 2;
constexpr int tile_width(int width) { return width <= kTileVectors + 1 ? width : kTileVectors; }

/// How many rows make a good tile of a product so wide. A narrow one still needs 8 rows to hide an FMA's latency. What AMX
/// has summed up passes through the registers a few rows at a time.
constexpr int tile_height(int width) { return kAmx ? 4 : width == 1 ? 8 : kRegisters * 3 / 4 / tile_width(width); }
constexpr int kTallest = kAmx ? kRowGrain : 12;

/// Deeper products (in operands) are summed up in pieces: one long chain of additions would lose digits.
constexpr int kDepth = 128 / kStep;

/// 16 rows of a product that AMX sums up, a tile for each vector.
template <int Width>
struct AmxSums {
  static_assert(Width <= 4);
  static constexpr int kLeft = 4, kRight = 5;  // registers; those before hold the sums
  alignas(kVectorBytes) Real rows[amx::kRows][Width * kLanes];

  ORCHARD_INLINE AmxSums(Rows<const Operand> left, Rows<const Operand> right, int depth) {
    for_each_register([](auto v) { amx::zero<v>(); });
    multiply_add(left, right, depth);
    for_each_register([&](auto v) { amx::store<v>(rows[0] + v * kLanes, sizeof(rows[0])); });
  }

  /// target += left · right
  ORCHARD_INLINE static void add(Rows<const Operand> left, Rows<const Operand> right, int depth, Rows<Real> target) {
    const int64_t stride = target.stride * sizeof(Real);
    for_each_register([&](auto v) { amx::load<v>(target[0] + v * kLanes, stride); });
    multiply_add(left, right, depth);
    for_each_register([&](auto v) { amx::store<v>(target[0] + v * kLanes, stride); });
  }

 private:
  ORCHARD_INLINE static void multiply_add(Rows<const Operand> left, Rows<const Operand> right, int depth) {
    for (int t = 0; t < depth; t += kDepthGrain) {
      amx::load<kLeft>(left.data + t, left.stride * sizeof(Operand));
      for_each_register([&](auto v) {
        constexpr int kRightOf = kRight + v % 3;
        amx::load<kRightOf>(right[t] + v * kLanes, right.stride * sizeof(Operand));
        amx::multiply_add<v, kLeft, kRightOf>();
      });
    }
  }

  template <int V = 0, class Body>
  ORCHARD_INLINE static void for_each_register(Body body) {
    if constexpr (V < Width) {
      body(std::integral_constant<int, V>{});
      for_each_register<V + 1>(body);
    }
  }
};

/// left · right, Width vectors wide, for the first `count` rows of left: body(row, tile) gets some rows at a time.
/// Rows past the end repeat the last one, or are those that follow it. The depth is counted in operands.
template <int Width, class Body>
ORCHARD_INLINE void multiply(Rows<const Operand> left, int count, Rows<const Operand> right, int depth, Body body) {
  constexpr int kHeight = tile_height(Width), kAcross = tile_width(Width);
  if constexpr (kAmx) {
    for (int first = 0; first < count; first += kRowGrain) {
      const AmxSums<Width> sums(left.from(first), right, depth);
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
