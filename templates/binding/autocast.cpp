// Autocast, as PyTorch's own attention has it: floating tensors come in the lower precision.
#include "attention.h"

// <ATen/autocast_mode.h> has these beside the whole of ATen, which takes a compiler seconds to read.
namespace at::autocast {
TORCH_API at::ScalarType get_autocast_dtype(at::DeviceType device);
TORCH_API Tensor cached_cast(at::ScalarType dtype, const Tensor& tensor, at::DeviceType device);
}  // namespace at::autocast

namespace orchard {

void autocast_forward(const c10::OperatorHandle& op, Stack* stack) {
  const auto arguments = stack->end() - Arguments::kCount;
  const auto device = arguments[0].toTensor().device().type();
  c10::impl::ExcludeDispatchKeyGuard once(device == at::kMPS ? c10::DispatchKey::AutocastMPS : c10::DispatchKey::AutocastCPU);
  const auto dtype = at::autocast::get_autocast_dtype(device);
  for (const size_t i : {size_t(0), size_t(1), size_t(2), Arguments::kBias}) {
    if (arguments[i].isTensor())
      arguments[i] = at::autocast::cached_cast(dtype, arguments[i].toTensor(), device);
  }
  op.callBoxed(stack);
}

}  // namespace orchard
