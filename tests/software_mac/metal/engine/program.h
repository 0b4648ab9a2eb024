// What the compiled source brings: tables that kernel.h and the compiler (ir.py) emit.
#pragma once

#include <stdint.h>

#include "../include/msl/engine_interface.h"
#include "../include/software_metal.h"

namespace msl {

// A variable of a kernel's body in threadgroup memory, or of the program in constant memory.
struct variable {
  const char* name;
  char* address;
  uint64_t bytes;
  int32_t kernel;  // index of the kernel that reaches it, or -1 for constant memory
};

}  // namespace msl

extern "C" {
extern const uint32_t msl_checked;
extern const uint32_t msl_kernel_count;
extern const struct software_metal_kernel msl_kernels[];
extern void (*const msl_entries[])();

extern const uint32_t msl_variable_count;
extern const msl::variable msl_variables[];

extern const uint32_t msl_function_constant_count;
extern const struct software_metal_function_constant msl_function_constants[];
extern void* const msl_function_constant_values[];
extern bool* const msl_function_constant_defined[];
extern const uint32_t msl_initialiser_count;
extern void (*const msl_initialisers[])();

extern const uint32_t msl_site_count;
extern const char* const msl_sites[];
}
