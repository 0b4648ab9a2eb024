// simdgroup_matrix<T, 8, 8>: 64 elements over 32 lanes, two neighbours in a row for each lane. The layout is the one that
// Apple's hardware shows and that MFA, MLX and PyTorch rely on.
#pragma once

namespace msl {

METAL_FUNC constexpr uint matrix_row(uint lane) { return (lane / 16) * 4 + (lane / 2) % 4; }
METAL_FUNC constexpr uint matrix_column(uint lane) { return (lane / 8) % 2 * 4 + lane % 2 * 2; }
METAL_FUNC constexpr uint matrix_lane(uint row, uint column) {
  return row / 4 * 16 + column / 4 * 8 + row % 4 * 2 + column / 2 % 2;
}

template <class T>
constexpr constant bool is_matrix_element_v = __is_same(T, float) || __is_same(T, half) || __is_same(T, bfloat);

}  // namespace msl

namespace metal {

template <class T, int Columns, int Rows>
struct simdgroup_matrix {
  static_assert(Columns == 8 && Rows == 8, "Metal has simdgroup matrices of 8x8 only");
  static_assert(msl::is_matrix_element_v<T>, "Metal has simdgroup matrices of float, half and bfloat only");
  using storage_type = vec<T, 2>;

  METAL_FUNC simdgroup_matrix() = default;
  METAL_FUNC explicit simdgroup_matrix(T diagonal) {
    const uint row = msl::matrix_row(msl::lane_id());
    const uint column = msl::matrix_column(msl::lane_id());
    elements[0] = row == column ? diagonal : T(0);
    elements[1] = row == column + 1 ? diagonal : T(0);
  }
  METAL_FUNC thread storage_type& thread_elements() { return elements; }
  METAL_FUNC const thread storage_type& thread_elements() const { return elements; }

 private:
  storage_type elements;
};

using simdgroup_float8x8 = simdgroup_matrix<float, 8, 8>;
using simdgroup_half8x8 = simdgroup_matrix<half, 8, 8>;
using simdgroup_bfloat8x8 = simdgroup_matrix<bfloat, 8, 8>;

template <class T, int Columns, int Rows>
METAL_FUNC simdgroup_matrix<T, Columns, Rows> make_filled_simdgroup_matrix(T value) {
  simdgroup_matrix<T, Columns, Rows> filled;
  filled.thread_elements() = vec<T, 2>(value);
  return filled;
}

}  // namespace metal

#if defined(__NVPTX__)
#include "multiply_ptx.h"
#else
#include "multiply_cpu.h"
#endif

namespace metal {

template <class D, class A, class B, class C>
METAL_FUNC void simdgroup_multiply_accumulate(thread simdgroup_matrix<D, 8, 8>& d, simdgroup_matrix<A, 8, 8> a,
                                              simdgroup_matrix<B, 8, 8> b, simdgroup_matrix<C, 8, 8> c) {
  d.thread_elements() =
      msl::multiply_accumulate<D>(a.thread_elements(), b.thread_elements(), c.thread_elements());
}

template <class D, class A, class B>
METAL_FUNC void simdgroup_multiply(thread simdgroup_matrix<D, 8, 8>& d, simdgroup_matrix<A, 8, 8> a,
                                   simdgroup_matrix<B, 8, 8> b) {
  simdgroup_multiply_accumulate(d, a, b, make_filled_simdgroup_matrix<D, 8, 8>(D(0)));
}

}  // namespace metal

namespace msl {

// Where a lane finds its two elements of a matrix in memory.
struct matrix_place {
  ulong first, second;
  METAL_FUNC matrix_place(ulong elements_per_row, ulong2 origin, bool transpose) {
    const ulong row = matrix_row(lane_id()), column = matrix_column(lane_id());
    first = transpose ? (origin.y + column) * elements_per_row + origin.x + row
                      : (origin.y + row) * elements_per_row + origin.x + column;
    second = first + (transpose ? elements_per_row : 1);
  }
};

}  // namespace msl

#define MSL_LOAD(space)                                                                                             \
  template <class T>                                                                                                \
  METAL_FUNC void simdgroup_load(thread simdgroup_matrix<T, 8, 8>& matrix, const space T* source,                   \
                                 ulong elements_per_row = 8, ulong2 origin = ulong2(0ul), bool transpose = false) { \
    const msl::matrix_place place(elements_per_row, origin, transpose);                                             \
    msl::need_full_simdgroup("simdgroup_load");                                                                     \
    matrix.thread_elements()[0] = source[place.first];                                                              \
    matrix.thread_elements()[1] = source[place.second];                                                             \
  }
#define MSL_STORE(space)                                                                                             \
  template <class T>                                                                                                 \
  METAL_FUNC void simdgroup_store(simdgroup_matrix<T, 8, 8> matrix, space T* destination,                            \
                                  ulong elements_per_row = 8, ulong2 origin = ulong2(0ul), bool transpose = false) { \
    const msl::matrix_place place(elements_per_row, origin, transpose);                                              \
    msl::need_full_simdgroup("simdgroup_store");                                                                     \
    destination[place.first] = matrix.thread_elements()[0];                                                          \
    destination[place.second] = matrix.thread_elements()[1];                                                         \
  }

namespace metal {
MSL_LOAD(device)
MSL_LOAD(constant)
MSL_LOAD(threadgroup)
MSL_STORE(device)
MSL_STORE(threadgroup)
}  // namespace metal

#undef MSL_LOAD
#undef MSL_STORE
