// Matrices in device memory, as one lane reads and writes them.
//
// The head dim may lie in any order in the fragments, as long as all tiles that meet agree. So it lies such
// that what a lane holds of a row is adjacent in memory and moves in 16 bytes at a time, without a trip through
// threadgroup memory. A row's fragments come in chunks; in a chunk of n fragments that begins at column c,
//   summed over (Operand):  element k of fragment f is column c + n k + f,
//   kept (Tile):            elements 2k and 2k + 1 of fragment f are columns c + 2n k + 2f and the next.

/// A left operand whose columns are summed over.
template <typename T, int rows, int width>
struct Operand {
  vec<T, 2> at[rows / 8][width / 8];
};

/// Consecutive rows of a matrix, and of each the `width` columns that a simdgroup holds.
template <typename Pointer, int width, bool wide>
struct Rows {
  Pointer data;  // row 0; the same in all simdgroups, as far as row 0 is
  long stride;
  int count;     // rows that exist. Others read as the last one: their results are hidden or not stored.
  int first, columns;  // the simdgroup's first column, and how many of its exist. Others read as 0.
  Place place;

  /// Column `start` + `offset` of a row, where `start` is a constant. The host chooses `wide` when rows begin on 16 bytes
  /// and 32 bits hold the offsets inside a block; unsigned, so that a compiler adds nothing to them in 64 bits.
  METAL_FUNC Pointer at(int row, int start, int offset) const {
    if constexpr (wide) return data + (uint(row) * uint(stride) + uint(first + offset)) + start;
    return data + (uint(row) * stride + uint(first + offset)) + start;
  }

  /// The rows from i on, to read: a row that exists even where i does not.
  METAL_FUNC Rows from(int i) const {
    return Rows{data + min(i, count - 1) * stride, stride, count - i, first, columns, place};
  }
  /// To write, which leaves out what does not exist. Nothing here is known from reading, and kept through a loop.
  METAL_FUNC Rows to(int i) const {
    return Rows{data + i * stride, stride, count - i, first, columns, place};
  }
};

/// n adjacent elements.
template <typename T, int n>
struct Chunk {
  T at[n];
};

/// Runs Step on all chunks of a row: whole ones of `most` fragments, then the powers of two that are left.
template <typename Step, int fragments, int most, typename... Arguments>
METAL_FUNC void in_chunks(thread Arguments&... arguments) {
  constexpr int rest = fragments % most;
  UNROLL for (int first = 0; first + most <= fragments; first += most) Step::template run<most>(first, arguments...);
  if constexpr ((rest & 4) != 0) Step::template run<4>(fragments - rest, arguments...);
  if constexpr ((rest & 2) != 0) Step::template run<2>(fragments - rest % 4, arguments...);
  if constexpr ((rest & 1) != 0) Step::template run<1>(fragments - 1, arguments...);
}

/// Fragments in the widest chunk of which a lane holds `each` elements: 16 bytes.
template <typename T, int each>
constexpr int widest() { return 16 / (each * int(sizeof(T))); }

template <typename T, int n>
METAL_FUNC void unpack(thread Chunk<T, n>& chunk, int i, uint word) {
  if constexpr (sizeof(T) == 4) {
    chunk.at[i] = as_type<T>(word);
  } else {
    const vec<T, 2> pair = as_type<vec<T, 2>>(word);
    chunk.at[2 * i] = pair.x;
    chunk.at[2 * i + 1] = pair.y;
  }
}

template <typename T, int n>
METAL_FUNC uint pack(const thread Chunk<T, n>& chunk, int i) {
  if constexpr (sizeof(T) == 4) {
    return as_type<uint>(chunk.at[i]);
  } else {
    return as_type<uint>(pair_of<T>(chunk.at[2 * i], chunk.at[2 * i + 1]));
  }
}

/// Reads row 8 i + r from column `start` + `offset` on, a part of a chunk that ends at column `end`.
template <int n, typename T, int width, bool wide>
METAL_FUNC Chunk<T, n> load_chunk(const thread Rows<const device T*, width, wide>& rows, int i, int r, int start,
                                  int offset, int end) {
  constexpr int bytes = n * int(sizeof(T));
  const device T* source = rows.at(min(8 * i + r, max(rows.count - 1, 0)), start, offset);
  const int column = start + offset;
  Chunk<T, n> chunk;
  if (end > rows.columns) {
    UNROLL for (int e = 0; e < n; ++e) chunk.at[e] = column + e < rows.columns ? source[e] : T(0);
  } else if constexpr (wide && bytes == 16) {
    const uint4 words = *reinterpret_cast<const device uint4*>(source);
    UNROLL for (int w = 0; w < 4; ++w) unpack(chunk, w, words[w]);
  } else if constexpr (wide && bytes == 8) {
    const uint2 words = *reinterpret_cast<const device uint2*>(source);
    UNROLL for (int w = 0; w < 2; ++w) unpack(chunk, w, words[w]);
  } else if constexpr (wide && bytes == 4) {
    unpack(chunk, 0, *reinterpret_cast<const device uint*>(source));
  } else {
    UNROLL for (int e = 0; e < n; ++e) chunk.at[e] = source[e];
  }
  return chunk;
}

template <int n, typename T, int width, bool wide>
METAL_FUNC void store_chunk(const thread Rows<device T*, width, wide>& rows, int i, int r, int start, int offset,
                            int end, const thread Chunk<T, n>& chunk) {
  constexpr int bytes = n * int(sizeof(T));
  device T* target = rows.at(8 * i + r, start, offset);
  const int column = start + offset;
  if (end > rows.columns) {
    UNROLL for (int e = 0; e < n; ++e) {
      if (column + e < rows.columns) target[e] = chunk.at[e];
    }
  } else if constexpr (wide && bytes % 16 == 0) {
    device uint4* parts = reinterpret_cast<device uint4*>(target);
    UNROLL for (int p = 0; p < bytes / 16; ++p)
      parts[p] = uint4(pack(chunk, 4 * p), pack(chunk, 4 * p + 1), pack(chunk, 4 * p + 2), pack(chunk, 4 * p + 3));
  } else if constexpr (wide && bytes == 8) {
    *reinterpret_cast<device uint2*>(target) = uint2(pack(chunk, 0), pack(chunk, 1));
  } else if constexpr (wide && bytes == 4) {
    *reinterpret_cast<device uint*>(target) = pack(chunk, 0);
  } else {
    UNROLL for (int e = 0; e < n; ++e) target[e] = chunk.at[e];
  }
}

struct LoadOperand {
  template <int n, typename T, typename A, int rows, int width, bool wide>
  METAL_FUNC static void run(int first, thread Operand<A, rows, width>& a,
                             const thread Rows<const device T*, width, wide>& source) {
    const int start = 8 * first, offset = n * source.place.column, end = 8 * (first + n);
    UNROLL for (int i = 0; i < rows / 8; ++i) {
      const Chunk<T, n> even = load_chunk<n>(source, i, source.place.row, start, offset, end);
      const Chunk<T, n> odd = load_chunk<n>(source, i, source.place.row, start + n, offset, end);
      UNROLL for (int f = 0; f < n; ++f) a.at[i][first + f] = pair_of<A>(even.at[f], odd.at[f]);
    }
  }
};

template <typename A, int rows, typename T, int width, bool wide>
METAL_FUNC Operand<A, rows, width> load_operand(const thread Rows<const device T*, width, wide>& source) {
  Operand<A, rows, width> a;
  in_chunks<LoadOperand, width / 8, widest<T, 1>()>(a, source);
  return a;
}

struct Store {
  template <int n, typename T, int rows, int width, bool wide>
  METAL_FUNC static void run(int first, const thread Rows<device T*, width, wide>& target,
                             const thread Tile<float, rows, width>& tile) {
    const int start = 8 * first, offset = n * target.place.column, end = 8 * (first + n);
    UNROLL for (int i = 0; i < rows / 8; ++i) {
      Chunk<T, 2 * n> chunk;
      UNROLL for (int f = 0; f < n; ++f) {
        chunk.at[2 * f] = T(tile.at[i][first + f].x);
        chunk.at[2 * f + 1] = T(tile.at[i][first + f].y);
      }
      if (8 * i + target.place.row < target.count) store_chunk(target, i, target.place.row, start, offset, end, chunk);
    }
  }
};

template <typename T, int rows, int width, bool wide>
METAL_FUNC void store(const thread Rows<device T*, width, wide>& target, const thread Tile<float, rows, width>& tile) {
  in_chunks<Store, width / 8, widest<T, 2>()>(target, tile);
}
