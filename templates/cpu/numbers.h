// Small arithmetic, without the C++ library's headers: they would cost more time than the kernels.
#pragma once

#include <stdint.h>

namespace orchard {

template <class T>
constexpr T min(T a, T b) {
  return b < a ? b : a;
}

template <class T>
constexpr T max(T a, T b) {
  return a < b ? b : a;
}

template <class T>
constexpr T clamp(T x, T low, T high) {
  return max(low, min(x, high));
}

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

}  // namespace orchard
