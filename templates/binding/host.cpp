#include "host.h"

#include <ATen/Parallel.h>
#include <torch/mps.h>

#include <cstdlib>
#include <memory>
#include <new>

#ifdef __APPLE__
#include <dispatch/dispatch.h>
#endif

namespace orchard {
namespace {

constexpr int64_t alignment = 64;

/// Memory that a thread keeps from call to call, so that a small call does not pay for fresh pages.
void* workspace(int64_t bytes) {
  thread_local std::unique_ptr<void, decltype(&std::free)> memory(nullptr, &std::free);
  thread_local int64_t capacity = 0;
  if (bytes > capacity) {
    const int64_t rounded = (bytes + alignment - 1) / alignment * alignment;
    memory.reset();
    capacity = 0;
    memory.reset(std::aligned_alloc(alignment, rounded));
    if (!memory) throw std::bad_alloc();
    capacity = rounded;
  }
  return memory.get();
}

#ifdef __APPLE__

// Apple's compiler has no OpenMP, so at::parallel_for would run serially in this file.
void launch(int64_t workers, int64_t workspace_bytes, void (*body)(void*, void*), void* context) {
  const auto work = [&](size_t) { body(context, workspace(workspace_bytes)); };
  using Work = decltype(work);
  dispatch_apply_f(workers, DISPATCH_APPLY_AUTO, const_cast<Work*>(&work),
                   [](void* self, size_t index) { (*static_cast<Work*>(self))(index); });
}

#else

void launch(int64_t workers, int64_t workspace_bytes, void (*body)(void*, void*), void* context) {
  const auto work = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(context, workspace(workspace_bytes));
  };
  if (workers == 1) return work(0, 1);
  at::parallel_for(0, workers, 1, work);
}

#endif

}  // namespace

OrchardHost host_for(Backend backend) {
  OrchardHost host{};
  if (backend == Backend::cpu) {
    host.threads = at::get_num_threads();
    host.launch = &launch;
  } else {
    host.command_buffer = torch::mps::get_command_buffer();
    host.queue = torch::mps::get_dispatch_queue();
  }
  return host;
}

}  // namespace orchard
