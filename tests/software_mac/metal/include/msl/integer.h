// Functions of integers.
#pragma once

namespace metal {

METAL_FUNC uint popcount(uint x) { return uint(__builtin_popcount(x)); }
METAL_FUNC ulong popcount(ulong x) { return ulong(__builtin_popcountl(x)); }
METAL_FUNC uint clz(uint x) { return x ? uint(__builtin_clz(x)) : 32u; }
METAL_FUNC uint ctz(uint x) { return x ? uint(__builtin_ctz(x)) : 32u; }
METAL_FUNC uint rotate(uint x, uint bits) { return x << (bits & 31u) | x >> (-bits & 31u); }
METAL_FUNC uint reverse_bits(uint x) { return __builtin_bitreverse32(x); }

METAL_FUNC uint mulhi(uint x, uint y) { return uint((ulong(x) * y) >> 32); }
METAL_FUNC int mulhi(int x, int y) { return int((long(x) * y) >> 32); }
METAL_FUNC uint mul24(uint x, uint y) { return (x & 0xffffffu) * (y & 0xffffffu); }

template <class T, class = msl::if_integer<T>>
METAL_FUNC T extract_bits(T x, uint offset, uint bits) {
  if (bits == 0) return T(0);
  const uint above = 8 * sizeof(T) - offset - bits;
  return T(T(x << above) >> (offset + above));
}

}  // namespace metal
