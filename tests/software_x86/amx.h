// In place of the kernels' own amx.h: the unit's registers as memory, and what its instructions do by Intel's manual.
#pragma once

#include <stdint.h>
#include <stdlib.h>

namespace orchard::amx {

constexpr int kRows = 16, kRowBytes = 64;

struct State {
  bool configured = false;
  char tiles[8][kRows][kRowBytes];
};
inline thread_local State state;

/// As the processor faults.
inline void must(bool holds) {
  if (!holds) abort();
}

template <int Register>
inline void zero() {
  must(state.configured);
  __builtin_memset(state.tiles[Register], 0, sizeof(state.tiles[Register]));
}

template <int Register>
inline void load(const void* from, int64_t stride) {
  must(state.configured);
  for (int row = 0; row < kRows; row++)
    __builtin_memcpy(state.tiles[Register][row], static_cast<const char*>(from) + row * stride, kRowBytes);
}

template <int Register>
inline void store(void* to, int64_t stride) {
  must(state.configured);
  for (int row = 0; row < kRows; row++)
    __builtin_memcpy(static_cast<char*>(to) + row * stride, state.tiles[Register][row], kRowBytes);
}

inline float number(uint32_t pair, int which) {
  uint32_t bits = which ? pair & 0xffff0000 : pair << 16;
  if ((bits & 0x7f800000) == 0) bits &= 0x80000000;  // subnormal numbers count as 0
  float number;
  __builtin_memcpy(&number, &bits, sizeof(number));
  return number;
}

template <int Sum, int Left, int Right>
inline void multiply_add() {
  must(state.configured);
  constexpr int kColumns = kRowBytes / 4;
  const auto left = reinterpret_cast<const uint32_t(*)[kColumns]>(state.tiles[Left]);
  const auto right = reinterpret_cast<const uint32_t(*)[kColumns]>(state.tiles[Right]);
  const auto sum = reinterpret_cast<float(*)[kColumns]>(state.tiles[Sum]);
  for (int row = 0; row < kRows; row++) {
    float apart[2][kColumns] = {};
    for (int t = 0; t < kColumns; t++) {
      for (int which = 0; which < 2; which++) {
        for (int column = 0; column < kColumns; column++)
          apart[which][column] += number(left[row][t], which) * number(right[t][column], which);
      }
    }
    for (int column = 0; column < kColumns; column++) sum[row][column] += apart[0][column] + apart[1][column];
  }
}

class Registers {
 public:
  Registers() { state.configured = true; }
  ~Registers() { state.configured = false; }
};

}  // namespace orchard::amx
