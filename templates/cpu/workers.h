// Running tasks on the host's threads.
#pragma once

#include "operand.h"
#include "params.h"

namespace orchard {

/// Below so many multiply-adds a second worker costs more than it brings.
constexpr double kSerialWork = 1 << 18;

/// So many tasks keep the threads of a large machine busy. A constant: results must not depend on the machine.
constexpr int64_t kManyTasks = 64;

/// Runs body(task, workspace) once for each task. Workers take them in ascending order: the heaviest should come first.
template <class Body>
void run_tasks(const OrchardHost& host, int64_t tasks, double work, int64_t workspace_bytes, Body body) {
  struct Queue {
    Body& body;
    int64_t next, end;
  } queue{body, 0, tasks};
  if (tasks == 0) return;
  const int64_t workers = work < kSerialWork ? 1 : min(host.threads, tasks);
  host.launch(
      workers, workspace_bytes,
      [](void* context, void* workspace) {
        Queue& queue = *static_cast<Queue*>(context);
        [[maybe_unused]] const ProductRegisters registers;
        for (;;) {
          const int64_t task = __atomic_fetch_add(&queue.next, 1, __ATOMIC_RELAXED);
          if (task >= queue.end) return;
          queue.body(task, workspace);
        }
      },
      &queue);
}

/// Hands out the parts of a workspace. Starting from null, it measures.
struct Arena {
  uintptr_t next;

  template <class T>
  T* take(int64_t count) {
    const uintptr_t start = next;
    next += round_up(count * sizeof(T), 64);
    return reinterpret_cast<T*>(start);
  }
};

}  // namespace orchard
