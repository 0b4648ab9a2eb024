// Tiles of a product of matrices: what fits the registers of the CPU, or of AMX, and how it is summed up there.
#pragma once

#include "operand.h"

namespace orchard {

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
    constexpr int kTwo = kStep == 2 && Height % 2 == 0 ? Height : 0;  // rows that are rounded two at a time
    ORCHARD_UNROLL
    for (int r = 0; r < kTwo; r += 2) {
      ORCHARD_UNROLL
      for (int v = 0; v < Width; v++) {
        const int at_operand = (column + v) * kLanes / kStep;
        store_two_along(to[r] + at_operand, to[r + 1] + at_operand, at[r][v], at[r + 1][v]);
      }
    }
    if constexpr (kTwo == 0)
      for_each([&](int row, int v, Vector& numbers) { orchard::store_along(to[row] + v * kLanes / kStep, numbers); });
  }
  /// As operands of a product whose depth runs down the rows. Where all is finite, less has to be looked at.
  template <bool Finite = false>
  ORCHARD_INLINE void store_down(Rows<Operand> to) {
    static_assert(Height % kStep == 0);
    ORCHARD_UNROLL
    for (int r = 0; r < Height; r += kStep) {
      ORCHARD_UNROLL
      for (int v = 0; v < Width; v++) {
        Vector numbers[kStep];
        for (int next = 0; next < kStep; next++) numbers[next] = at[r + next][v];
        const OperandVector rounded = Finite ? operands_of_finite(numbers) : operands(numbers);
        store_operands(to[r / kStep] + (column + v) * kLanes, rounded);
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

/// Products may have more rows than there are keys.
template <class AnyTile>
ORCHARD_INLINE void hide_rest(AnyTile& tile, int first, int count, Real hidden) {
  if (count - first >= AnyTile::kHeight) return;
  tile.for_each([&](int row, int, Vector& number) {
    if (first + row >= count) number = broadcast(hidden);
  });
}

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

/// Rows of a product that AMX sums up, Down tiles of 16, and one across for each vector. Four tiles are summed up at once:
/// side by side, or as a square, which reads less of `right`.
template <int Width, int Down = 1>
struct AmxSums {
  static constexpr int kAcross = Down == 1 ? Width : 2;
  static constexpr int kLeft = 4, kRight = kLeft + Down;  // registers; those before hold the sums
  static_assert(Down * kAcross <= kLeft && Width % kAcross == 0);
  alignas(kVectorBytes) Real rows[Down * amx::kRows][Width * kLanes];

  ORCHARD_INLINE AmxSums(Rows<const Operand> left, Rows<const Operand> right, int depth) {
    for (int v = 0; v < Width; v += kAcross) {
      for_each_tile([](auto, auto, auto sum) { amx::zero<sum>(); });
      multiply_add(left, right.from_column(v * kLanes), depth);
      for_each_tile([&](auto r, auto c, auto sum) {
        amx::store<sum>(rows[r * amx::kRows] + (v + c) * kLanes, sizeof(rows[0]));
      });
    }
  }

  /// target += left · right
  ORCHARD_INLINE static void add(Rows<const Operand> left, Rows<const Operand> right, int depth, Rows<Real> target) {
    const int64_t stride = target.stride * sizeof(Real);
    for (int v = 0; v < Width; v += kAcross) {
      const auto place = [&](int r, int c) { return target[r * amx::kRows] + (v + c) * kLanes; };
      for_each_tile([&](auto r, auto c, auto sum) { amx::load<sum>(place(r, c), stride); });
      multiply_add(left, right.from_column(v * kLanes), depth);
      for_each_tile([&](auto r, auto c, auto sum) { amx::store<sum>(place(r, c), stride); });
    }
  }

 private:
  ORCHARD_INLINE static void multiply_add(Rows<const Operand> left, Rows<const Operand> right, int depth) {
    for (int t = 0; t < depth; t += kDepthGrain) {
      for_each<Down>([&](auto r) {
        amx::load<kLeft + r>(left[r * amx::kRows] + t, left.stride * sizeof(Operand));
      });
      for_each<kAcross>([&](auto c) {
        constexpr int kRightOf = kRight + c % (8 - kRight);
        amx::load<kRightOf>(right[t] + c * kLanes, right.stride * sizeof(Operand));
        for_each<Down>([&](auto r) { amx::multiply_add<r * kAcross + c, kLeft + r, kRightOf>(); });
      });
    }
  }

  /// Calls body(row of tiles, column, register).
  template <class Body>
  ORCHARD_INLINE static void for_each_tile(Body body) {
    for_each<Down>([&](auto r) {
      for_each<kAcross>([&](auto c) { body(r, c, std::integral_constant<int, r * kAcross + c>{}); });
    });
  }
  template <int Count, int I = 0, class Body>
  ORCHARD_INLINE static void for_each(Body body) {
    if constexpr (I < Count) {
      body(std::integral_constant<int, I>{});
      for_each<Count, I + 1>(body);
    }
  }
};

}  // namespace orchard
