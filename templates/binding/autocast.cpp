// Autocast, as PyTorch's own attention has it: floating tensors come in the lower precision.
#include <ATen/autocast_mode.h>

#include "attention.h"

namespace orchard {

void autocast_forward(const c10::OperatorHandle& op, Stack* stack) {
  const auto arguments = stack->end() - Arguments::kCount;
  const auto device = arguments[0].toTensor().device().type();
  c10::impl::ExcludeDispatchKeyGuard once(at::autocast::get_autocast_dispatch_key_from_device_type(device));
  const auto dtype = at::autocast::get_lower_precision_fp_from_device_type(device);
  for (const size_t i : {size_t(0), size_t(1), size_t(2), Arguments::kBias}) {
    if (arguments[i].isTensor())
      arguments[i] = at::autocast::cached_cast(dtype, arguments[i].toTensor(), device);
  }
  op.callBoxed(stack);
}

}  // namespace orchard
