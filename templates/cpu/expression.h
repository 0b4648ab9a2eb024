// What printed score expressions are made of. Every function takes uniform values (Real, Integer, bool) and vectors
// of lanes (Vector, IntegerVector, and as truth an IntegerVector of -1 and 0) in any mixture.
#pragma once

#include "functions.h"
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

/// Rounds down; 0 where b is 0. In double, where the quotient of integers of 32 bits is exact enough to be cut off;
/// that of the smallest one and -1 would be no integer any more.
ORCHARD_INLINE IntegerVector floor_divide(IntegerVector a, IntegerVector b) {
  using Wide = Lanes<double>::Vector;
  const IntegerVector divisor = ((b == 0) | (b == -1)) ? lanes(Integer(1)) : b;
  const Wide quotient = __builtin_convertvector(a, Wide) / __builtin_convertvector(divisor, Wide);
  const IntegerVector whole = __builtin_convertvector(quotient, IntegerVector);
  const IntegerVector rest = subtract(a, multiply(whole, divisor));
  const IntegerVector rounded_up = (IntegerVector)((rest != 0) & ((rest ^ divisor) < 0));
  return b == 0 ? b : b == -1 ? negate(a) : add(whole, rounded_up);
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

// Functions of a uniform real. They are the same as those of vectors, and so are their results.

ORCHARD_INLINE Vector exp(Real x) { return exp(broadcast(x)); }
ORCHARD_INLINE Vector exp2(Real x) { return exp2(broadcast(x)); }
ORCHARD_INLINE Vector log(Real x) { return log(broadcast(x)); }
ORCHARD_INLINE Vector log2(Real x) { return log2(broadcast(x)); }
ORCHARD_INLINE Vector sqrt(Real x) { return sqrt(broadcast(x)); }
ORCHARD_INLINE Vector tanh(Real x) { return tanh(broadcast(x)); }
ORCHARD_INLINE Vector sigmoid(Real x) { return sigmoid(broadcast(x)); }
ORCHARD_INLINE Vector sin(Real x) { return sin(broadcast(x)); }
ORCHARD_INLINE Vector cos(Real x) { return cos(broadcast(x)); }
ORCHARD_INLINE Vector floor(Real x) { return floor(broadcast(x)); }

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
