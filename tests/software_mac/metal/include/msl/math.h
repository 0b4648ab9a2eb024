// Functions of float and half. The accuracy is that of the C library (on a GPU: of PTX's approximations where they are
// the only ones); Apple's fast:: variants may be less accurate, which nothing here can show.
#pragma once

#if defined(__NVPTX__)
#include "math_ptx.h"
#else
#include "engine_interface.h"
namespace msl {
METAL_FUNC float exp2(float x) {
  msl_count_exponential();
  return __builtin_exp2f(x);
}
METAL_FUNC float exp(float x) { return __builtin_expf(x); }
METAL_FUNC float exp10(float x) { return __builtin_exp2f(x * 3.32192809488736234787f); }
METAL_FUNC float log2(float x) { return __builtin_log2f(x); }
METAL_FUNC float log(float x) { return __builtin_logf(x); }
METAL_FUNC float log10(float x) { return __builtin_log10f(x); }
METAL_FUNC float sin(float x) { return __builtin_sinf(x); }
METAL_FUNC float cos(float x) { return __builtin_cosf(x); }
METAL_FUNC float tan(float x) { return __builtin_tanf(x); }
METAL_FUNC float asin(float x) { return __builtin_asinf(x); }
METAL_FUNC float acos(float x) { return __builtin_acosf(x); }
METAL_FUNC float atan(float x) { return __builtin_atanf(x); }
METAL_FUNC float sinh(float x) { return __builtin_sinhf(x); }
METAL_FUNC float cosh(float x) { return __builtin_coshf(x); }
METAL_FUNC float tanh(float x) { return __builtin_tanhf(x); }
METAL_FUNC float asinh(float x) { return __builtin_asinhf(x); }
METAL_FUNC float acosh(float x) { return __builtin_acoshf(x); }
METAL_FUNC float atanh(float x) { return __builtin_atanhf(x); }
METAL_FUNC float pow(float x, float y) { return __builtin_powf(x, y); }
METAL_FUNC float atan2(float y, float x) { return __builtin_atan2f(y, x); }
METAL_FUNC float fmod(float x, float y) { return __builtin_fmodf(x, y); }
}  // namespace msl
#endif

namespace msl {
METAL_FUNC float sqrt(float x) { return __builtin_sqrtf(x); }
METAL_FUNC float rsqrt(float x) { return 1.0f / __builtin_sqrtf(x); }
METAL_FUNC float floor(float x) { return __builtin_floorf(x); }
METAL_FUNC float ceil(float x) { return __builtin_ceilf(x); }
METAL_FUNC float trunc(float x) { return __builtin_truncf(x); }
METAL_FUNC float rint(float x) { return __builtin_rintf(x); }
METAL_FUNC float round(float x) { return __builtin_roundf(x); }
METAL_FUNC float fabs(float x) { return __builtin_fabsf(x); }
METAL_FUNC float fract(float x) { return x - __builtin_floorf(x); }
METAL_FUNC float sign(float x) { return x > 0.0f ? 1.0f : x < 0.0f ? -1.0f : x == 0.0f ? x : 0.0f; }
METAL_FUNC float divide(float x, float y) { return x / y; }
METAL_FUNC float copysign(float x, float y) { return __builtin_copysignf(x, y); }
}  // namespace msl

#define MSL_UNARY(name)                                                                \
  template <class T, class = msl::if_real<T>>                                          \
  METAL_FUNC T name(T x) {                                                             \
    return msl::each([](auto v) { return msl::element_t<T>(msl::name(float(v))); }, x); \
  }
#define MSL_BINARY(name)                                                                                   \
  template <class T, class = msl::if_real<T>>                                                              \
  METAL_FUNC T name(T x, T y) {                                                                            \
    return msl::each([](auto v, auto w) { return msl::element_t<T>(msl::name(float(v), float(w))); }, x, y); \
  }
#define MSL_MATHEMATICS                                                                                             \
  MSL_UNARY(exp) MSL_UNARY(exp2) MSL_UNARY(exp10) MSL_UNARY(log) MSL_UNARY(log2) MSL_UNARY(log10)                   \
  MSL_UNARY(sin) MSL_UNARY(cos) MSL_UNARY(tan) MSL_UNARY(asin) MSL_UNARY(acos) MSL_UNARY(atan)                      \
  MSL_UNARY(sinh) MSL_UNARY(cosh) MSL_UNARY(tanh) MSL_UNARY(asinh) MSL_UNARY(acosh) MSL_UNARY(atanh)                \
  MSL_UNARY(sqrt) MSL_UNARY(rsqrt) MSL_UNARY(floor) MSL_UNARY(ceil) MSL_UNARY(trunc) MSL_UNARY(rint)                \
  MSL_UNARY(round) MSL_UNARY(fabs) MSL_UNARY(fract) MSL_UNARY(sign)                                                 \
  MSL_BINARY(pow) MSL_BINARY(atan2) MSL_BINARY(fmod) MSL_BINARY(divide)

namespace metal {

MSL_MATHEMATICS
MSL_BINARY(copysign)

template <class T, class = msl::if_real<T>>
METAL_FUNC T fma(T x, T y, T z) {
  return msl::each([](auto a, auto b, auto c) { return msl::element_t<T>(__builtin_fmaf(float(a), float(b), float(c))); },
                   x, y, z);
}

// fmax and fmin ignore a NaN; so do max and min of floats in Metal.
template <class T, class = msl::if_number<T>>
METAL_FUNC constexpr T max(T x, T y) {
  if constexpr (msl::is_integer_v<T>)
    return msl::each([](auto a, auto b) { return a < b ? b : a; }, x, y);
  else
    return msl::each([](auto a, auto b) { return a < b || a != a ? b : a; }, x, y);
}
template <class T, class = msl::if_number<T>>
METAL_FUNC constexpr T min(T x, T y) {
  if constexpr (msl::is_integer_v<T>)
    return msl::each([](auto a, auto b) { return b < a ? b : a; }, x, y);
  else
    return msl::each([](auto a, auto b) { return b < a || a != a ? b : a; }, x, y);
}
template <class T, class = msl::if_real<T>> METAL_FUNC T fmax(T x, T y) { return max(x, y); }
template <class T, class = msl::if_real<T>> METAL_FUNC T fmin(T x, T y) { return min(x, y); }
template <class T> METAL_FUNC T max3(T x, T y, T z) { return max(max(x, y), z); }
template <class T> METAL_FUNC T min3(T x, T y, T z) { return min(min(x, y), z); }
template <class T, class = msl::if_number<T>>
METAL_FUNC T clamp(T x, T low, T high) { return min(max(x, low), high); }
template <class T, class = msl::if_real<T>>
METAL_FUNC T saturate(T x) { return clamp(x, T(0), T(1)); }
template <class T, class = msl::if_real<T>>
METAL_FUNC T mix(T x, T y, T a) { return x + (y - x) * a; }
template <class T, class = msl::if_number<T>>
METAL_FUNC T abs(T x) {
  return msl::each([](auto v) { return v < decltype(v)(0) || v == decltype(v)(0) ? decltype(v)(0 - v) : v; }, x);
}
#define MSL_CLASSIFY(name, builtin)                                              \
  template <class T, class = enable_if_t<is_floating_point<T>::value>>           \
  METAL_FUNC bool name(T x) { return builtin(float(x)); }
MSL_CLASSIFY(isnan, __builtin_isnan)
MSL_CLASSIFY(isinf, __builtin_isinf)
MSL_CLASSIFY(isfinite, __builtin_isfinite)
MSL_CLASSIFY(signbit, __builtin_signbit)
#undef MSL_CLASSIFY

namespace fast { MSL_MATHEMATICS }
namespace precise { MSL_MATHEMATICS }
namespace fast { using metal::clamp; using metal::fma; using metal::fmax; using metal::fmin; using metal::max; using metal::min; }
namespace precise { using metal::clamp; using metal::fma; using metal::fmax; using metal::fmin; using metal::max; using metal::min; }

}  // namespace metal

#undef MSL_UNARY
#undef MSL_BINARY
#undef MSL_MATHEMATICS
