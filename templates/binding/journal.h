// What a user may have written down: that a kernel ran, and which tensors it was handed.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "kernels.h"

namespace orchard {

/// What a tensor is to the kernel ("query", "grad_out" …), and the tensor.
struct Role {
  const char* name;
  const at::Tensor* tensor;
};

/// With ORCHARD_DEBUG_FLASH_ATN=1 (or ORCHARD_DEBUG_FLASHATN=1), one line a call: "[flashattn.mm] FWD call=1".
void note_call(const Request& request);

/// Whether ORCHARD_TENSOR_PROFILE=1 asks for `note_tensors`.
bool profiles_tensors();

/// One line a tensor: role, shape, strides, dtype, storage mode, bytes.
void note_tensors(const Kernel& kernel, const std::vector<Role>& tensors);

}  // namespace orchard
