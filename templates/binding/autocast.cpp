// Autocast, as PyTorch's own attention has it: floating tensors come in the lower precision.
#include "attention.h"

// <ATen/autocast_mode.h> has these beside the whole of ATen, which takes a compiler seconds to read.
namespace at::autocast {
TORCH_API at::ScalarType get_autocast_dtype(at::DeviceType device);
TORCH_API Tensor cached_cast(at::ScalarType dtype, const Tensor& tensor, at::DeviceType device);
}  // namespace at::autocast

namespace orchard {
namespace {

/// Calls the operator again with those of its `count` arguments cast that are in `cast`.
void call_cast(const c10::OperatorHandle& op, Stack* stack, size_t count, std::initializer_list<size_t> cast) {
  const auto arguments = stack->end() - static_cast<std::ptrdiff_t>(count);
  const auto device = arguments[0].toTensor().device().type();
  c10::impl::ExcludeDispatchKeyGuard once(device == at::kMPS ? c10::DispatchKey::AutocastMPS : c10::DispatchKey::AutocastCPU);
  const auto dtype = at::autocast::get_autocast_dtype(device);
  for (const size_t i : cast)
    if (arguments[i].isTensor()) arguments[i] = at::autocast::cached_cast(dtype, arguments[i].toTensor(), device);
  op.callBoxed(stack);
}

}  // namespace

void autocast_attention(const c10::OperatorHandle& op, Stack* stack) {
  call_cast(op, stack, Arguments::kPlain, {0, 1, 2});
}

void autocast_forward(const c10::OperatorHandle& op, Stack* stack) {
  call_cast(op, stack, Arguments::kCount, {0, 1, 2, Arguments::kBias});
}

}  // namespace orchard
