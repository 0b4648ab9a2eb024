// The functions of vectors that score expressions know. Those of float32 are accurate to 4 units in the last place,
// most to 2. In float64, whose kernels are there to be exact rather than fast, they are the C library's.
#pragma once

#include "exp2.h"

namespace orchard {
namespace expression {

ORCHARD_INLINE Vector abs(Vector x) { return x > 0 ? x : 0 - x; }

template <class Function>
ORCHARD_INLINE Vector lane_by_lane(Function function, Vector x) {
  ORCHARD_UNROLL
  for (int lane = 0; lane < kLanes; lane++) x[lane] = function(x[lane]);
  return x;
}

ORCHARD_INLINE Vector power_of_two(IntegerVector n) {
  return (Vector)((n + Exponent<Real>::kBias) << Exponent<Real>::kMantissaBits);
}

/// x * 2^n. In two steps, so that n may lead out of the normal numbers.
ORCHARD_INLINE Vector scaled(Vector x, Vector n) {
  const IntegerVector exponent = __builtin_convertvector(n, IntegerVector), half = exponent >> 1;
  return x * power_of_two(half) * power_of_two(exponent - half);
}

ORCHARD_INLINE Vector nearest_integer(Vector x) {
  constexpr Real kShift = 3ll << (Exponent<Real>::kMantissaBits - 1);
  return (x + kShift) - kShift;
}

/// ln 2 in two parts: the first has so few digits that its products with exponents are exact.
constexpr Real kLn2 = 0x1.62ep-1f, kLn2Rest = 0x1.0bfbe8p-15f;

/// NaN stays.
ORCHARD_INLINE Vector clamp(Vector x, Real low, Real high) {
  x = x < low ? broadcast(low) : x;
  return x > high ? broadcast(high) : x;
}

ORCHARD_INLINE Vector exp2(Vector x) {
  if constexpr (sizeof(Real) == 8) return lane_by_lane([](double lane) { return __builtin_exp2(lane); }, x);
  x = clamp(x, -151, 129);  // beyond, it is 0 and infinity
  const Vector n = nearest_integer(x);
  return scaled(polynomial(kNearestExp2, x - n), n);
}

ORCHARD_INLINE Vector exp(Vector x) {
  if constexpr (sizeof(Real) == 8) return lane_by_lane([](double lane) { return __builtin_exp(lane); }, x);
  constexpr Real kLog2E = 1.44269504f;
  x = clamp(x, -105, 89);
  const Vector n = nearest_integer(x * kLog2E);
  return scaled(polynomial(kNearestExp2, (x - n * kLn2 - n * kLn2Rest) * kLog2E), n);
}

/// x = (1 + fraction) * 2^exponent, 1 + fraction from sqrt(1/2) to sqrt(2).
struct Logarithm {
  Vector exponent, of_fraction;  // the second is ln(1 + fraction)
};

/// ln((1 + s) / (1 - s)) = 2 s + 2/3 s^3 + 2/5 s^5 + ...; as |s| < 0.172, what is left out is below 2^-28 of it.
ORCHARD_INLINE Logarithm logarithm(Vector x) {
  constexpr Integer kSqrtHalf = 0x3f3504f3, kMantissa = 0x7fffff;
  const IntegerVector is_small = (IntegerVector)(x < 0x1p-126f);
  const IntegerVector offset = (IntegerVector)(is_small ? x * 0x1p25f : x) - kSqrtHalf;
  const Vector fraction = (Vector)((offset & kMantissa) + kSqrtHalf) - 1;
  const Vector s = fraction / (2 + fraction), z = s * s;
  const Vector rest = z * (0.666666667f + z * (0.4f + z * (0.285714286f + z * 0.222222222f)));
  return {__builtin_convertvector((offset >> 23) + (is_small & -25), Vector), fraction - s * (fraction - rest)};
}

/// Where x has no finite logarithm, what it has instead.
ORCHARD_INLINE Vector logarithm_or(Vector finite, Vector x) {
  constexpr Real kInfinite = __builtin_inff();
  const Vector special = x == 0 ? broadcast(-kInfinite) : x < 0 ? broadcast(__builtin_nanf("")) : x;
  return ((x > 0) & (x < kInfinite)) ? finite : special;
}

ORCHARD_INLINE Vector log(Vector x) {
  if constexpr (sizeof(Real) == 8) return lane_by_lane([](double lane) { return __builtin_log(lane); }, x);
  const Logarithm y = logarithm(x);
  return logarithm_or(y.exponent * kLn2 + (y.of_fraction + y.exponent * kLn2Rest), x);
}

ORCHARD_INLINE Vector log2(Vector x) {
  if constexpr (sizeof(Real) == 8) return lane_by_lane([](double lane) { return __builtin_log2(lane); }, x);
  const Logarithm y = logarithm(x);
  return logarithm_or(y.exponent + y.of_fraction * 1.44269504f, x);
}

ORCHARD_INLINE Vector sqrt(Vector x) {
  return lane_by_lane([](double lane) { return __builtin_sqrt(lane); }, x);
}

ORCHARD_INLINE Vector tanh(Vector x) {
  if constexpr (sizeof(Real) == 8) return lane_by_lane([](double lane) { return __builtin_tanh(lane); }, x);
  // Near 0, x + x^3 P(x^2), minimax, with a relative error of 4.4e-9: the other form would lose its digits there.
  const Vector z = x * x, size = abs(x);
  const Vector small =
      -0.333332819f + z * (0.133314422f + z * (-0.0537397151f + z * (0.0206390873f - z * 0.00570498701f)));
  const Vector large = 1 - 2 / (1 + exp(2 * size));
  return size < 0.625f ? x + x * z * small : x < 0 ? -large : large;
}

ORCHARD_INLINE Vector sigmoid(Vector x) { return 1 / (1 + exp(-x)); }

ORCHARD_INLINE Vector sin(Vector x) {
  return lane_by_lane([](double lane) { return __builtin_sin(lane); }, x);
}

ORCHARD_INLINE Vector cos(Vector x) {
  return lane_by_lane([](double lane) { return __builtin_cos(lane); }, x);
}

ORCHARD_INLINE Vector floor(Vector x) {
  return lane_by_lane([](double lane) { return __builtin_floor(lane); }, x);
}

}  // namespace expression
}  // namespace orchard
