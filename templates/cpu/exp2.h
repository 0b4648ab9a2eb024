// Powers and logarithms of two. 2^x = 2^n times a polynomial for the fraction, x = n + fraction.
#pragma once

#include "vector.h"

namespace orchard {

#ifdef __AVX512F__
constexpr bool kScalesPowers = sizeof(Real) == 4;  // AVX-512 splits and scales in one instruction each
#else
constexpr bool kScalesPowers = false;
#endif

template <class T>
struct Exponent;
template <>
struct Exponent<float> {
  static constexpr int kMantissaBits = 23, kBias = 127;
};
template <>
struct Exponent<double> {
  static constexpr int kMantissaBits = 52, kBias = 1023;
};

/// Numbers, each for all lanes: instructions read such vectors from memory themselves.
template <int Count>
struct Repeated {
  constexpr explicit Repeated(const Real (&numbers)[Count]) : lanes{} {
    for (int i = 0; i < Count; i++) {
      for (Real& lane : lanes[i]) lane = numbers[i];
    }
  }
  alignas(kVectorBytes) Real lanes[Count][kLanes];
};

// Polynomials for 2^fraction, those of their degree with the least relative error if p(0) is to be 1.

/// For |fraction| <= 1/2, to the precision of Real.
constexpr auto nearest_exp2() {
  if constexpr (sizeof(Real) == 4) {  // 0.9e-7
    return Repeated<6>({1.0f, 0.693146978f, 0.240222421f, 0.0555073374f, 0.00967151264f, 0.00132647271f});
  } else {  // ln(2)^i / i!: the series is exact to double precision
    return Repeated<14>({1.0, 0.693147180559945309, 0.240226506959100712, 0.0555041086648215800,
                         0.00961812910762847716, 0.00133335581464284434, 0.000154035303933816099,
                         1.52527338040598403e-5, 1.32154867901443095e-6, 1.01780860092396997e-7,
                         7.05491162080112333e-9, 4.44553827187081150e-10, 2.56784359934882051e-11,
                         1.36914888539041289e-12});
  }
}
/// For a fraction in [0, 1) where powers are scaled, elsewhere up to 1/2 again. What weighs numbers of 16 bits needs a
/// degree less.
constexpr auto weights_exp2() {
  if constexpr (kScalesPowers && kWidens) {  // 2.9e-6
    return Repeated<5>({1.0f, 0.693044845f, 0.241280205f, 0.0522424743f, 0.0134266842f});
  } else if constexpr (kScalesPowers) {  // 0.8e-7
    return Repeated<6>({1.0f, 0.693151314f, 0.240164385f, 0.0558001621f, 0.00901670347f, 0.00186727118f});
  } else if constexpr (kWidens) {  // 2.8e-6
    return Repeated<5>({1.0f, 0.693124193f, 0.240240986f, 0.0559064246f, 0.00958285302f});
  } else {
    return nearest_exp2();
  }
}
constexpr auto kNearestExp2 = nearest_exp2();
constexpr auto kWeightsExp2 = weights_exp2();

template <int Count>
ORCHARD_INLINE Vector polynomial(const Repeated<Count>& numbers, Vector x) {
  constexpr int kDegree = Count - 1;
  const Vector* coefficients = reinterpret_cast<const Vector*>(numbers.lanes);
  asm volatile("" : "+r"(coefficients));  // read anew: kept in registers, the products between would miss these
  Vector result = coefficients[kDegree];
  ORCHARD_UNROLL
  for (int i = kDegree - 1; i >= 0; i--) result = result * x + coefficients[i];
  return result;
}

inline float log2(float x) { return __builtin_log2f(x); }
inline double log2(double x) { return __builtin_log2(x); }

/// For x up to 64. What lies below the normal numbers may become 0; NaN stays NaN.
ORCHARD_INLINE Vector exp2(Vector x) {
#ifdef __AVX512F__
  if constexpr (kScalesPowers) {
    Vector fraction, result;
    asm("vreduceps $9, %1, %0" : "=v"(fraction) : "v"(x));  // x - floor(x)
    asm("vscalefps %2, %1, %0" : "=v"(result) : "v"(polynomial(kWeightsExp2, fraction)), "v"(x));  // by 2^floor(x)
    return result;
  }
#endif
  using Constants = Exponent<Real>;
  // Added to x, this rounds to an integer and leaves n + bias in the lowest bits, ready to become an exponent.
  constexpr Real kShift = Real(3ll << (Constants::kMantissaBits - 1)) + Constants::kBias;
  x = max(broadcast(-Constants::kBias), x);
  const Vector shifted = x + kShift;
  const Vector power = (Vector)((IntegerVector)shifted << Constants::kMantissaBits);
  return polynomial(kWeightsExp2, x - (shifted - kShift)) * power;
}

/// For any x. What is beyond 64 may count as that.
ORCHARD_INLINE Vector exp2_or_huge(Vector x) { return exp2(kScalesPowers ? x : min(broadcast(64), x)); }

}  // namespace orchard
