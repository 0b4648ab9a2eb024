// The lanes of a simdgroup on the CPU: each is a fibre of the engine. A simd operation publishes its operand and meets
// the other lanes; what comes back is the operands of all of them.
#pragma once

#include "engine_interface.h"

namespace msl {

// Address space 5 is ordinary memory that the race check does not watch: the slots belong to the engine.
#define MSL_SLOTS __attribute__((address_space(5)))

template <class T>
struct slot {
  T value;
  char padding[msl_slot_bytes - sizeof(T)];
};

template <class T>
METAL_FUNC const MSL_SLOTS slot<T>* exchange(T value) {
  static_assert(sizeof(T) < msl_slot_bytes, "too wide for a simd operation");
  return (const MSL_SLOTS slot<T>*)msl_exchange(&value, sizeof(T), msl_here);
}

METAL_FUNC uint lane_id() { return msl_current->lane; }
METAL_FUNC uint lane_count() { return msl_current->lanes; }

template <class T>
METAL_FUNC T from_lane(T value, uint lane) {
  const MSL_SLOTS slot<T>* slots = exchange(value);
  if (lane >= msl_simd_width) msl_undefined("a simd shuffle from a lane beyond 31", msl_here);
  return slots[lane].value;
}

template <class T>
METAL_FUNC T from_lane_xor(T value, uint mask) {
  return from_lane(value, lane_id() ^ mask);
}

// A tree: lanes 16 apart first, then 8, 4, 2 and 1. Every lane computes the same bits.
template <class T, class Operation>
METAL_FUNC T fold(T value, Operation operation) {
  const MSL_SLOTS slot<T>* slots = exchange(value);
  T partial[msl_simd_width];
  const uint count = lane_count();
  for (uint i = 0; i < count; ++i) partial[i] = slots[i].value;
  for (uint distance = 16; distance > 0; distance /= 2)
    for (uint i = 0; i < distance && i + distance < count; ++i)
      partial[i] = operation(partial[i], partial[i + distance]);
  return partial[0];
}

template <class T, class Operation>
METAL_FUNC T fold_before(T value, uint end, T start, Operation operation) {
  const MSL_SLOTS slot<T>* slots = exchange(value);
  for (uint i = 0; i < end; ++i) start = operation(start, slots[i].value);
  return start;
}

METAL_FUNC void meet_threadgroup(uint flags) { msl_threadgroup_barrier(flags, msl_here); }
METAL_FUNC void meet_simdgroup(uint flags) { msl_simdgroup_barrier(flags, msl_here); }

}  // namespace msl
