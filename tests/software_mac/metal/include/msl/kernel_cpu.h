// The entry of a kernel on the CPU, and its records for software_metal.h.
#pragma once

#include "../software_metal.h"

namespace msl {

using void_function = void (*)();
using constant_place = constant void*;

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
