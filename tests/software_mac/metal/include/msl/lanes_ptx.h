// The lanes of a simdgroup on an NVIDIA GPU: a warp is a simdgroup.
//
// With MSL_TENSOR the lanes are renumbered: Apple's lane l4 l3 l2 l1 l0 (bits) runs as the hardware's l4 l2 l1 l3 l0. Then
// Apple's layout of an 8x8 matrix is that of an accumulator of mma.m16n8k8, and masks of shuffle_xor permute alike.
#pragma once

namespace msl {

#if defined(MSL_TENSOR)
METAL_FUNC uint hardware_lane(uint lane) {
  return (lane & 16) | (lane & 4) << 1 | (lane & 2) << 1 | (lane & 8) >> 2 | (lane & 1);
}
METAL_FUNC uint metal_lane(uint hardware) {
  return (hardware & 16) | (hardware & 8) >> 1 | (hardware & 4) >> 1 | (hardware & 2) << 2 | (hardware & 1);
}
#else
METAL_FUNC uint hardware_lane(uint lane) { return lane; }
METAL_FUNC uint metal_lane(uint hardware) { return hardware; }
#endif

METAL_FUNC uint lane_id() { return metal_lane(__nvvm_read_ptx_sreg_laneid()); }
METAL_FUNC uint lane_count() { return 32; }

// Applies a function of 32-bit words to a value of any type.
template <class T, class Function>
METAL_FUNC T each_word(T value, Function function) {
  constexpr int words = (sizeof(T) + 3) / 4;
  int in[words] = {};
  __builtin_memcpy(in, &value, sizeof(T));
  for (int i = 0; i < words; ++i) in[i] = function(in[i]);
  __builtin_memcpy(&value, in, sizeof(T));
  return value;
}

template <class T>
METAL_FUNC T from_lane(T value, uint lane) {
  return each_word(value, [=](int word) { return __nvvm_shfl_sync_idx_i32(-1, word, hardware_lane(lane), 31); });
}
template <class T>
METAL_FUNC T from_lane_xor(T value, uint mask) {
  return each_word(value, [=](int word) { return __nvvm_shfl_sync_bfly_i32(-1, word, hardware_lane(mask), 31); });
}

// The tree of lanes_cpu.h: the operand of the lower lane is the left one.
template <class T, class Operation>
METAL_FUNC T fold(T value, Operation operation) {
  for (uint distance = 16; distance > 0; distance /= 2) {
    const T other = from_lane_xor(value, distance);
    value = lane_id() & distance ? operation(other, value) : operation(value, other);
  }
  return value;
}

template <class T, class Operation>
METAL_FUNC T fold_before(T value, uint end, T start, Operation operation) {
  for (uint i = 0; i < 32; ++i) {
    const T other = from_lane(value, i);
    if (i < end) start = operation(start, other);
  }
  return start;
}

METAL_FUNC void meet_threadgroup(uint) { __nvvm_bar_sync(0); }
METAL_FUNC void meet_simdgroup(uint) { __nvvm_bar_warp_sync(-1); }

}  // namespace msl
