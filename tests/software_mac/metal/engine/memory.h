// The memory that a dispatch may touch, and in checked libraries a watch over every access to it.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "program.h"
#include "threadgroup.h"

namespace msl {

enum class space : uint8_t { device, threadgroup, constant };

// One access in 64 bits: threadgroup and lane, and how many barriers the lane had passed.
struct access {
  uint64_t stamp;  // 0: none
  int site;
};

// What is remembered of each byte: the last write, and two reads since, of different simdgroups where there were such.
struct __attribute__((packed, aligned(4))) cell {
  access write, read, other_read;
};

struct range {
  char* begin;
  char* end;
  space in;
  cell* shadow;       // one cell a byte; null when nothing is watched
  char name[96];
};

class memory {
 public:
  // The ranges of one dispatch. The bindings of a launch may overlap; they are then watched as one range.
  void begin_dispatch(int kernel, const software_metal_kernel& record, const software_metal_launch& launch);
  void end_dispatch();
  void begin_threadgroup(uint64_t index);

  void* buffer(unsigned index) const { return buffers_[index]; }
  void* threadgroup_memory(unsigned index) const { return threadgroup_memory_[index]; }

  void check(const void* address, uint64_t size, uint64_t alignment, bool is_write, int site);

  uint64_t bytes_read[2] = {}, bytes_written[2] = {};  // of device and constant memory, of threadgroup memory

 private:
  static constexpr unsigned max_ranges = 1024;
  static constexpr uint64_t gap_bytes = 256;  // between threadgroup allocations, so that an overrun meets no neighbour

  range& add(space in, char* begin, uint64_t bytes);
  void add_buffer(char* begin, uint64_t bytes, const software_metal_argument& argument);
  void watch();
  range* find(const char* address);
  uint64_t place_of(const range& in, const char* address) const;
  void check_byte(range& in, char* address, const access& now, bool is_write);
  void race(const range& in, const char* address, const access& before, const char* earlier, const access& now,
            bool is_write);
  [[noreturn]] void fail_out_of_bounds(const char* address, uint64_t size, bool is_write, int site);

  range ranges_[max_ranges];
  unsigned range_count_ = 0;
  range* last_found_ = nullptr;
  uint64_t threadgroup_ = 0;
  void* buffers_[SOFTWARE_METAL_BUFFERS] = {};
  void* threadgroup_memory_[SOFTWARE_METAL_THREADGROUP_LENGTHS] = {};
  alignas(128) char arena_[SOFTWARE_METAL_THREADGROUP_BYTES + (SOFTWARE_METAL_THREADGROUP_LENGTHS + 1) * gap_bytes];
};

extern memory the_memory;

}  // namespace msl
