// Type traits. Those without the prefix metal:: in the Metal specification are in namespace msl.
#pragma once

namespace metal {

template <class T, T v>
struct integral_constant {
  static constexpr constant T value = v;
  using value_type = T;
  using type = integral_constant;
  METAL_FUNC constexpr operator T() const { return v; }
  METAL_FUNC constexpr T operator()() const { return v; }
};
template <bool v>
using bool_constant = integral_constant<bool, v>;
using true_type = bool_constant<true>;
using false_type = bool_constant<false>;

template <bool condition, class T = void>
struct enable_if {};
template <class T>
struct enable_if<true, T> { using type = T; };
template <bool condition, class T = void>
using enable_if_t = typename enable_if<condition, T>::type;

template <bool condition, class T, class F>
struct conditional { using type = T; };
template <class T, class F>
struct conditional<false, T, F> { using type = F; };
template <bool condition, class T, class F>
using conditional_t = typename conditional<condition, T, F>::type;

template <class T> struct remove_const { using type = T; };
template <class T> struct remove_const<const T> { using type = T; };
template <class T> using remove_const_t = typename remove_const<T>::type;
template <class T> using remove_cv_t = __remove_cv(T);
template <class T> struct remove_cv { using type = remove_cv_t<T>; };
template <class T> using remove_reference_t = __remove_reference_t(T);
template <class T> struct remove_reference { using type = remove_reference_t<T>; };

template <class T> struct remove_addrspace { using type = T; };
template <class T> struct remove_addrspace<device T> { using type = T; };
template <class T> struct remove_addrspace<const device T> { using type = const T; };
template <class T> struct remove_addrspace<constant T> { using type = const T; };
template <class T> struct remove_addrspace<threadgroup T> { using type = T; };
template <class T> struct remove_addrspace<const threadgroup T> { using type = const T; };
template <class T> using remove_addrspace_t = typename remove_addrspace<T>::type;

template <class A, class B>
struct is_same : bool_constant<__is_same(A, B)> {};
template <class A, class B>
struct is_convertible : bool_constant<__is_convertible_to(A, B)> {};
template <class T>
struct is_void : bool_constant<__is_void(T)> {};
template <class T>
struct is_integral : bool_constant<__is_integral(T)> {};
template <class T>
struct is_floating_point
    : bool_constant<__is_floating_point(T) || __is_same(__remove_cv(T), half) || __is_same(__remove_cv(T), bfloat)> {};
template <class T>
struct is_arithmetic : bool_constant<is_integral<T>::value || is_floating_point<T>::value> {};
template <class T>
struct is_scalar : is_arithmetic<T> {};
template <class T>
struct is_signed : bool_constant<__is_signed(T) || is_floating_point<T>::value> {};
template <class T>
struct is_unsigned : bool_constant<__is_unsigned(T)> {};

template <class A, class B> constexpr constant bool is_same_v = is_same<A, B>::value;
template <class A, class B> constexpr constant bool is_convertible_v = is_convertible<A, B>::value;
template <class T> constexpr constant bool is_void_v = is_void<T>::value;
template <class T> constexpr constant bool is_integral_v = is_integral<T>::value;
template <class T> constexpr constant bool is_floating_point_v = is_floating_point<T>::value;
template <class T> constexpr constant bool is_arithmetic_v = is_arithmetic<T>::value;
template <class T> constexpr constant bool is_scalar_v = is_scalar<T>::value;
template <class T> constexpr constant bool is_signed_v = is_signed<T>::value;
template <class T> constexpr constant bool is_unsigned_v = is_unsigned<T>::value;

template <class T> T&& declval();

}  // namespace metal

namespace msl {

// The element type and the width of a scalar or a vector.
template <class T>
struct shape { using element = T; static constexpr constant int width = 1; };
template <class T>
struct shape<T __attribute__((ext_vector_type(2)))> { using element = T; static constexpr constant int width = 2; };
template <class T>
struct shape<T __attribute__((ext_vector_type(3)))> { using element = T; static constexpr constant int width = 3; };
template <class T>
struct shape<T __attribute__((ext_vector_type(4)))> { using element = T; static constexpr constant int width = 4; };

template <class T> using element_t = typename shape<T>::element;
template <class T> constexpr constant int width_v = shape<T>::width;

// Metal's library of mathematics covers float and half, scalar or vector; not bfloat.
template <class T>
constexpr constant bool is_real_v = __is_same(element_t<T>, float) || __is_same(element_t<T>, half);
template <class T>
constexpr constant bool is_integer_v = __is_integral(element_t<T>) && !__is_same(element_t<T>, bool);

template <class T> using if_real = metal::enable_if_t<is_real_v<T>>;
template <class T> using if_integer = metal::enable_if_t<is_integer_v<T>>;
template <class T>
using if_number = metal::enable_if_t<is_real_v<T> || is_integer_v<T> || __is_same(element_t<T>, bfloat)>;

}  // namespace msl

template <class To, class From>
METAL_FUNC To as_type(From from) {
  static_assert(sizeof(To) == sizeof(From), "as_type between types of different size");
  return __builtin_bit_cast(To, from);
}
