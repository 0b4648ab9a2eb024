// What the example's host is asked to do, in plain C: its caller may be C++ with PyTorch's headers, or ctypes.
#pragma once

#include <stdint.h>

struct ExampleCall {
  void* command_buffer;  // id<MTLCommandBuffer> that PyTorch is filling
  void* queue;           // dispatch_queue_t that guards it
  const char* source;    // Metal source
  const char* kernel;    // "vector_add" or "matmul"
  void* a;               // id<MTLBuffer>: what the storage pointer of an mps tensor is
  void* b;
  void* out;
  uint32_t rows, columns, depth;
  char* error;  // why a call failed
  int64_t error_capacity;
};

/// Encodes the kernel; returns 0, or 1 with the reason in `error`.
extern "C" int32_t example_run(const ExampleCall* call);
