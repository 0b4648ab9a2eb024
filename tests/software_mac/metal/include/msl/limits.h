// numeric_limits and the constants of the preprocessor.
#pragma once

#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#define HUGE_VALF __builtin_inff()
#define MAXFLOAT 3.40282346638528859812e+38f
#define FLT_MAX 3.40282346638528859812e+38f
#define FLT_MIN 1.17549435082228750797e-38f
#define FLT_EPSILON 1.1920928955078125e-07f
#define HALF_MAX half(65504.0f)
#define HALF_MIN half(6.103515625e-5f)
#define HALF_EPSILON half(9.765625e-4f)
#define MAXHALF HALF_MAX
#define CHAR_BIT 8
#define INT_MAX 2147483647
#define INT_MIN (-2147483647 - 1)
#define UINT_MAX 4294967295u
#define SHRT_MAX 32767
#define USHRT_MAX 65535
#define LONG_MAX 9223372036854775807l
#define ULONG_MAX 18446744073709551615ul

#define M_E_F 2.71828182845904523536f
#define M_LOG2E_F 1.44269504088896340736f
#define M_LOG10E_F 0.43429448190325182765f
#define M_LN2_F 0.69314718055994530942f
#define M_LN10_F 2.30258509299404568402f
#define M_PI_F 3.14159265358979323846f
#define M_PI_2_F 1.57079632679489661923f
#define M_PI_4_F 0.78539816339744830962f
#define M_1_PI_F 0.31830988618379067154f
#define M_2_PI_F 0.63661977236758134308f
#define M_2_SQRTPI_F 1.12837916709551257390f
#define M_SQRT2_F 1.41421356237309504880f
#define M_SQRT1_2_F 0.70710678118654752440f

namespace msl {

template <class T, int mantissa_bits>
struct floating_limits {
  static constexpr constant bool is_signed = true;
  static constexpr constant bool is_integer = false;
  static constexpr constant int digits = mantissa_bits;
  static constexpr T infinity() { return T(__builtin_inff()); }
  static constexpr T quiet_NaN() { return T(__builtin_nanf("")); }
  static constexpr T epsilon() { return T(1.0f / float(1 << (mantissa_bits - 1))); }
};

template <class T>
struct integer_limits {
  static constexpr constant bool is_signed = T(-1) < T(0);
  static constexpr constant bool is_integer = true;
  static constexpr constant int digits = 8 * sizeof(T) - (is_signed ? 1 : 0);
  static constexpr T max() {
    return T(is_signed ? (1ul << (8 * sizeof(T) - 1)) - 1 : ~0ul >> (64 - 8 * sizeof(T)));
  }
  static constexpr T min() { return is_signed ? T(-max() - 1) : T(0); }
  static constexpr T lowest() { return min(); }
};

}  // namespace msl

namespace metal {

template <class T>
struct numeric_limits;

template <>
struct numeric_limits<float> : msl::floating_limits<float, 24> {
  static constexpr float max() { return FLT_MAX; }
  static constexpr float lowest() { return -FLT_MAX; }
  static constexpr float min() { return FLT_MIN; }
  static constexpr float denorm_min() { return 1.40129846432481707e-45f; }
};
template <>
struct numeric_limits<half> : msl::floating_limits<half, 11> {
  static constexpr half max() { return half(65504.0f); }
  static constexpr half lowest() { return half(-65504.0f); }
  static constexpr half min() { return half(6.103515625e-5f); }
  static constexpr half denorm_min() { return half(5.9604644775390625e-8f); }
};
template <>
struct numeric_limits<bfloat> : msl::floating_limits<bfloat, 8> {
  static constexpr bfloat max() { return bfloat(3.38953138925153547590e+38f); }
  static constexpr bfloat lowest() { return bfloat(-3.38953138925153547590e+38f); }
  static constexpr bfloat min() { return bfloat(FLT_MIN); }
  static constexpr bfloat denorm_min() { return bfloat(9.18354961579912115600575419705e-41f); }
};
template <> struct numeric_limits<char> : msl::integer_limits<char> {};
template <> struct numeric_limits<int8_t> : msl::integer_limits<int8_t> {};
template <> struct numeric_limits<uchar> : msl::integer_limits<uchar> {};
template <> struct numeric_limits<short> : msl::integer_limits<short> {};
template <> struct numeric_limits<ushort> : msl::integer_limits<ushort> {};
template <> struct numeric_limits<int> : msl::integer_limits<int> {};
template <> struct numeric_limits<uint> : msl::integer_limits<uint> {};
template <> struct numeric_limits<long> : msl::integer_limits<long> {};
template <> struct numeric_limits<ulong> : msl::integer_limits<ulong> {};

}  // namespace metal
