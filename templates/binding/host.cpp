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

using Memory = std::unique_ptr<void, decltype(&std::free)>;

Memory allocate(int64_t bytes) {
  Memory memory(std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment), &std::free);
  if (!memory) throw std::bad_alloc();
  return memory;
}

/// Runs body(context, workspace). A thread keeps a small workspace from call to call, so that a small call does
/// not pay for fresh pages; a large one it gives back.
void run_with_workspace(int64_t bytes, void (*body)(void*, void*), void* context) {
  constexpr int64_t kept_bytes = 4 << 20;
  if (bytes > kept_bytes) return body(context, allocate(bytes).get());
  thread_local Memory kept(nullptr, &std::free);
  thread_local int64_t capacity = 0;
  if (bytes > capacity) {
    kept = allocate(bytes);
    capacity = bytes;
  }
  body(context, kept.get());
}

#ifdef __APPLE__

// Apple's compiler has no OpenMP, so at::parallel_for would run serially in this file.
void launch(int64_t workers, int64_t workspace_bytes, void (*body)(void*, void*), void* context) {
  const auto work = [&](size_t) { run_with_workspace(workspace_bytes, body, context); };
  using Work = decltype(work);
  dispatch_apply_f(workers, DISPATCH_APPLY_AUTO, const_cast<Work*>(&work),
                   [](void* self, size_t index) { (*static_cast<Work*>(self))(index); });
}

#else

void launch(int64_t workers, int64_t workspace_bytes, void (*body)(void*, void*), void* context) {
  const auto work = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) run_with_workspace(workspace_bytes, body, context);
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
    host.queue = torch::mps::get_dispatch_queue();
    host.command_buffer = [] { return static_cast<void*>(torch::mps::get_command_buffer()); };
  }
  return host;
}

}  // namespace orchard
