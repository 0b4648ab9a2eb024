// The 8x8 matrix product on the CPU: float products and sums, rounded once to the type of the result.
#pragma once

namespace msl {

METAL_FUNC void need_full_simdgroup(const char* operation) { msl_need_full_simdgroup(operation, msl_here); }

template <class D, class A, class B, class C>
METAL_FUNC metal::vec<D, 2> multiply_accumulate(metal::vec<A, 2> a, metal::vec<B, 2> b, metal::vec<C, 2> c) {
  struct operands { float a0, a1, b0, b1; };
  need_full_simdgroup("simdgroup_multiply_accumulate");
  msl_count_product();
  const MSL_SLOTS slot<operands>* slots = exchange(operands{float(a[0]), float(a[1]), float(b[0]), float(b[1])});
  const uint row = matrix_row(lane_id()), column = matrix_column(lane_id());
  float left = float(c[0]), right = float(c[1]);
  for (uint k = 0; k < 8; k += 2) {
    const MSL_SLOTS operands& in_row = slots[matrix_lane(row, k)].value;
    const MSL_SLOTS operands& even = slots[matrix_lane(k, column)].value;
    const MSL_SLOTS operands& odd = slots[matrix_lane(k + 1, column)].value;
    left = __builtin_fmaf(in_row.a1, odd.b0, __builtin_fmaf(in_row.a0, even.b0, left));
    right = __builtin_fmaf(in_row.a1, odd.b1, __builtin_fmaf(in_row.a0, even.b1, right));
  }
  metal::vec<D, 2> result;
  result[0] = D(left);
  result[1] = D(right);
  return result;
}

}  // namespace msl
