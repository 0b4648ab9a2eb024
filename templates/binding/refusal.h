// The end of a call for which there is no kernel.
#pragma once

#include <string>

namespace orchard {

/// Lets Python raise its error (orchard_jit/binding.py): the resolver's own if that has just failed, else that a compiler
/// says this. What Python raises keeps its type on the way back to the caller, also through autograd's threads.
[[noreturn]] void refuse(const std::string& reason);

}  // namespace orchard
