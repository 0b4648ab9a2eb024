// What a call may be given: the checks, and the request that follows from the tensors.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>

#include "kernels.h"

namespace orchard {

/// Throws ValueError, TypeError or NotImplementedError, naming the argument, what came and what is accepted.
void check_inputs(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, const std::string& causal);

/// Throws ValueError unless the gradients fit the forward's results.
void check_gradients(const at::Tensor& grad_out, const std::optional<at::Tensor>& grad_lse, const at::Tensor& out,
                     const at::Tensor& lse);

/// The request of tensors that are known to be good, or nothing when their head dims are not known yet
/// (symbolic, while a graph is traced) or no kernel can take them.
std::optional<Request> request_for(Pass pass, const at::Tensor& query, const at::Tensor& value, bool causal);

}  // namespace orchard
