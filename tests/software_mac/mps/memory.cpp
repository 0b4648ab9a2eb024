#include "memory.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <mutex>

#include "software_mac.h"
#include "stream.h"

namespace software_mac {
namespace {

std::mutex counters_mutex;
AllocationCounters counters;

void count(int64_t bytes) {
  std::lock_guard lock(counters_mutex);
  counters.allocations += bytes > 0;
  counters.bytes += bytes;
  counters.peak = std::max(counters.peak, counters.bytes);
}

/// SOFTWARE_MAC_STORAGE=shared makes tensors that the CPU may read; private ones are the default, as they are stricter.
bool new_tensors_are_private() {
  const char* chosen = std::getenv("SOFTWARE_MAC_STORAGE");
  std::string mode = chosen && *chosen ? chosen : "private";
  TORCH_CHECK(mode == "private" || mode == "shared", "SOFTWARE_MAC_STORAGE=", mode,
              ": accepted are private and shared");
  return mode == "private";
}

/// Behind a tensor's DataPtr; the buffer itself may live on in a command buffer.
struct Allocation {
  void* buffer;
  int64_t bytes;
};

void forget(void* context) {
  auto* allocation = static_cast<Allocation*>(context);
  count(-allocation->bytes);
  software_mac_release(allocation->buffer);
  delete allocation;
}

struct Allocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    if (bytes == 0) return {nullptr, nullptr, &forget_nothing, kDevice};
    void* buffer = software_mac_new_buffer(bytes, new_tensors_are_private());
    TORCH_CHECK_WITH(OutOfMemoryError, buffer, "MPS backend out of memory (", bytes, " bytes)");
    std::memset(software_mac_buffer_bytes(buffer), 0xff, bytes);  // NaN in every floating-point type
    count(static_cast<int64_t>(bytes));
    return {buffer, new Allocation{buffer, static_cast<int64_t>(bytes)}, &forget, kDevice};
  }
  void copy_data(void* destination, const void* source, size_t bytes) const override {
    stream_synchronize();
    std::memcpy(software_mac_buffer_bytes(destination), software_mac_buffer_bytes(const_cast<void*>(source)), bytes);
  }
  static void forget_nothing(void*) {}
};

}  // namespace

c10::Allocator* allocator() {
  static Allocator instance;
  return &instance;
}

AllocationCounters allocation_counters() {
  std::lock_guard lock(counters_mutex);
  return counters;
}

char* cpu_bytes(const c10::Storage& storage) {
  stream_synchronize();
  void* buffer = storage.mutable_data();
  return buffer ? static_cast<char*>(software_mac_buffer_bytes(buffer)) : nullptr;
}

at::Tensor cpu_alias(const at::Tensor& tensor) {
  if (tensor.is_cpu()) return tensor;
  TORCH_CHECK(tensor.device() == kDevice, "expected a tensor on cpu or mps, got one on ", tensor.device());
  auto options = at::TensorOptions(tensor.scalar_type());
  if (tensor.numel() == 0) return at::empty(tensor.sizes(), options);
  char* first = cpu_bytes(tensor.storage()) + tensor.storage_offset() * static_cast<int64_t>(tensor.element_size());
  at::Tensor alias = at::from_blob(first, tensor.sizes(), tensor.strides(), [tensor](void*) {}, options);
  alias._set_conj(tensor.is_conj());
  alias._set_neg(tensor.is_neg());
  return alias;
}

void grow(const c10::Storage& storage, size_t bytes) {
  if (bytes <= storage.nbytes()) return;
  TORCH_CHECK(storage.resizable(), "the storage of this tensor cannot be resized");
  c10::DataPtr larger = allocator()->allocate(bytes);
  if (storage.nbytes()) std::memcpy(software_mac_buffer_bytes(larger.get()), cpu_bytes(storage), storage.nbytes());
  storage.set_data_ptr_noswap(std::move(larger));
  storage.set_nbytes(bytes);
}

}  // namespace software_mac

extern "C" {

void software_mac_mps_allocations(software_mac::AllocationCounters* out) { *out = software_mac::allocation_counters(); }

void software_mac_mps_reset_allocations() {
  std::lock_guard lock(software_mac::counters_mutex);
  software_mac::counters.allocations = 0;
  software_mac::counters.peak = software_mac::counters.bytes;
}
}
