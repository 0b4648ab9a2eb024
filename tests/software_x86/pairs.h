// In place of the kernels' own pairs.h: what AVX-512's instructions for pairs of bfloat16 do, by Intel's manual.
#pragma once

#include "vector.h"

namespace orchard {

typedef uint16_t HalvesVector __attribute__((vector_size(kVectorBytes)));

/// One number of each pair. Subnormal numbers count as 0.
ORCHARD_INLINE Vector number_of(OperandVector pairs, int which) {
  const OperandVector bits = which ? pairs & 0xffff0000 : pairs << 16;
  return (Vector)((bits & 0x7f800000) == 0 ? bits & 0x80000000 : bits);
}

ORCHARD_INLINE void multiply_add(Vector& sum, OperandVector a, OperandVector b) {
  for (int which : {1, 0}) sum += number_of(a, which) * number_of(b, which);
}

ORCHARD_INLINE HalfVector round_half(Vector v) {
  HalfVector rounded;
  narrow(v, rounded);
  return rounded;
}

ORCHARD_INLINE HalvesVector round_halves(Vector low, Vector high) {
  HalfVector halves[2] = {round_half(low), round_half(high)};
  HalvesVector both;
  __builtin_memcpy(&both, halves, sizeof(both));
  return both;
}

}  // namespace orchard
