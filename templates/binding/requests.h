// Which kernels a call wants.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

#include "arguments.h"
#include "kernels.h"

namespace orchard {

constexpr int64_t max_head_dim = 512;

/// The type of the kernel that takes such tensors, if there is one.
std::optional<Dtype> dtype_of(const Tensor& tensor);

/// The request of arguments that are known to be good.
Request request_for_forward(const Arguments& arguments);
Request request_for_backward(const Arguments& arguments, bool of_bias);

/// Both, for arguments that nobody has checked yet: nothing when their head dims are not known (symbolic, while a
/// graph is traced) or no kernel can take them.
std::vector<Request> requests_of_training(const Arguments& arguments, bool of_bias);

}  // namespace orchard
