// What printed score expressions are made of.

namespace expression {

using Real = float;
using Integer = int;

// Integers wrap around: were an overflow undefined, the compiler might drop the clamping of an index.

METAL_FUNC int add(int a, int b) { return int(uint(a) + uint(b)); }
METAL_FUNC int subtract(int a, int b) { return int(uint(a) - uint(b)); }
METAL_FUNC int multiply(int a, int b) { return int(uint(a) * uint(b)); }
METAL_FUNC int negate(int x) { return int(0u - uint(x)); }

/// Rounds down; 0 where b is 0.
METAL_FUNC int floor_divide(int a, int b) {
  if (b == 0) return 0;
  if (b == -1) return negate(a);  // the quotient of the smallest integer does not exist
  const int whole = a / b;
  return a % b != 0 && (a ^ b) < 0 ? whole - 1 : whole;
}

/// Has the sign of b; a where b is 0.
METAL_FUNC int modulo(int a, int b) { return subtract(a, multiply(floor_divide(a, b), b)); }

METAL_FUNC float real(int x) { return float(x); }

template <typename T>
METAL_FUNC bool less(T a, T b) {
  return a < b;
}

template <typename T>
METAL_FUNC bool less_equal(T a, T b) {
  return a <= b;
}

template <typename T>
METAL_FUNC bool equal(T a, T b) {
  return a == b;
}

template <typename T>
METAL_FUNC bool not_equal(T a, T b) {
  return a != b;
}

METAL_FUNC bool conjunction(bool a, bool b) { return a && b; }
METAL_FUNC bool disjunction(bool a, bool b) { return a || b; }
METAL_FUNC bool negation(bool x) { return !x; }

template <typename T>
METAL_FUNC T select(bool condition, T a, T b) {
  return condition ? a : b;
}

/// NaN where either is.
template <typename T>
METAL_FUNC T min(T a, T b) {
  return a < b || a != a ? a : b;
}

/// NaN where either is.
template <typename T>
METAL_FUNC T max(T a, T b) {
  return a > b || a != a ? a : b;
}

METAL_FUNC float abs(float x) { return metal::fabs(x); }
METAL_FUNC int abs(int x) { return x < 0 ? negate(x) : x; }

METAL_FUNC float product(float a, float b) { return a * b; }
METAL_FUNC int product(int a, int b) { return multiply(a, b); }

/// x to a positive exponent.
template <int exponent, typename T>
METAL_FUNC T power(T x) {
  T result = T(1), square = x;
  UNROLL for (int rest = exponent; rest > 0; rest /= 2) {
    if (rest % 2) result = product(result, square);
    square = product(square, square);
  }
  return result;
}

METAL_FUNC float exp(float x) { return precise::exp(x); }
METAL_FUNC float exp2(float x) { return precise::exp2(x); }
METAL_FUNC float log(float x) { return precise::log(x); }
METAL_FUNC float log2(float x) { return precise::log2(x); }
METAL_FUNC float sqrt(float x) { return precise::sqrt(x); }
METAL_FUNC float tanh(float x) { return precise::tanh(x); }
METAL_FUNC float sigmoid(float x) { return 1.0f / (1.0f + precise::exp(-x)); }
METAL_FUNC float sin(float x) { return precise::sin(x); }
METAL_FUNC float cos(float x) { return precise::cos(x); }
METAL_FUNC float floor(float x) { return metal::floor(x); }

METAL_FUNC float value(float x) { return x; }
METAL_FUNC float value(half x) { return float(x); }
METAL_FUNC float value(bfloat x) { return float(x); }
METAL_FUNC bool value(uchar x) { return x != 0; }  // how a bool lies in memory
METAL_FUNC int value(int x) { return x; }
/// What does not fit into an int becomes the largest or the smallest.
METAL_FUNC int value(long x) { return int(metal::clamp(x, long(INT_MIN), long(INT_MAX))); }

template <typename T>
struct Array {
  const device T* data;
  constant OrchardArray* layout;
};

/// An index outside of the array becomes the nearest one inside.
METAL_FUNC long offset(constant OrchardArray* layout, int dimension, int index) {
  return metal::clamp(long(index), long(0), layout->sizes[dimension] - 1) * layout->strides[dimension];
}

template <typename T>
METAL_FUNC auto element(Array<T> array, int i) {
  return value(array.data[offset(array.layout, 0, i)]);
}

template <typename T>
METAL_FUNC auto element(Array<T> array, int i, int j) {
  return value(array.data[offset(array.layout, 0, i) + offset(array.layout, 1, j)]);
}

template <typename T>
METAL_FUNC auto element(Array<T> array, int i, int j, int k) {
  return value(array.data[offset(array.layout, 0, i) + offset(array.layout, 1, j) + offset(array.layout, 2, k)]);
}

template <typename T>
METAL_FUNC auto element(Array<T> array, int i, int j, int k, int l) {
  return value(array.data[offset(array.layout, 0, i) + offset(array.layout, 1, j) + offset(array.layout, 2, k) +
                          offset(array.layout, 3, l)]);
}

}  // namespace expression
