// Pairs of bfloat16, and the instructions of AVX-512 for them, which compilers' vectors don't have.
#pragma once

#include <immintrin.h>

#include "vector.h"

namespace orchard {

typedef uint16_t HalvesVector __attribute__((vector_size(kVectorBytes)));

/// sum += the products of both numbers of the pairs. Subnormal numbers count as 0.
ORCHARD_INLINE void multiply_add(Vector& sum, OperandVector a, OperandVector b) {
  sum = (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}

/// Rounds to nearest even: those of `low`, then those of `high`.
ORCHARD_INLINE HalvesVector round_halves(Vector low, Vector high) {
  return (HalvesVector)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
}

ORCHARD_INLINE HalfVector round_half(Vector v) { return (HalfVector)_mm512_cvtneps_pbh((__m512)v); }

}  // namespace orchard
