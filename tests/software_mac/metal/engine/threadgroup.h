// One threadgroup at work: its lanes are fibres, its simdgroups meet at simd operations, all meet at barriers.
#pragma once

#include <stdint.h>

#include "fibre.h"
#include "program.h"
#include "report.h"

namespace msl {

constexpr unsigned max_lanes = 1024;
constexpr unsigned max_simdgroups = max_lanes / msl_simd_width;

struct uint3 {
  uint32_t x, y, z;
};

enum class place : uint8_t { running, simd_operation, barrier, returned };

// How many barriers with a memory flag a lane has passed: two accesses with a barrier between are ordered.
struct epochs {
  uint32_t threadgroup = 0, simdgroup = 0;
};

struct lane_state : msl_lane {
  uint3 position;          // in the threadgroup
  void* stack;             // saved stack pointer
  int site;                // where it waits
  place at;
  uint8_t phase;           // which of the two slot buffers its next exchange uses
  epochs passed[2];        // of device memory, of threadgroup memory
};

struct simdgroup {
  uint32_t members = 0, runnable = 0, arrived = 0;
  int site = 0;            // of the simd operation that the arrived lanes wait at
  alignas(64) unsigned char slots[2][msl_simd_width][msl_slot_bytes];
};

class threadgroup_run {
 public:
  // Runs entry in every lane. Returns when all lanes have returned, or when one of them has failed.
  void run(void (*entry)(), uint3 extent, uint64_t seed);
  void end_dispatch() { stacks_.release(); }

  void* exchange(const void* value, unsigned size, int site);
  void simdgroup_barrier(unsigned flags, int site);
  void threadgroup_barrier(unsigned flags, int site);

  lane_state& current() { return lanes_[current_]; }
  bool is_stack(const void* address) const { return stacks_.contains(address); }
  bool is_running() const { return running_; }

  // Starts the message of an error of the current lane; fail gives up the threadgroup.
  report& error(int status);
  [[noreturn]] void fail();

  report message;
  const char* kernel_name = "";
  uint3 threadgroup_position = {};
  uint64_t barriers = 0, simd_operations = 0;

 private:
  static void body();
  void set_up(uint3 extent);
  void meet_simdgroup(int site);
  void count_accesses();
  void wait(place at, int site);
  void switch_to(unsigned index);
  unsigned next();
  uint32_t random();
  [[noreturn]] void fail_stalled();
  [[noreturn]] void fail_diverged(const simdgroup& group, int site);
  void add_where(place at, int site);

  lane_state lanes_[max_lanes];
  simdgroup simdgroups_[max_simdgroups];
  fibre_stacks stacks_;
  void (*entry_)() = nullptr;
  void* main_stack_ = nullptr;
  unsigned lane_count_ = 0, live_ = 0, current_ = 0, waiting_at_barrier_ = 0;
  uint32_t runnable_simdgroups_ = 0;
  int barrier_site_ = 0;
  uint64_t random_state_ = 0;
  bool running_ = false;
};

extern threadgroup_run the_threadgroup;

}  // namespace msl
