// What printed score expressions are made of. Every function takes uniform values (Real, Integer, bool) and vectors
// of lanes (Vector, IntegerVector, and as truth an IntegerVector of -1 and 0) in any mixture.
#pragma once

#include "exp2.h"
#include "numbers.h"
#include "params.h"

namespace orchard {
namespace expression {

using Unsigned = std::make_unsigned_t<Integer>;
using UnsignedVector = Lanes<Unsigned>::Vector;

template <class T>
constexpr bool kUniform = std::is_arithmetic_v<T>;

ORCHARD_INLINE Vector lanes(Vector x) { return x; }
ORCHARD_INLINE Vector lanes(Real x) { return broadcast(x); }
ORCHARD_INLINE IntegerVector lanes(IntegerVector x) { return x; }
ORCHARD_INLINE IntegerVector lanes(Integer x) { return x - IntegerVector{}; }
ORCHARD_INLINE IntegerVector lanes(bool x) { return lanes(-Integer(x)); }

/// Stays uniform where everything is.
template <class Function, class... T>
ORCHARD_INLINE auto apply(Function function, T... x) {
  if constexpr ((kUniform<T> && ...)) {
    return function(x...);
  } else {
    return function(lanes(x)...);
  }
}

// Integers wrap around: were an overflow undefined, the compiler might drop the clamping of an index.

ORCHARD_INLINE Unsigned bits(Integer x) { return x; }
ORCHARD_INLINE UnsignedVector bits(IntegerVector x) { return (UnsignedVector)x; }
ORCHARD_INLINE Integer integer(Unsigned x) { return x; }
ORCHARD_INLINE IntegerVector integer(UnsignedVector x) { return (IntegerVector)x; }

template <class A, class B>
ORCHARD_INLINE auto add(A a, B b) {
  return apply([](auto x, auto y) { return integer(bits(x) + bits(y)); }, a, b);
}

template <class A, class B>
ORCHARD_INLINE auto subtract(A a, B b) {
  return apply([](auto x, auto y) { return integer(bits(x) - bits(y)); }, a, b);
}

template <class A, class B>
ORCHARD_INLINE auto multiply(A a, B b) {
  return apply([](auto x, auto y) { return integer(bits(x) * bits(y)); }, a, b);
}

template <class T>
ORCHARD_INLINE auto negate(T x) {
  return subtract(Integer(0), x);
}

/// Rounds down; 0 where b is 0. In double, where the quotient of integers of 32 bits is exact enough to be cut off.
ORCHARD_INLINE IntegerVector floor_divide(IntegerVector a, IntegerVector b) {
  using Wide = Lanes<double>::Vector;
  const IntegerVector divisor = b == 0 ? b + 1 : b;
  const Wide quotient = __builtin_convertvector(a, Wide) / __builtin_convertvector(divisor, Wide);
  const IntegerVector whole = __builtin_convertvector(quotient, IntegerVector);
  const IntegerVector rest = subtract(a, multiply(whole, divisor));
  const IntegerVector rounded_up = (IntegerVector)((rest != 0) & ((rest ^ divisor) < 0));
  return b == 0 ? b : add(whole, rounded_up);
}

template <class A, class B>
ORCHARD_INLINE auto floor_divide(A a, B b) {
  const IntegerVector quotient = floor_divide(lanes(a), lanes(b));
  if constexpr (kUniform<A> && kUniform<B>) {
    return Integer(quotient[0]);
  } else {
    return quotient;
  }
}

/// Has the sign of b; a where b is 0.
template <class A, class B>
ORCHARD_INLINE auto modulo(A a, B b) {
  return subtract(a, multiply(floor_divide(a, b), b));
}

ORCHARD_INLINE Real real(Integer x) { return Real(x); }
ORCHARD_INLINE Vector real(IntegerVector x) { return __builtin_convertvector(x, Vector); }

// Truth. A comparison's own result is a vector of some integers as wide as Real.

template <class T>
ORCHARD_INLINE auto truth(T x) {
  if constexpr (kUniform<T>) {
    return bool(x);
  } else {
    return (IntegerVector)x;
  }
}

template <class A, class B>
ORCHARD_INLINE auto less(A a, B b) {
  return apply([](auto x, auto y) { return truth(x < y); }, a, b);
}

template <class A, class B>
ORCHARD_INLINE auto less_equal(A a, B b) {
  return apply([](auto x, auto y) { return truth(x <= y); }, a, b);
}

template <class A, class B>
ORCHARD_INLINE auto equal(A a, B b) {
  return apply([](auto x, auto y) { return truth(x == y); }, a, b);
}

template <class A, class B>
ORCHARD_INLINE auto not_equal(A a, B b) {
  return apply([](auto x, auto y) { return truth(x != y); }, a, b);
}

template <class A, class B>
ORCHARD_INLINE auto conjunction(A a, B b) {
  return apply([](auto x, auto y) { return truth(x & y); }, a, b);
}

template <class A, class B>
ORCHARD_INLINE auto disjunction(A a, B b) {
  return apply([](auto x, auto y) { return truth(x | y); }, a, b);
}

ORCHARD_INLINE bool negation(bool x) { return !x; }
ORCHARD_INLINE IntegerVector negation(IntegerVector x) { return ~x; }

template <class Condition, class A, class B>
ORCHARD_INLINE auto select(Condition condition, A a, B b) {
  return apply([](auto c, auto x, auto y) { return c ? x : y; }, condition, a, b);
}

// Functions of integers and reals.

/// NaN where either is.
template <class A, class B>
ORCHARD_INLINE auto min(A a, B b) {
  return apply([](auto x, auto y) { return ((x < y) | (x != x)) ? x : y; }, a, b);
}

/// NaN where either is.
template <class A, class B>
ORCHARD_INLINE auto max(A a, B b) {
  return apply([](auto x, auto y) { return ((x > y) | (x != x)) ? x : y; }, a, b);
}

ORCHARD_INLINE Vector abs(Vector x) { return x > 0 ? x : 0 - x; }
ORCHARD_INLINE Real abs(Real x) { return x > 0 ? x : 0 - x; }
ORCHARD_INLINE IntegerVector abs(IntegerVector x) { return max(x, negate(x)); }
ORCHARD_INLINE Integer abs(Integer x) { return max(x, negate(x)); }

ORCHARD_INLINE Integer product(Integer a, Integer b) { return multiply(a, b); }
ORCHARD_INLINE IntegerVector product(IntegerVector a, IntegerVector b) { return multiply(a, b); }
ORCHARD_INLINE Real product(Real a, Real b) { return a * b; }
ORCHARD_INLINE Vector product(Vector a, Vector b) { return a * b; }

/// x to a positive exponent.
template <int Exponent, class T>
ORCHARD_INLINE T power(T x) {
  if constexpr (Exponent == 1) {
    return x;
  } else {
    const T root = power<Exponent / 2>(x), square = product(root, root);
    if constexpr (Exponent % 2) {
      return product(square, x);
    } else {
      return square;
    }
  }
}

// Functions of reals, whose results are vectors always. In float64, whose kernels are there to be exact rather than
// fast, they are those of the C library.

template <class Function>
ORCHARD_INLINE Vector lane_by_lane(Function function, Vector x) {
  ORCHARD_UNROLL
  for (int lane = 0; lane < kLanes; lane++) x[lane] = function(x[lane]);
  return x;
}

ORCHARD_INLINE Vector power_of_two(IntegerVector n) {
  return (Vector)((n + Exp2<Real>::kBias) << Exp2<Real>::kMantissaBits);
}

/// x * 2^n. In two steps, so that n may lead out of the normal numbers.
ORCHARD_INLINE Vector scaled(Vector x, Vector n) {
  const IntegerVector exponent = __builtin_convertvector(n, IntegerVector), half = exponent >> 1;
  return x * power_of_two(half) * power_of_two(exponent - half);
}

ORCHARD_INLINE Vector nearest_integer(Vector x) {
  constexpr Real kShift = 3ll << (Exp2<Real>::kMantissaBits - 1);
  return (x + kShift) - kShift;
}

/// NaN stays.
ORCHARD_INLINE Vector clamp(Vector x, Real low, Real high) {
  x = x < low ? broadcast(low) : x;
  return x > high ? broadcast(high) : x;
}

template <class T>
ORCHARD_INLINE Vector exp2(T of) {
  Vector x = lanes(of);
  if constexpr (sizeof(Real) == 8) return lane_by_lane([](double lane) { return __builtin_exp2(lane); }, x);
  x = clamp(x, -151, 129);  // beyond, it is 0 and infinity
  const Vector n = nearest_integer(x);
  return scaled(exp2_polynomial(x - n), n);
}

template <class T>
ORCHARD_INLINE Vector exp(T of) {
  Vector x = lanes(of);
  if constexpr (sizeof(Real) == 8) return lane_by_lane([](double lane) { return __builtin_exp(lane); }, x);
  constexpr Real kLog2E = 1.44269504f, kLn2 = 0x1.62ep-1f, kLn2Rest = 0x1.0bfbe8p-15f;  // n * kLn2 is exact
  x = clamp(x, -105, 89);
  const Vector n = nearest_integer(x * kLog2E);
  return scaled(exp2_polynomial((x - n * kLn2 - n * kLn2Rest) * kLog2E), n);
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
  return {real((offset >> 23) + (is_small & -25)), fraction - s * (fraction - rest)};
}

/// Where x has no finite logarithm, what it has instead.
ORCHARD_INLINE Vector logarithm_or(Vector finite, Vector x) {
  constexpr Real kInfinite = __builtin_inff();
  const Vector special = x == 0 ? broadcast(-kInfinite) : x < 0 ? broadcast(__builtin_nanf("")) : x;
  return (IntegerVector)(x > 0) & (IntegerVector)(x < kInfinite) ? finite : special;
}

template <class T>
ORCHARD_INLINE Vector log(T of) {
  const Vector x = lanes(of);
  if constexpr (sizeof(Real) == 8) return lane_by_lane([](double lane) { return __builtin_log(lane); }, x);
  constexpr Real kLn2 = 0x1.62ep-1f, kLn2Rest = 0x1.0bfbe8p-15f;
  const Logarithm y = logarithm(x);
  return logarithm_or(y.exponent * kLn2 + (y.of_fraction + y.exponent * kLn2Rest), x);
}

template <class T>
ORCHARD_INLINE Vector log2(T of) {
  const Vector x = lanes(of);
  if constexpr (sizeof(Real) == 8) return lane_by_lane([](double lane) { return __builtin_log2(lane); }, x);
  const Logarithm y = logarithm(x);
  return logarithm_or(y.exponent + y.of_fraction * 1.44269504f, x);
}

template <class T>
ORCHARD_INLINE Vector sqrt(T of) {
  return lane_by_lane(
      [](Real lane) { return sizeof(Real) == 8 ? Real(__builtin_sqrt(lane)) : Real(__builtin_sqrtf(lane)); }, lanes(of));
}

template <class T>
ORCHARD_INLINE Vector tanh(T of) {
  const Vector x = lanes(of);
  if constexpr (sizeof(Real) == 8) return lane_by_lane([](double lane) { return __builtin_tanh(lane); }, x);
  // Near 0, x + x^3 P(x^2), minimax, with a relative error of 4.4e-9: the other form would lose its digits there.
  const Vector z = x * x, size = abs(x);
  const Vector small =
      -0.333332819f + z * (0.133314422f + z * (-0.0537397151f + z * (0.0206390873f - z * 0.00570498701f)));
  const Vector large = 1 - 2 / (1 + exp(2 * size));
  return size < 0.625f ? x + x * z * small : x < 0 ? -large : large;
}

template <class T>
ORCHARD_INLINE Vector sigmoid(T of) {
  return 1 / (1 + exp(-of));
}

template <class T>
ORCHARD_INLINE Vector sin(T of) {
  return lane_by_lane(
      [](Real lane) { return sizeof(Real) == 8 ? Real(__builtin_sin(lane)) : Real(__builtin_sinf(lane)); }, lanes(of));
}

template <class T>
ORCHARD_INLINE Vector cos(T of) {
  return lane_by_lane(
      [](Real lane) { return sizeof(Real) == 8 ? Real(__builtin_cos(lane)) : Real(__builtin_cosf(lane)); }, lanes(of));
}

template <class T>
ORCHARD_INLINE Vector floor(T of) {
  return lane_by_lane(
      [](Real lane) { return sizeof(Real) == 8 ? Real(__builtin_floor(lane)) : Real(__builtin_floorf(lane)); }, lanes(of));
}

// Arrays.

struct Float16 {
  uint16_t bits;
};
struct Bfloat16 {
  uint16_t bits;
};
struct Bool {
  uint8_t byte;
};

ORCHARD_INLINE float float_of(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}

ORCHARD_INLINE Real value(float x) { return x; }
ORCHARD_INLINE Real value(double x) { return x; }
ORCHARD_INLINE Real value(Bfloat16 x) { return float_of(uint32_t(x.bits) << 16); }
ORCHARD_INLINE Real value(Float16 x) {
  const uint32_t magnitude = (x.bits & 0x7fffu) << 13, sign = (x.bits & 0x8000u) << 16;
  const float finite = float_of(magnitude) * 0x1p112f;  // moves the exponent's bias, subnormals too
  const float absolute = magnitude < 0x7c00u << 13 ? finite : float_of(magnitude | 0x7f800000u);
  return sign ? -absolute : absolute;
}
ORCHARD_INLINE bool value(Bool x) { return x.byte; }
ORCHARD_INLINE Integer value(int32_t x) { return x; }
/// What does not fit into an Integer becomes the largest or the smallest.
ORCHARD_INLINE Integer value(int64_t x) {
  constexpr int64_t kLargest = Integer(Unsigned(-1) / 2);
  return orchard::clamp(x, -kLargest - 1, kLargest);
}

template <class T>
struct Array {
  const T* data;
  const OrchardArray* layout;
};

ORCHARD_INLINE Integer of_lane(Integer x, int) { return x; }
ORCHARD_INLINE Integer of_lane(IntegerVector x, int lane) { return x[lane]; }

/// An index outside of the array becomes the nearest one inside.
template <class... Index>
ORCHARD_INLINE int64_t offset(const OrchardArray* layout, Index... index) {
  int64_t sum = 0;
  int i = 0;
  ((sum += orchard::clamp<int64_t>(index, 0, layout->sizes[i] - 1) * layout->strides[i], i++), ...);
  return sum;
}

template <class T, class... Index>
ORCHARD_INLINE auto element(const Array<T>& array, Index... index) {
  if constexpr ((kUniform<Index> && ...)) {
    return value(array.data[offset(array.layout, index...)]);
  } else {
    decltype(lanes(value(T{}))) result;
    ORCHARD_UNROLL
    for (int lane = 0; lane < kLanes; lane++)
      result[lane] = lanes(value(array.data[offset(array.layout, of_lane(index, lane)...)]))[0];
    return result;
  }
}

}  // namespace expression
}  // namespace orchard
