// What the forward and the backward pass share: heads, strips of queries, the causal border.
#pragma once

#include "exp2.h"
#include "params.h"
#include "tile.h"

namespace orchard {

constexpr Real kLog2E = 1.44269504088896340736;
constexpr Real kInfinity = __builtin_inf();
constexpr bool kWidens = sizeof(Element) < sizeof(Real);

/// A strip is as many queries as a tile is wide. Its matrices are stored transposed: lanes are queries.
constexpr int kStripVectors = kRegisters == 32 ? 4 : 2;
constexpr int kStrip = kStripVectors * kLanes;
static_assert(kBlockQ % kStrip == 0, "a block of queries is made of whole strips");

template <class T>
constexpr T min(T a, T b) { return b < a ? b : a; }
template <class T>
constexpr T max(T a, T b) { return a < b ? b : a; }
template <class T>
constexpr T clamp(T x, T low, T high) { return x < low ? low : x > high ? high : x; }
constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

template <class T>
Rows<T> head_rows(const OrchardBuffer& buffer, const OrchardStrides& strides, int64_t batch, int64_t head) {
  return {static_cast<T*>(buffer.data) + batch * strides.batch + head * strides.head, strides.row};
}

/// One head's numbers in a dense (batch, heads, query_length) tensor; null if there is no tensor.
inline Real* head_numbers(const OrchardBuffer& buffer, const OrchardParams& params, int64_t batch, int64_t head) {
  Real* data = static_cast<Real*>(buffer.data);
  return data ? data + (batch * params.heads + head) * params.query_length : nullptr;
}

/// How many keys the query sees, if there are as many; negative when the causal border lies before the first.
inline int64_t visible_keys(const OrchardParams& params, int64_t query) {
  if (!kCausal) return params.key_length;
  return query + 1 + clamp(params.diagonal, -params.query_length, params.key_length);
}

/// The same, counted from key `first` on and bounded to what a strip can meet in a block of keys.
inline int visible_in_block(const OrchardParams& params, int64_t query, int64_t first) {
  return clamp<int64_t>(visible_keys(params, query) - first, -kStrip, kBlockK + kStrip);
}

/// Where lane i sees key `key`, when lane i sees the first visible + i keys.
ORCHARD_INLINE IntegerVector sees(int visible, int key) { return lane_numbers() > Integer(key - visible); }

/// Calls body(width, row) for the strips of `rows` queries: whole ones, then single vectors for a short rest.
template <class Body>
ORCHARD_INLINE void for_each_strip(int64_t rows, Body body) {
  int64_t row = 0;
  for (; rows - row > kStrip / 2; row += kStrip) body(std::integral_constant<int, kStripVectors>{}, row);
  for (; row < rows; row += kLanes) body(std::integral_constant<int, 1>{}, row);
}

/// The rows in the type that we compute in: as they are, or widened into `space`.
template <int Dim, class T>
Rows<const Real> widened(Rows<const T> rows, int64_t count, Real* space) {
  if constexpr (!kWidens) {
    return rows;
  } else {
    for (int64_t row = 0; row < count; row++) {
      for_each_vector<Dim>([&](int d, auto lanes) { store<lanes>(space + row * Dim + d, load<lanes>(rows[row] + d)); });
    }
    return {space, Dim};
  }
}

/// columns[d][lane] = rows[lane][d] * scale; lanes past `count` become zero.
template <int Dim, class T>
void load_transposed(Rows<const T> rows, int64_t count, Real scale, Rows<Real> columns) {
  for_each_vector<Dim>([&](int d, auto lanes) {
    Vector square[kLanes];
    ORCHARD_UNROLL
    for (int row = 0; row < kLanes; row++) square[row] = row < count ? load<lanes>(rows[row] + d) * scale : Vector{};
    transpose(square);
    ORCHARD_UNROLL
    for (int column = 0; column < kLanes; column++) {
      if (column < lanes) store(columns[d + column], square[column]);
    }
  });
}

/// rows[lane][d] = columns[d][lane] * scale[lane] for the first `count` lanes.
template <int Dim, class T>
void store_transposed(Rows<const Real> columns, Vector scale, Rows<T> rows, int64_t count) {
  for_each_vector<Dim>([&](int d, auto lanes) {
    Vector square[kLanes] = {};
    ORCHARD_UNROLL
    for (int column = 0; column < kLanes; column++) {
      if (column < lanes) square[column] = load(columns[d + column]) * scale;
    }
    transpose(square);
    ORCHARD_UNROLL
    for (int row = 0; row < kLanes; row++) {
      if (row < count) store<lanes>(rows[row] + d, square[row]);
    }
  });
}

}  // namespace orchard
