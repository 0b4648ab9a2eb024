// Kernel records: what source.py appends to a source becomes the tables of software_metal.h and one entry per kernel.
#pragma once

namespace msl {

// One parameter of a kernel, as its attribute says.
struct parameter {
  const char* name;
  const char* attribute;
  uint index;      // n of buffer(n) or threadgroup(n), or an enum builtin
  bool optional;   // guarded by a function constant
};

enum class kind : uint { buffer, threadgroup_memory, builtin };

// What the type of a parameter says: kind, properties, and how the value is made from a pointer.
template <class T>
struct argument {
  static_assert(is_integer_v<T> && (__is_same(element_t<T>, uint) || __is_same(element_t<T>, ushort)),
                "a kernel parameter is a device, constant or threadgroup pointer, a reference to one, or a builtin of "
                "uint or ushort");
  static constexpr kind is = kind::builtin;
  static constexpr uint bytes = sizeof(T), alignment = alignof(T);
  static constexpr bool is_constant = false, is_reference = false, is_read_only = true;
};

template <class T>
struct pointee {
  static constexpr uint bytes = sizeof(T), alignment = alignof(T);
};
template <>
struct pointee<void> {
  static constexpr uint bytes = 1, alignment = 1;
};

#define MSL_ARGUMENT(space, kind_of_space, declarator, spaced_constant, reference, read_only)                           \
  template <class T>                                                                                                    \
  struct argument<space T declarator> : pointee<metal::remove_cv_t<T>> {                                                \
    static constexpr kind is = kind::kind_of_space;                                                                     \
    static constexpr bool is_constant = spaced_constant, is_reference = reference, is_read_only = read_only;            \
  };
MSL_ARGUMENT(device, buffer, *, false, false, false)
MSL_ARGUMENT(device, buffer, &, false, true, false)
MSL_ARGUMENT(const device, buffer, *, false, false, true)
MSL_ARGUMENT(const device, buffer, &, false, true, true)
MSL_ARGUMENT(constant, buffer, *, true, false, true)
MSL_ARGUMENT(constant, buffer, &, true, true, true)
MSL_ARGUMENT(threadgroup, threadgroup_memory, *, false, false, false)
MSL_ARGUMENT(threadgroup, threadgroup_memory, &, false, true, false)
#undef MSL_ARGUMENT

// Turns an untyped pointer into the parameter's type.
template <class T, class Pointer>
METAL_FUNC T from_pointer(Pointer pointer) {
  if constexpr (argument<T>::is_reference)
    return *(__remove_reference_t(T)*)pointer;
  else
    return (T)pointer;
}

template <class T>
METAL_FUNC T from_components(const uint* components) {
  T value = T(element_t<T>(0));
  if constexpr (width_v<T> == 1)
    value = T(components[0]);
  else
    for (int i = 0; i < width_v<T>; ++i) value[i] = element_t<T>(components[i]);
  return value;
}

}  // namespace msl

#if defined(__NVPTX__)
#include "kernel_ptx.h"
#else
#include "kernel_cpu.h"
#endif
