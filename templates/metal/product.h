// Matrix products whose right operand is read from device memory on the way.

struct MultiplyABt {
  template <int n, typename T, typename A, int rows, int columns, int width, bool wide>
  METAL_FUNC static void run(int first, thread Tile<float, rows, columns>& c, const thread Operand<A, rows, width>& a,
                             const thread Rows<const device T*, width, wide>& b, const thread int& j) {
    const int start = 8 * first, offset = n * b.place.row, end = 8 * (first + n);
    const Chunk<T, n> even = load_chunk<n>(b, j, b.place.column, start, offset, end);
    const Chunk<T, n> odd = load_chunk<n>(b, j, b.place.column + 1, start, offset, end);
    UNROLL for (int f = 0; f < n; ++f) {
      const vec<A, 2> right = pair_of<A>(even.at[f], odd.at[f]);
      UNROLL for (int i = 0; i < rows / 8; ++i) multiply_accumulate(c.at[i][j], a.at[i][first + f], right);
    }
  }
};

/// c += a b^T: the rows of b are the columns of c.
template <typename T, typename A, int rows, int columns, int width, bool wide>
METAL_FUNC void mma_ABt(thread Tile<float, rows, columns>& c, const thread Operand<A, rows, width>& a,
                        const thread Rows<const device T*, width, wide>& b) {
  UNROLL for (int j = 0; j < columns / 8; ++j) in_chunks<MultiplyABt, width / 8, widest<T, 1>()>(c, a, b, j);
}

template <typename B>
struct MultiplyAB {
  template <int n, typename T, typename A, int rows, int columns, int width, bool wide>
  METAL_FUNC static void run(int first, thread Tile<float, rows, width>& c, const thread Tile<A, rows, columns>& a,
                             const thread Rows<const device T*, width, wide>& b, const thread int& k) {
    const int start = 8 * first, offset = n * b.place.column, end = 8 * (first + n);
    const Chunk<T, 2 * n> chunk = load_chunk<2 * n>(b, k, b.place.row, start, offset, end);
    UNROLL for (int f = 0; f < n; ++f) {
      const vec<B, 2> right = pair_of<B>(chunk.at[2 * f], chunk.at[2 * f + 1]);
      UNROLL for (int i = 0; i < rows / 8; ++i) multiply_accumulate(c.at[i][first + f], a.at[i][k], right);
    }
  }
};

/// c += a b: the columns of a are the rows of b, which become register operands of type B.
template <typename B, typename T, typename A, int rows, int columns, int width, bool wide>
METAL_FUNC void mma_AB(thread Tile<float, rows, width>& c, const thread Tile<A, rows, columns>& a,
                       const thread Rows<const device T*, width, wide>& b) {
  UNROLL for (int k = 0; k < columns / 8; ++k) in_chunks<MultiplyAB<B>, width / 8, widest<T, 2>()>(c, a, b, k);
}

struct RowDot {
  template <int n, typename T, int rows, int width, bool wide>
  METAL_FUNC static void run(int first, thread RowVector<rows>& sum, const thread Rows<const device T*, width, wide>& a,
                             const thread Rows<const device T*, width, wide>& b) {
    const int start = 8 * first, offset = n * a.place.column, end = 8 * (first + n);
    UNROLL for (int i = 0; i < rows / 8; ++i) {
      const Chunk<T, 2 * n> x = load_chunk<2 * n>(a, i, a.place.row, start, offset, end);
      const Chunk<T, 2 * n> y = load_chunk<2 * n>(b, i, a.place.row, start, offset, end);
      UNROLL for (int e = 0; e < 2 * n; ++e) sum.at[i] += float(x.at[e]) * float(y.at[e]);
    }
  }
};

/// The inner product of each row of a with the same row of b.
template <int rows, typename T, int width, bool wide>
METAL_FUNC RowVector<rows> row_dot(const thread Rows<const device T*, width, wide>& a,
                                   const thread Rows<const device T*, width, wide>& b) {
  RowVector<rows> parts;
  fill(parts, 0);
  in_chunks<RowDot, width / 8, widest<T, 2>()>(parts, a, b);
  return row_sum(parts);
}
