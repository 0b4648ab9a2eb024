#include "refusal.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>

#include <stdexcept>

namespace orchard {

void refuse(const std::string& reason) {
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("orchard_jit::refuse", "");
  torch::jit::Stack stack{reason};
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), &stack);  // past all who watch operators
  throw std::logic_error("orchard_jit::refuse has returned");
}

}  // namespace orchard
