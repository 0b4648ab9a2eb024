// Which function answers which dispatch key. Python defines the schemas (orchard_jit/operators.py).
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include "attention.h"

namespace orchard {

const c10::OperatorHandle& forward_operator() {
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("orchard_jit::forward", "");
  return op;
}

const c10::OperatorHandle& backward_operator() {
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("orchard_jit::backward", "");
  return op;
}

namespace {

template <c10::BoxedKernel::BoxedKernelFunction* function>
torch::CppFunction boxed() {
  return torch::CppFunction::makeFromBoxedFunction<function>();
}

void register_device(torch::Library& library) {
  library.impl("attention", boxed<&device_attention>());
  library.impl("forward", boxed<&device_forward>());
  library.impl("backward", boxed<&device_backward>());
  library.impl("plan", boxed<&device_plan>());
}

void register_autograd(torch::Library& library) {
  library.impl("attention", boxed<&autograd_attention>());
  library.impl("forward", boxed<&autograd_forward>());
  library.impl("backward", boxed<&autograd_backward>());
}

void register_autocast(torch::Library& library) {
  library.impl("attention", boxed<&autocast_attention>());
  library.impl("forward", boxed<&autocast_forward>());
}

TORCH_LIBRARY_IMPL(orchard_jit, CPU, library) { register_device(library); }
TORCH_LIBRARY_IMPL(orchard_jit, MPS, library) { register_device(library); }

TORCH_LIBRARY_IMPL(orchard_jit, AutogradCPU, library) { register_autograd(library); }
TORCH_LIBRARY_IMPL(orchard_jit, AutogradMPS, library) { register_autograd(library); }
// What torch.func's wrapper of an MPS tensor has.
TORCH_LIBRARY_IMPL(orchard_jit, AutogradOther, library) { register_autograd(library); }
// Tensors without data; below this key is the shape function that Python registered.
TORCH_LIBRARY_IMPL(orchard_jit, AutogradMeta, library) { register_autograd(library); }

TORCH_LIBRARY_IMPL(orchard_jit, AutocastCPU, library) { register_autocast(library); }
TORCH_LIBRARY_IMPL(orchard_jit, AutocastMPS, library) { register_autocast(library); }

}  // namespace
}  // namespace orchard
