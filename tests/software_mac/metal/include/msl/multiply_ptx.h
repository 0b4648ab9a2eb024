// The 8x8 matrix product on an NVIDIA GPU.
//
// Exact: shuffles and fused multiply-adds, in the order of multiply_cpu.h. With MSL_TENSOR: tensor cores, which make the
// product nearly free, so that everything else of a kernel shows; products of floats are then rounded to tf32 (10 bits).
// With MSL_REGISTERS: no product, but an instruction with the same registers, for ptxas to count those of the kernel.
#pragma once

namespace msl {

METAL_FUNC void need_full_simdgroup(const char*) {}

#if defined(MSL_REGISTERS)

// An operand's register: two elements of 16 bits share one, and a compiler must not take them apart before a loop.
template <class T>
METAL_FUNC uint operand(metal::vec<T, 2> pair, int element) {
  if constexpr (sizeof(T) == 2)
    return __builtin_bit_cast(uint, pair);
  else
    return __builtin_bit_cast(uint, float(pair[element]));
}

METAL_FUNC float take(uint a, uint b, float c) {
  float result;
  asm("{\n.reg .b32 sum;\nmov.b32 sum, %3;\ndp2a.lo.s32.s32 sum, %1, %2, sum;\nmov.b32 %0, sum;\n}"
      : "=f"(result)
      : "r"(a), "r"(b), "f"(c));
  return result;
}

template <class D, class A, class B, class C>
METAL_FUNC metal::vec<D, 2> multiply_accumulate(metal::vec<A, 2> a, metal::vec<B, 2> b, metal::vec<C, 2> c) {
  metal::vec<D, 2> result;
  result[0] = D(take(operand(a, 0), operand(b, 0), float(c[0])));
  result[1] = D(take(operand(a, 1), operand(b, 1), float(c[1])));
  return result;
}

#elif !defined(MSL_TENSOR)

template <class D, class A, class B, class C>
METAL_FUNC metal::vec<D, 2> multiply_accumulate(metal::vec<A, 2> a, metal::vec<B, 2> b, metal::vec<C, 2> c) {
  const float a0 = float(a[0]), a1 = float(a[1]), b0 = float(b[0]), b1 = float(b[1]);
  const uint row = matrix_row(lane_id()), column = matrix_column(lane_id());
  float left = float(c[0]), right = float(c[1]);
  _Pragma("unroll") for (uint k = 0; k < 8; k += 2) {
    const uint in_row = matrix_lane(row, k), even = matrix_lane(k, column), odd = matrix_lane(k + 1, column);
    const float first = from_lane(a0, in_row), second = from_lane(a1, in_row);
    left = __builtin_fmaf(second, from_lane(b0, odd), __builtin_fmaf(first, from_lane(b0, even), left));
    right = __builtin_fmaf(second, from_lane(b1, odd), __builtin_fmaf(first, from_lane(b1, even), right));
  }
  metal::vec<D, 2> result;
  result[0] = D(left);
  result[1] = D(right);
  return result;
}

#else

// mma.m16n8k8 multiplies 16 rows; the upper 8 are zero here. A lane is row g = lane / 4 and columns 2t and 2t + 1, with
// t = lane % 4. The left operand and the accumulator are laid out so; the right operand is wanted transposed, which a
// product of the identity with it gives.

METAL_FUNC uint bits(float x) { return __builtin_bit_cast(uint, x); }

// Rounds to tf32: the product drops the low 13 bits.
METAL_FUNC uint tf32(float x) { return bits(x) + 0x1000; }

METAL_FUNC float2 mma_tf32(uint a0, uint a1, uint b0, uint b1, float2 c) {
  float left, right, unused0, unused1;
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %5}, {%7, %8}, {%9, %10, %11, %11};"
      : "=f"(left), "=f"(right), "=f"(unused0), "=f"(unused1)
      : "r"(a0), "r"(0), "r"(a1), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]), "f"(0.0f));
  c[0] = left, c[1] = right;
  return c;
}

#define MSL_MMA_16(name, type)                                                                                         \
  METAL_FUNC float2 name(uint a, uint b, float2 c) {                                                                   \
    float left, right, unused0, unused1;                                                                               \
    asm("mma.sync.aligned.m16n8k8.row.col.f32." type "." type ".f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %8, %9, %9};" \
        : "=f"(left), "=f"(right), "=f"(unused0), "=f"(unused1)                                                        \
        : "r"(a), "r"(0), "r"(b), "f"(c[0]), "f"(c[1]), "f"(0.0f));                                                    \
    c[0] = left, c[1] = right;                                                                                         \
    return c;                                                                                                          \
  }
MSL_MMA_16(mma_half, "f16")
MSL_MMA_16(mma_bfloat, "bf16")
#undef MSL_MMA_16

// The two columns of this lane's row of the identity.
template <class T>
METAL_FUNC metal::vec<T, 2> identity() {
  const uint lane = __nvvm_read_ptx_sreg_laneid(), row = lane / 4, column = lane % 4 * 2;
  metal::vec<T, 2> result;
  result[0] = T(row == column ? 1.0f : 0.0f);
  result[1] = T(row == column + 1 ? 1.0f : 0.0f);
  return result;
}

template <class T>
METAL_FUNC uint packed(metal::vec<T, 2> pair) {
  return __builtin_bit_cast(uint, pair);
}

template <class T>
METAL_FUNC float2 mma_16(metal::vec<T, 2> a, metal::vec<T, 2> b, float2 c) {
  if constexpr (__is_same(T, half))
    return mma_half(packed(a), packed(b), c);
  else
    return mma_bfloat(packed(a), packed(b), c);
}

template <class D, class A, class B, class C>
METAL_FUNC metal::vec<D, 2> multiply_accumulate(metal::vec<A, 2> a, metal::vec<B, 2> b, metal::vec<C, 2> c) {
  float2 sum = make<float2>(c);
  const float2 zero = float2(0.0f);
  if constexpr (__is_same(A, B) && sizeof(A) == 2) {
    const metal::vec<B, 2> transposed = make<metal::vec<B, 2>>(mma_16<B>(identity<B>(), b, zero));
    sum = mma_16<A>(a, transposed, sum);
  } else {
    const float2 eye = identity<float>();
    const float2 transposed = mma_tf32(bits(eye[0]), bits(eye[1]), tf32(float(b[0])), tf32(float(b[1])), zero);
    sum = mma_tf32(tf32(float(a[0])), tf32(float(a[1])), bits(transposed[0]), bits(transposed[1]), sum);
  }
  return make<metal::vec<D, 2>>(sum);
}

#endif

}  // namespace msl
