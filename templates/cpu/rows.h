// Matrices in memory, and how they are transposed on their way to and from the vectors.
#pragma once

#include "vector.h"

namespace orchard {

/// Rows of a matrix; the elements of a row are dense.
template <class T>
struct Rows {
  T* data;
  int64_t stride;

  T* operator[](int64_t row) const { return data + row * stride; }
  Rows from(int64_t row) const { return {data + row * stride, stride}; }
  Rows from_column(int64_t column) const { return {data + column, stride}; }
  operator Rows<const T>() const { return {data, stride}; }
};

/// Asks for a row, which may be past the last. Into the second cache, which takes in more at once than the first.
template <int Count, class T>
ORCHARD_INLINE void prefetch(Rows<T> rows, int64_t row) {
  constexpr int kLine = 64;
  const auto address = reinterpret_cast<uintptr_t>(rows.data) + row * rows.stride * sizeof(T);
  ORCHARD_UNROLL
  for (int line = 0; line < Count * int(sizeof(T)); line += kLine)
    __builtin_prefetch(reinterpret_cast<const void*>(address + line), 0, 2);
}

/// Asks for a row of the next block before this one is through: between the reads of two blocks memory would idle.
template <int Count, class T>
ORCHARD_INLINE void prefetch_ahead(Rows<T> rows, int64_t row) {
  constexpr int kAhead = 64;
  prefetch<Count>(rows, row + kAhead);
}

/// columns[d][lane] = rows[lane][d] * factor; lanes from `count` on become zero.
template <int Dim, class T>
void load_transposed(Rows<const T> rows, int64_t count, Real factor, Rows<Real> columns) {
  cover<Dim>([&](int d, auto lanes) {
    Vector square[kLanes];
    ORCHARD_UNROLL
    for (int row = 0; row < kLanes; row++)
      square[row] = row < count ? load<lanes>(rows[row] + d) * factor : Vector{};
    transpose(square);
    ORCHARD_UNROLL
    for (int column = 0; column < kLanes; column++) {
      if (column < lanes) store(columns[d + column], square[column]);
    }
  });
}

/// rows[lane][d] = columns[d][lane] * factor[lane] for the first `count` lanes.
template <int Dim, class T>
void store_transposed(Rows<const Real> columns, Vector factor, Rows<T> rows, int64_t count) {
  cover<Dim>([&](int d, auto lanes) {
    Vector square[kLanes] = {};
    ORCHARD_UNROLL
    for (int column = 0; column < kLanes; column++) {
      if (column < lanes) square[column] = load(columns[d + column]) * factor;
    }
    transpose(square);
    ORCHARD_UNROLL
    for (int row = 0; row < kLanes; row++) {
      if (row < count) store<lanes>(rows[row] + d, square[row]);
    }
  });
}

}  // namespace orchard
