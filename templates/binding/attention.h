// The kernels behind each dispatch key. All are boxed: they take an operator's arguments from the stack and leave
// its results there.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

#include "arguments.h"

namespace orchard {

/// The operators as whoever calls sees them: through PyTorch's dispatcher, so that tracing and compiling see them too.
const c10::OperatorHandle& forward_operator();
const c10::OperatorHandle& backward_operator();

// Autograd keys.
void autograd_attention(const c10::OperatorHandle&, Stack* stack);
void autograd_forward(const c10::OperatorHandle&, Stack* stack);
void autograd_backward(const c10::OperatorHandle&, Stack* stack);

// Autocast keys.
void autocast_attention(const c10::OperatorHandle&, Stack* stack);
void autocast_forward(const c10::OperatorHandle&, Stack* stack);

// CPU and MPS keys.
void device_attention(const c10::OperatorHandle&, Stack* stack);
void device_forward(const c10::OperatorHandle&, Stack* stack);
void device_backward(const c10::OperatorHandle&, Stack* stack);
/// The requests that a forward of these arguments makes, as JSON: nothing is computed.
void device_plan(const c10::OperatorHandle&, Stack* stack);

}  // namespace orchard
