// Weights that are dropped at random. Whether one is kept depends on the seed and its place alone, so all kernels
// agree on it, whatever their blocks.

/// Philox4x32-10 of Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3 (SC'11).
METAL_FUNC uint4 philox(uint4 counter, uint2 key) {
  constexpr uint first = 0xD2511F53, second = 0xCD9E8D57;
  UNROLL for (int round = 0; round < 10; ++round) {
    counter = uint4(mulhi(second, counter.z) ^ counter.y ^ key.x, second * counter.z,
                    mulhi(first, counter.x) ^ counter.w ^ key.y, first * counter.x);
    key += uint2(0x9E3779B9, 0xBB67AE85);
  }
  return counter;
}

/// What the weights of one head depend on.
struct Dropout {
  uint2 seed;
  uint threshold;
  int batch, head;

  /// Random bits for keys 4n to 4n + 3, among which `key` is.
  METAL_FUNC uint4 bits(int query, int key) const {
    return philox(uint4(uint(key / 4), uint(query), uint(head), uint(batch)), seed);
  }
};

METAL_FUNC Dropout dropout_of(Call call, int batch, int head) {
  return Dropout{uint2(call.seed[0], call.seed[1]), uint(call.params->dropout_threshold), batch, head};
}

/// Two lanes, `distance` apart, hold the rows of a 2x2 matrix, x beside y: gives them its columns.
template <typename T>
METAL_FUNC void transpose(thread T& x, thread T& y, bool is_second, ushort distance) {
  const T received = simd_shuffle_xor(is_second ? x : y, distance);
  if (is_second) {
    x = received;
  } else {
    y = received;
  }
}

/// The bits of the lane's pairs in fragments (i, j) and (i, j + 1). Two lanes share the four keys of one draw, so
/// each draws for one fragment, and they exchange halves.
METAL_FUNC uint4 bits_of_pairs(Dropout dropout, Origin<false> origin, int i, int j) {
  const int lane = origin.column / 2 % 2;
  const uint4 drawn = dropout.bits(origin.query(i, j, 0), origin.key(i, j + lane, 0));
  uint2 low = drawn.xy, high = drawn.zw;
  transpose(low, high, lane == 1, 1);
  return uint4(low, high);
}

/// Transposed, four lanes share the four keys of a draw. They need two queries of two fragments: each draws for
/// one, and they exchange words.
METAL_FUNC uint4 bits_of_pairs(Dropout dropout, Origin<true> origin, int i, int j) {
  const int lane = origin.row % 4;
  const uint4 drawn = dropout.bits(origin.query(i, j + lane / 2, lane % 2), origin.key(i, j, 0));
  uint2 low = drawn.xy, high = drawn.zw;
  transpose(low, high, lane / 2 == 1, 4);
  uint2 even = uint2(low.x, high.x), odd = uint2(low.y, high.y);
  transpose(even, odd, lane % 2 == 1, 2);
  return uint4(even.x, odd.x, even.y, odd.y);
}

/// Which weights of a tile are kept.
template <int rows, int columns, bool transposed>
METAL_FUNC Bits<rows, columns> kept(Dropout dropout, Origin<transposed> origin) {
  Bits<rows, columns> result = {};
  UNROLL for (int i = 0; i < rows / 8; ++i)
    UNROLL for (int j = 0; j < columns / 8; j += 2) {
      const uint4 bits = bits_of_pairs(dropout, origin, i, j);
      UNROLL for (int e = 0; e < 2; ++e) result.add(i, j, e, bits[e] >= dropout.threshold);
      if (j + 1 == columns / 8) continue;
      UNROLL for (int e = 0; e < 2; ++e) result.add(i, j + 1, e, bits[2 + e] >= dropout.threshold);
    }
  return result;
}

/// The weights that are kept, times `factor`; 0 for the others.
template <int rows, int columns>
METAL_FUNC Tile<float, rows, columns> dropped(const thread Tile<float, rows, columns>& weights,
                                              Bits<rows, columns> kept, float factor) {
  Tile<float, rows, columns> result = select(weights, kept, 0);
  mul(result, factor);
  return result;
}
