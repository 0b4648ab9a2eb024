// The operators' C++ signatures, and the way from one dispatch key to the next.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <tuple>

namespace orchard {

using at::Tensor;

using ForwardResult = std::tuple<Tensor, Tensor>;           // out, lse
using BackwardResult = std::tuple<Tensor, Tensor, Tensor>;  // gradients of query, key, value

// As whoever calls sees them: through PyTorch's dispatcher, so that tracing and compiling see them too.
ForwardResult dispatch_forward(const Tensor& query, const Tensor& key, const Tensor& value,
                               std::optional<double> scale, std::string causal);
BackwardResult dispatch_backward(const Tensor& grad_out, const std::optional<Tensor>& grad_lse, const Tensor& query,
                                 const Tensor& key, const Tensor& value, const Tensor& out, const Tensor& lse,
                                 std::optional<double> scale, std::string causal);

// The kernels of the Autograd keys.
ForwardResult autograd_forward(const Tensor& query, const Tensor& key, const Tensor& value,
                               std::optional<double> scale, std::string causal);
BackwardResult autograd_backward(const Tensor& grad_out, const std::optional<Tensor>& grad_lse, const Tensor& query,
                                 const Tensor& key, const Tensor& value, const Tensor& out, const Tensor& lse,
                                 std::optional<double> scale, std::string causal);

// The kernels of the CPU and MPS keys.
ForwardResult device_forward(const Tensor& query, const Tensor& key, const Tensor& value, std::optional<double> scale,
                             std::string causal);
BackwardResult device_backward(const Tensor& grad_out, const std::optional<Tensor>& grad_lse, const Tensor& query,
                               const Tensor& key, const Tensor& value, const Tensor& out, const Tensor& lse,
                               std::optional<double> scale, std::string causal);

}  // namespace orchard
