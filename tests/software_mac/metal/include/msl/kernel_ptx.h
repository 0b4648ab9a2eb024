// The entry of a kernel on an NVIDIA GPU. Its parameters are one pointer for each buffer, in the order of their indices, and
// one byte offset into the dynamic shared memory for each threadgroup argument.
#pragma once

extern threadgroup __attribute__((aligned(128))) char msl_dynamic_memory[];

namespace msl {

struct launch {
  device char* buffers[31];
  uint threadgroup_offsets[31];
};

METAL_FUNC uint3 triple(uint x, uint y, uint z) {
  uint3 result;
  result[0] = x, result[1] = y, result[2] = z;
  return result;
}

METAL_FUNC uint3 size_of_threadgroup() {
  return triple(__nvvm_read_ptx_sreg_ntid_x(), __nvvm_read_ptx_sreg_ntid_y(), __nvvm_read_ptx_sreg_ntid_z());
}
METAL_FUNC uint3 size_of_grid() {
  return triple(__nvvm_read_ptx_sreg_nctaid_x(), __nvvm_read_ptx_sreg_nctaid_y(), __nvvm_read_ptx_sreg_nctaid_z());
}
METAL_FUNC uint3 place_of_threadgroup() {
  return triple(__nvvm_read_ptx_sreg_ctaid_x(), __nvvm_read_ptx_sreg_ctaid_y(), __nvvm_read_ptx_sreg_ctaid_z());
}

// Metal's index in the threadgroup: the hardware's, with the lanes renumbered.
METAL_FUNC uint index_in_threadgroup() {
  const uint x = __nvvm_read_ptx_sreg_tid_x(), y = __nvvm_read_ptx_sreg_tid_y(), z = __nvvm_read_ptx_sreg_tid_z();
  const uint hardware = x + __nvvm_read_ptx_sreg_ntid_x() * (y + __nvvm_read_ptx_sreg_ntid_y() * z);
  return (hardware & ~31u) | metal_lane(hardware & 31u);
}

// Read from lane 0, so that the compiler knows that all lanes agree on it, and that branches on it keep them together.
METAL_FUNC uint index_of_simdgroup() { return from_lane(index_in_threadgroup() / 32, 0); }

METAL_FUNC uint3 place_in_threadgroup() {
  const uint index = index_in_threadgroup();
  const uint3 size = size_of_threadgroup();
  return triple(index % size.x, index / size.x % size.y, index / (size.x * size.y));
}

METAL_FUNC uint simdgroups() {
  const uint3 size = size_of_threadgroup();
  return (size.x * size.y * size.z + 31) / 32;
}

METAL_FUNC uint3 whole(uint x) { return triple(x, 1, 1); }

METAL_FUNC uint3 value_of(builtin which) {
  switch (which) {
    case builtin::thread_position_in_grid: return place_of_threadgroup() * size_of_threadgroup() + place_in_threadgroup();
    case builtin::thread_position_in_threadgroup: return place_in_threadgroup();
    case builtin::thread_index_in_threadgroup: return whole(index_in_threadgroup());
    case builtin::thread_index_in_simdgroup: return whole(lane_id());
    case builtin::simdgroup_index_in_threadgroup: return whole(index_of_simdgroup());
    case builtin::threadgroup_position_in_grid: return place_of_threadgroup();
    case builtin::threadgroups_per_grid: return size_of_grid();
    case builtin::threads_per_grid: return size_of_grid() * size_of_threadgroup();
    case builtin::threads_per_threadgroup:
    case builtin::dispatch_threads_per_threadgroup: return size_of_threadgroup();
    case builtin::threads_per_simdgroup:
    case builtin::thread_execution_width: return whole(32);
    case builtin::simdgroups_per_threadgroup:
    case builtin::dispatch_simdgroups_per_threadgroup: return whole(simdgroups());
    case builtin::quadgroup_index_in_threadgroup: return whole(index_in_threadgroup() / 4);
    case builtin::thread_index_in_quadgroup: return whole(index_in_threadgroup() % 4);
  }
}

template <class T>
METAL_FUNC T fetch(const parameter& p, const launch& given) {
  if constexpr (argument<T>::is == kind::builtin) {
    const uint3 value = value_of(builtin(p.index));
    const uint components[3] = {value.x, value.y, value.z};
    return from_components<T>(components);
  } else if constexpr (argument<T>::is == kind::buffer) {
    return from_pointer<T>(given.buffers[p.index]);
  } else {
    return from_pointer<T>(msl_dynamic_memory + given.threadgroup_offsets[p.index]);
  }
}

template <class Function, const parameter* parameters>
struct entry;
template <class... A, const parameter* parameters>
struct entry<void(A...), parameters> {
  template <void (*function)(A...)>
  METAL_FUNC static void run(const launch& given) {
    call<function>(given, __make_integer_seq<sequence, uint, sizeof...(A)>());
  }

 private:
  template <class, uint...> struct sequence {};
  template <void (*function)(A...), uint... i>
  METAL_FUNC static void call(const launch& given, sequence<uint, i...>) { function(fetch<A>(parameters[i], given)...); }
};

}  // namespace msl
