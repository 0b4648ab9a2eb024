// What a dispatch asks of memory, counted as a GPU would serve it: simdgroup by simdgroup.
#pragma once

#include <stdint.h>

#include "threadgroup.h"

namespace msl {

// Lanes of a simdgroup that access memory at the same place of the program, one after the other here, make one request
// there. What each lane did is kept until the simdgroup meets, and then put together.
class traffic {
 public:
  void begin_dispatch(software_metal_traffic* counts);
  void end_dispatch();
  bool is_counted() const { return counts_ != nullptr; }

  // By the current lane. A place stands for an address.
  void access(uint64_t place, uint64_t size, bool is_write, bool of_threadgroup, int site);
  // The lanes of a simdgroup are as far as each other, or have returned.
  void meet(unsigned simdgroup);
  void count_product() { counts_->matrix_products += 1; }
  void count_exponential() { counts_->exponentials += 1; }

 private:
  struct entry {
    uint64_t place;
    uint32_t site;
    uint8_t size, is_write, of_threadgroup;
  };
  struct log {
    entry* entries;
    uint32_t used;
  };

  static constexpr uint32_t capacity = 1 << 14;  // accesses of a lane between two meetings
  static constexpr uint64_t mapping_bytes() { return max_lanes * (sizeof(log) + uint64_t(capacity) * sizeof(entry)); }

  void serve(const entry* const* same, unsigned lanes);

  software_metal_traffic* counts_ = nullptr;
  log* logs_ = nullptr;  // of each lane of the threadgroup
  entry* memory_ = nullptr;
};

extern traffic the_traffic;

}  // namespace msl
