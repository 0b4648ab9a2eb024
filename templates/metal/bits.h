// A yes or no for each element of a tile.

/// Those of the elements that the lane holds.
template <int rows, int columns>
struct Bits {
  static constexpr constant int count = rows * columns / 32;
  uint words[(count + 31) / 32];

  METAL_FUNC static int place(int i, int j, int e) { return (i * (columns / 8) + j) * 2 + e; }
  METAL_FUNC bool at(int i, int j, int e) const { return (words[place(i, j, e) / 32] >> place(i, j, e) % 32 & 1) != 0; }
  METAL_FUNC void add(int i, int j, int e, bool value) {
    words[place(i, j, e) / 32] |= uint(value) << place(i, j, e) % 32;
  }
};

/// Whether a bit of any lane is set: the same answer in all lanes.
template <int rows, int columns>
METAL_FUNC bool any(Bits<rows, columns> bits) {
  uint all = 0;
  UNROLL for (int w = 0; w < (bits.count + 31) / 32; ++w) all |= bits.words[w];
  return simd_any(all != 0);
}

/// The tile where bits are set, elsewhere `other`.
template <int rows, int columns>
METAL_FUNC Tile<float, rows, columns> select(const thread Tile<float, rows, columns>& tile, Bits<rows, columns> bits,
                                             float other) {
  Tile<float, rows, columns> result;
  UNROLL for (int i = 0; i < rows / 8; ++i)
    UNROLL for (int j = 0; j < columns / 8; ++j)
      UNROLL for (int e = 0; e < 2; ++e) result.at[i][j][e] = bits.at(i, j, e) ? tile.at[i][j][e] : other;
  return result;
}
