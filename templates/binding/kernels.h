// Which plug-in answers which call: a table that Python fills on a miss.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "params.h"

namespace orchard {

enum class Pass : uint8_t { forward, backward };
enum class Backend : uint8_t { cpu, metal };
enum class Dtype : uint8_t { float32, float16, bfloat16, float64 };

/// What a call wants, in plain values.
struct Request {
  Backend backend;
  Pass pass;
  Dtype dtype;
  bool causal;
  int64_t head_dim, head_dim_v;
};

/// A loaded plug-in's entry points. Python writes them, so the order is part of the contract.
struct Kernel {
  int64_t (*scratch)(const OrchardCall*);
  int32_t (*run)(const OrchardCall*);
  const char* (*storage)(const OrchardBuffer*);
};

/// The kernel of a request, which is found, built or loaded first if this process has not used it yet.
/// Throws std::runtime_error if that fails.
Kernel kernel_for(const Request& request);

/// Makes sure that `kernel_for` will find all of these; the missing ones are made side by side.
void prepare(std::initializer_list<Request> requests);

}  // namespace orchard
