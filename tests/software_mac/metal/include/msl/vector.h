// Vector constructors: float4(x), float4(a, b.xy, c), float4(half4). source.py turns them into msl::make<float4>(…).
#pragma once

namespace msl {

// half and bfloat convert into each other by way of float only.
template <class To, class From>
METAL_FUNC constexpr To convert(From value) {
  if constexpr ((__is_same(To, half) && __is_same(From, bfloat)) || (__is_same(To, bfloat) && __is_same(From, half)))
    return To(float(value));
  else
    return To(value);
}

template <class Vector, class Part>
METAL_FUNC constexpr void append(Vector& result, int& count, Part part) {
  if constexpr (width_v<Part> == 1)
    result[count++] = convert<element_t<Vector>>(part);
  else
    for (int i = 0; i < width_v<Part>; ++i) result[count++] = convert<element_t<Vector>>(part[i]);
}

template <class T, class... Parts>
METAL_FUNC constexpr T make(Parts... parts) {
  if constexpr (width_v<T> == 1) {
    static_assert(sizeof...(Parts) <= 1, "a scalar is constructed from one value");
    return T(parts...);
  } else {
    constexpr int components = (width_v<Parts> + ... + 0);
    T result = T(element_t<T>(0));
    if constexpr (components == 1) {
      result = T(convert<element_t<T>>(parts)...);
    } else if constexpr (components != 0) {
      static_assert(components == width_v<T>, "the parts of a vector constructor must have the width of the vector");
      int count = 0;
      (append(result, count, parts), ...);
    }
    return result;
  }
}

// Applies a function of scalars to each element of vectors, or to the scalars themselves.
template <class T, class Function, class... More>
METAL_FUNC constexpr T each(Function function, T first, More... more) {
  if constexpr (width_v<T> == 1) {
    return T(function(first, more...));
  } else {
    T result = T(element_t<T>(0));
    for (int i = 0; i < width_v<T>; ++i) result[i] = function(first[i], more[i]...);
    return result;
  }
}

}  // namespace msl

namespace metal {

template <class T, int N>
METAL_FUNC T dot(vec<T, N> a, vec<T, N> b) {
  T sum = a[0] * b[0];
  for (int i = 1; i < N; ++i) sum += a[i] * b[i];
  return sum;
}
// Clang compares vectors into integers that are 0 or -1, where Metal makes bool4. lint.py sees to it that comparisons are
// used as a condition of any, all and select only, where the two agree.
template <class T, int N, class = enable_if_t<is_integral<T>::value>>
METAL_FUNC bool any(vec<T, N> condition) {
  bool result = false;
  for (int i = 0; i < N; ++i) result = result || condition[i];
  return result;
}
template <class T, int N, class = enable_if_t<is_integral<T>::value>>
METAL_FUNC bool all(vec<T, N> condition) {
  bool result = true;
  for (int i = 0; i < N; ++i) result = result && condition[i];
  return result;
}
METAL_FUNC bool any(bool condition) { return condition; }
METAL_FUNC bool all(bool condition) { return condition; }

template <class T>
METAL_FUNC T select(T if_false, T if_true, bool condition) { return condition ? if_true : if_false; }
template <class T, class C, int N, class = enable_if_t<is_integral<C>::value>>
METAL_FUNC vec<T, N> select(vec<T, N> if_false, vec<T, N> if_true, vec<C, N> condition) {
  for (int i = 0; i < N; ++i) if_false[i] = condition[i] ? if_true[i] : if_false[i];
  return if_false;
}

}  // namespace metal
