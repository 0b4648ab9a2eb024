// Which plug-in answers which call: a table that Python fills on a miss.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "params.h"

namespace orchard {

enum class Pass : uint8_t { forward, backward, decode };
enum class Backend : uint8_t { cpu, metal };
enum class Dtype : uint8_t { float32, float16, bfloat16, float64 };

/// What is compiled in beyond plain attention; one bit each. The names are those of orchard_jit/variant.py.
enum Feature : uint16_t {
  causal = 1 << 0,
  window = 1 << 1,
  mask = 1 << 2,
  bias = 1 << 3,
  bias_f32 = 1 << 4,
  bias_grad = 1 << 5,
  sinks = 1 << 6,
  dropout = 1 << 7,
  varlen = 1 << 8,
  lengths = 1 << 9,
};

/// What a call wants, in plain values.
struct Request {
  Backend backend;
  Pass pass;
  Dtype dtype;
  uint16_t features;
  int64_t head_dim, head_dim_v;
  std::string score;
  std::string blocks;  // what orchard_jit.specialize forces, as Python wrote it

  bool operator==(const Request& other) const {
    return packed() == other.packed() && score == other.score && blocks == other.blocks;
  }
  uint64_t packed() const;
  std::string json() const;
};

/// A loaded plug-in's entry points. Python writes them, so the order is part of the contract.
struct Kernel {
  int64_t (*scratch)(const OrchardCall*);
  int32_t (*run)(const OrchardCall*);
  const char* (*storage)(const OrchardBuffer*);
};

/// The kernel of a request, which is found, built or loaded first if this process has not used it yet.
/// If that fails, `refuse` ends the call.
Kernel kernel_for(const Request& request);

/// Makes sure that `kernel_for` will find all of these; the missing ones are made side by side.
void prepare(const std::vector<Request>& requests);

std::string json(const std::vector<Request>& requests);

}  // namespace orchard
