// Tensors that have a place for every score: masks, biases and their gradients. Any strides, 0 where broadcast.
#pragma once

#include "params.h"
#include "rows.h"

namespace orchard {

/// One head's part of such a tensor.
template <class T>
struct Plane {
  T* data;
  int64_t row, column;

  Plane from(int64_t query, int64_t key) const { return {data + query * row + key * column, row, column}; }
};

template <class T>
Plane<T> head_plane(const OrchardBuffer& buffer, const OrchardPlane& strides, int64_t batch, int64_t head) {
  T* data = static_cast<T*>(buffer.data) + batch * strides.batch + head * strides.head;
  return {data, strides.row, strides.column};
}

/// So many keys of the plane's first query; the others are zero. Not inlined: whole dense lines do without.
template <class T>
__attribute__((noinline)) Vector load_line(Plane<const T> plane, int64_t keys) {
  if (plane.column == 1) return load(plane.data, keys);
  T line[kLanes] = {};
  for (int key = 0; key < min<int64_t>(keys, kLanes); key++) line[key] = plane.data[key * plane.column];
  return load(line);
}

/// columns[key][query] of a square. Queries past the last repeat it; keys past the last are zero.
template <class T>
ORCHARD_INLINE void load_square(Plane<const T> plane, int64_t queries, int64_t keys,
                                Vector (&columns)[kLanes]) {
  if (plane.row == 0) {
    const Vector line = load_line(plane, keys);
    ORCHARD_UNROLL
    for (int key = 0; key < kLanes; key++) columns[key] = broadcast(line[key]);
    return;
  }
  if (plane.column == 1 && keys >= kLanes && queries >= kLanes) {
    ORCHARD_UNROLL
    for (int query = 0; query < kLanes; query++) {
      const T* line = plane.data + query * plane.row;
      // The processor does not foresee so many lines at once, and rows a power of two apart share few places of its first
      // cache: what is asked for early waits in the second.
      __builtin_prefetch(line + 8 * kLanes, 0, 2);
      columns[query] = load(line);
    }
  } else {
    for (int query = 0; query < kLanes; query++) {
      columns[query] = load_line(plane, keys);
      if (query + 1 < queries) plane.data += plane.row;
    }
  }
  transpose(columns);
}

/// The inverse, for a plane whose columns are dense. Leaves the square transposed.
template <class T>
ORCHARD_INLINE void store_square(Vector (&columns)[kLanes], Plane<T> plane, int64_t queries, int64_t keys) {
  transpose(columns);
  for (int query = 0; query < min<int64_t>(queries, kLanes); query++) {
    store(plane.from(query, 0).data, columns[query], keys);
  }
}

}  // namespace orchard
