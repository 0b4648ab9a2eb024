// Kernel records: what source.py appends to a source becomes the tables of software_metal.h and one entry per kernel.
#pragma once

#if !defined(__NVPTX__)
#include "../software_metal.h"
#endif

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

#if !defined(__NVPTX__)
namespace msl {

template <class T>
METAL_FUNC T fetch(const parameter& p) {
  if constexpr (argument<T>::is == kind::builtin) {
    uint components[3];
    msl_builtin(p.index, components);
    return from_components<T>(components);
  } else {
    return from_pointer<T>(argument<T>::is == kind::buffer ? msl_buffer(p.index) : msl_threadgroup_memory(p.index));
  }
}

template <class Function, const parameter* parameters>
struct entry;
template <class... A, const parameter* parameters>
struct entry<void(A...), parameters> {
  template <void (*function)(A...)>
  static void run() { call<function>(__make_integer_seq<sequence, uint, sizeof...(A)>()); }

  static constexpr uint count = sizeof...(A);
  software_metal_argument records[count + 1];
  constexpr entry() : records() { fill(__make_integer_seq<sequence, uint, sizeof...(A)>()); }

 private:
  template <class, uint...> struct sequence {};

  template <void (*function)(A...), uint... i>
  static void call(sequence<uint, i...>) { function(fetch<A>(parameters[i])...); }

  template <uint... i>
  constexpr void fill(sequence<uint, i...>) {
    ((records[i] = {parameters[i].name, parameters[i].attribute, uint(argument<A>::is),
                    argument<A>::is == kind::builtin ? 0 : parameters[i].index, argument<A>::bytes,
                    argument<A>::alignment, argument<A>::is_constant, argument<A>::is_reference,
                    argument<A>::is_read_only, parameters[i].optional}), ...);
  }
};

}  // namespace msl
#endif
