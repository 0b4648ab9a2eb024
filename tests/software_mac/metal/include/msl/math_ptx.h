// Mathematics on a GPU without a device library: PTX's own approximations, and what follows from them. Relative errors
// measured on an H200: exp, exp2, log, log2 1e-6; tanh 1e-5; sin, cos 1e-4 (absolute errors of 5e-7 near their zeros).
// Functions that are only declared have no instruction; a source that uses one is refused by name (ptx.py).
#pragma once

namespace msl {

#define MSL_PTX_UNARY(name, instruction)                  \
  METAL_FUNC float name(float x) {                        \
    float y;                                              \
    asm(instruction " %0, %1;" : "=f"(y) : "f"(x));       \
    return y;                                             \
  }
MSL_PTX_UNARY(exp2, "ex2.approx.f32")
MSL_PTX_UNARY(log2, "lg2.approx.f32")
MSL_PTX_UNARY(sin, "sin.approx.f32")
MSL_PTX_UNARY(cos, "cos.approx.f32")
MSL_PTX_UNARY(tanh, "tanh.approx.f32")
#undef MSL_PTX_UNARY

METAL_FUNC float exp(float x) { return exp2(x * 1.44269504088896340736f); }
METAL_FUNC float exp10(float x) { return exp2(x * 3.32192809488736234787f); }
METAL_FUNC float log(float x) { return log2(x) * 0.69314718055994530942f; }
METAL_FUNC float log10(float x) { return log2(x) * 0.30102999566398119521f; }
METAL_FUNC float tan(float x) { return sin(x) / cos(x); }
METAL_FUNC float sinh(float x) { return 0.5f * (exp(x) - exp(-x)); }
METAL_FUNC float cosh(float x) { return 0.5f * (exp(x) + exp(-x)); }
METAL_FUNC float pow(float x, float y) { return exp2(y * log2(x)); }
METAL_FUNC float fmod(float x, float y) { return x - y * __builtin_truncf(x / y); }

extern "C" {
float msl_no_instruction_asin(float);
float msl_no_instruction_acos(float);
float msl_no_instruction_atan(float);
float msl_no_instruction_asinh(float);
float msl_no_instruction_acosh(float);
float msl_no_instruction_atanh(float);
float msl_no_instruction_atan2(float, float);
}
METAL_FUNC float asin(float x) { return msl_no_instruction_asin(x); }
METAL_FUNC float acos(float x) { return msl_no_instruction_acos(x); }
METAL_FUNC float atan(float x) { return msl_no_instruction_atan(x); }
METAL_FUNC float asinh(float x) { return msl_no_instruction_asinh(x); }
METAL_FUNC float acosh(float x) { return msl_no_instruction_acosh(x); }
METAL_FUNC float atanh(float x) { return msl_no_instruction_atanh(x); }
METAL_FUNC float atan2(float y, float x) { return msl_no_instruction_atan2(y, x); }

}  // namespace msl
