// The mps generator: a CPU generator of its own, because the CPU draws the numbers.
#pragma once

#include <ATen/core/Generator.h>

namespace software_mac {

const at::Generator& default_generator();
at::Generator new_generator();
/// The CPU generator behind an mps one.
at::Generator cpu_generator(const at::Generator& generator);

}  // namespace software_mac
