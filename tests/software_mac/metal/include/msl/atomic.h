// 32-bit atomics with relaxed order. The engine switches lanes only at barriers and simd operations, so plain accesses
// through an address space that the race check does not watch are atomic; on a GPU they are real ones.
#pragma once

namespace metal {

enum memory_order { memory_order_relaxed };

template <class T>
struct atomic {
  static_assert(__is_same(T, int) || __is_same(T, uint) || __is_same(T, float) || __is_same(T, bool),
                "Metal has atomics of 32 bits (64-bit atomics only as min and max of the newest GPUs)");
  T value;
};
using atomic_int = atomic<int>;
using atomic_uint = atomic<uint>;
using atomic_float = atomic<float>;

}  // namespace metal

namespace msl {

#if defined(__NVPTX__)
template <class T> METAL_FUNC T atomic_add(T* place, T value) { return __atomic_fetch_add(place, value, __ATOMIC_RELAXED); }
template <class T> METAL_FUNC T atomic_load(T* place) { return __atomic_load_n(place, __ATOMIC_RELAXED); }
template <class T> METAL_FUNC void atomic_store(T* place, T value) { __atomic_store_n(place, value, __ATOMIC_RELAXED); }
#define MSL_ATOMIC_PLACE(T, object) ((T*)&(object)->value)
#else
#define MSL_UNWATCHED __attribute__((address_space(5)))
template <class T> METAL_FUNC T atomic_load(MSL_UNWATCHED T* place) { return *place; }
template <class T> METAL_FUNC void atomic_store(MSL_UNWATCHED T* place, T value) { *place = value; }
template <class T>
METAL_FUNC T atomic_add(MSL_UNWATCHED T* place, T value) {
  const T before = *place;
  *place = before + value;
  return before;
}
#define MSL_ATOMIC_PLACE(T, object) ((MSL_UNWATCHED T*)&(object)->value)
#endif

}  // namespace msl

#define MSL_ATOMIC(space)                                                                        \
  template <class T>                                                                             \
  METAL_FUNC T atomic_load_explicit(const volatile space atomic<T>* object, memory_order) {      \
    return msl::atomic_load(MSL_ATOMIC_PLACE(T, object));                                        \
  }                                                                                              \
  template <class T>                                                                             \
  METAL_FUNC void atomic_store_explicit(volatile space atomic<T>* object, T value, memory_order) { \
    msl::atomic_store(MSL_ATOMIC_PLACE(T, object), value);                                       \
  }                                                                                              \
  template <class T>                                                                             \
  METAL_FUNC T atomic_fetch_add_explicit(volatile space atomic<T>* object, T value, memory_order) { \
    return msl::atomic_add(MSL_ATOMIC_PLACE(T, object), value);                                  \
  }

namespace metal {
MSL_ATOMIC(device)
MSL_ATOMIC(threadgroup)
}  // namespace metal

#undef MSL_ATOMIC
