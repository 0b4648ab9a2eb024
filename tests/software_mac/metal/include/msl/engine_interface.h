// What compiled kernels and the engine share. Included by both, so it depends on nothing but the names of the types.
#pragma once

enum {
  msl_simd_width = 32,
  msl_slot_bytes = 64,
  msl_here = -1,  // stands for the number of a source position; the compiler puts the number in (sites.py)
};

struct msl_lane {
  unsigned index;       // in the threadgroup
  unsigned simdgroup;   // in the threadgroup
  unsigned lane;        // in the simdgroup
  unsigned lanes;       // of the simdgroup: 32, or less in the last one
};

// The optimiser may neither move these calls between branches nor make one of two: each keeps its source position.
#define MSL_ENGINE extern "C" __attribute__((convergent, nomerge))

extern "C" __attribute__((visibility("hidden"))) struct msl_lane* msl_current;

// Publishes size bytes; returns the first of 32 slots of msl_slot_bytes, valid until the lane's next but one exchange.
MSL_ENGINE void* msl_exchange(const void* value, unsigned size, int site);
MSL_ENGINE void msl_threadgroup_barrier(unsigned flags, int site);
MSL_ENGINE void msl_simdgroup_barrier(unsigned flags, int site);
MSL_ENGINE void msl_undefined(const char* what, int site);
MSL_ENGINE void msl_need_full_simdgroup(const char* what, int site);

// For the counters of traffic.h. The first is called by every lane of a simdgroup.
extern "C" void msl_count_product();
extern "C" void msl_count_exponential();

// Writes the three components of a builtin (enum msl::builtin) for the current lane.
MSL_ENGINE void msl_builtin(unsigned which, unsigned components[3]);
// The pointer that the launch gave to buffer(index) or threadgroup(index).
MSL_ENGINE void* msl_buffer(unsigned index);
MSL_ENGINE void* msl_threadgroup_memory(unsigned index);
