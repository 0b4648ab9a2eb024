// AMX: a unit of the processor that multiplies tiles of 16 rows of 64 bytes, and the eight registers that hold them.
#pragma once

#include <stdint.h>

namespace orchard::amx {

constexpr int kRows = 16, kRowBytes = 64;

template <int Register>
inline void zero() {
  asm volatile("tilezero %%tmm%c0" ::"i"(Register));
}

/// Rows lie `stride` bytes apart.
template <int Register>
inline void load(const void* from, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(Register) : "memory");
}
template <int Register>
inline void store(void* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(Register) : "memory");
}

/// sum[row][column] += the products of both numbers of the pairs left[row][t] and right[t][column], over all t. Those of
/// the pairs' first and second numbers are summed up apart, then both are added.
template <int Sum, int Left, int Right>
inline void multiply_add() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sum), "i"(Left), "i"(Right));
}

/// The calling thread's registers are whole tiles, for as long as this lives.
class Registers {
 public:
  Registers() {
    struct {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } shape;
    for (int i = 0; i < 8; i++) shape.row_bytes[i] = kRowBytes, shape.rows[i] = kRows;
    asm volatile("ldtilecfg %0" ::"m"(shape));
  }
  ~Registers() { asm volatile("tilerelease"); }
  Registers(const Registers&) = delete;
};

}  // namespace orchard::amx
