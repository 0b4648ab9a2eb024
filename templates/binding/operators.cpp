// Which function answers which dispatch key. Python defines the schemas (orchard_jit/operators.py).
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include "attention.h"

namespace orchard {

ForwardResult dispatch_forward(const Tensor& query, const Tensor& key, const Tensor& value,
                               std::optional<double> scale, std::string causal) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("orchard_jit::forward", "")
                             .typed<decltype(dispatch_forward)>();
  return op.call(query, key, value, scale, std::move(causal));
}

BackwardResult dispatch_backward(const Tensor& grad_out, const std::optional<Tensor>& grad_lse, const Tensor& query,
                                 const Tensor& key, const Tensor& value, const Tensor& out, const Tensor& lse,
                                 std::optional<double> scale, std::string causal) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("orchard_jit::backward", "")
                             .typed<decltype(dispatch_backward)>();
  return op.call(grad_out, grad_lse, query, key, value, out, lse, scale, std::move(causal));
}

TORCH_LIBRARY_IMPL(orchard_jit, CPU, library) {
  library.impl("forward", &device_forward);
  library.impl("backward", &device_backward);
}

TORCH_LIBRARY_IMPL(orchard_jit, MPS, library) {
  library.impl("forward", &device_forward);
  library.impl("backward", &device_backward);
}

TORCH_LIBRARY_IMPL(orchard_jit, AutogradCPU, library) {
  library.impl("forward", &autograd_forward);
  library.impl("backward", &autograd_backward);
}

TORCH_LIBRARY_IMPL(orchard_jit, AutogradMPS, library) {
  library.impl("forward", &autograd_forward);
  library.impl("backward", &autograd_backward);
}

// Tensors without data; below this key is the shape function that Python registered.
TORCH_LIBRARY_IMPL(orchard_jit, AutogradMeta, library) {
  library.impl("forward", &autograd_forward);
  library.impl("backward", &autograd_backward);
}

}  // namespace orchard
