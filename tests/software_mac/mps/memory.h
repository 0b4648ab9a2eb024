// The memory of mps tensors. A storage's pointer is its id<MTLBuffer>, as on a Mac: never an address to read from.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Allocator.h>

namespace software_mac {

inline const c10::Device kDevice{c10::DeviceType::MPS, 0};

/// What has been allocated; the tests read and reset it.
struct AllocationCounters {
  int64_t allocations;  // since the last reset
  int64_t bytes;        // alive now
  int64_t peak;         // most bytes alive at once since the last reset
};

c10::Allocator* allocator();
AllocationCounters allocation_counters();

/// The first byte of a storage, for the CPU. Waits for what the GPU still has to do.
char* cpu_bytes(const c10::Storage& storage);

/// A CPU tensor over the memory of an mps tensor; a CPU tensor itself.
at::Tensor cpu_alias(const at::Tensor& tensor);

/// Makes a storage hold at least `bytes`, keeping its content.
void grow(const c10::Storage& storage, size_t bytes);

}  // namespace software_mac
