// Tiles: matrices in the registers of a simdgroup, made of 8x8 fragments.

#define UNROLL _Pragma("clang loop unroll(full)")

/// Where a lane's two elements lie in every fragment: (row, column) and (row, column + 1). The four lanes
/// of a row differ in bits 0 and 3. Apple does not document this layout; MLX, PyTorch and
/// metal-flash-attention all rest on it.
struct Place {
  int row, column;
};

METAL_FUNC Place place_of(uint lane) {
  const int quad = int(lane) / 4;
  return Place{(quad & 4) + int(lane) / 2 % 4, (quad & 2) * 2 + int(lane) % 2 * 2};
}

/// rows x columns, multiples of 8. Each fragment is the lane's pair of elements.
template <typename T, int rows, int columns>
struct Tile {
  static_assert(rows % 8 == 0 && columns % 8 == 0, "fragments are 8x8");
  vec<T, 2> at[rows / 8][columns / 8];
};

/// A value for each row; the four lanes of a row hold the same one, or parts of a sum.
template <int rows>
struct RowVector {
  float at[rows / 8];
};

/// A value for each column; a lane holds those of its pair.
template <int columns>
struct ColumnVector {
  float2 at[columns / 8];
};

template <typename To, typename From>
METAL_FUNC vec<To, 2> pair_of(From x, From y) {
  vec<To, 2> pair;
  pair.x = To(x);
  pair.y = To(y);
  return pair;
}

/// c += a b
template <typename A, typename B>
METAL_FUNC void multiply_accumulate(thread float2& c, vec<A, 2> a, vec<B, 2> b) {
  simdgroup_matrix<A, 8, 8> left;
  simdgroup_matrix<B, 8, 8> right;
  simdgroup_matrix<float, 8, 8> sum;
  reinterpret_cast<thread vec<A, 2>&>(left.thread_elements()) = a;
  reinterpret_cast<thread vec<B, 2>&>(right.thread_elements()) = b;
  reinterpret_cast<thread float2&>(sum.thread_elements()) = c;
  simdgroup_multiply_accumulate(sum, left, right, sum);
  c = reinterpret_cast<thread float2&>(sum.thread_elements());
}

template <int rows, int columns>
METAL_FUNC void fill(thread Tile<float, rows, columns>& tile, float value) {
  UNROLL for (int i = 0; i < rows / 8; ++i)
    UNROLL for (int j = 0; j < columns / 8; ++j) tile.at[i][j] = float2(value);
}

template <int rows>
METAL_FUNC void fill(thread RowVector<rows>& vector, float value) {
  UNROLL for (int i = 0; i < rows / 8; ++i) vector.at[i] = value;
}

template <typename To, int rows, int columns>
METAL_FUNC Tile<To, rows, columns> cast(const thread Tile<float, rows, columns>& tile) {
  Tile<To, rows, columns> result;
  UNROLL for (int i = 0; i < rows / 8; ++i)
    UNROLL for (int j = 0; j < columns / 8; ++j)
      result.at[i][j] = pair_of<To>(tile.at[i][j].x, tile.at[i][j].y);
  return result;
}

template <int rows, int columns>
METAL_FUNC void mul(thread Tile<float, rows, columns>& tile, float factor) {
  UNROLL for (int i = 0; i < rows / 8; ++i)
    UNROLL for (int j = 0; j < columns / 8; ++j) tile.at[i][j] *= factor;
}

template <int rows, int columns>
METAL_FUNC void mul(thread Tile<float, rows, columns>& tile, const thread Tile<float, rows, columns>& factor) {
  UNROLL for (int i = 0; i < rows / 8; ++i)
    UNROLL for (int j = 0; j < columns / 8; ++j) tile.at[i][j] *= factor.at[i][j];
}

template <int rows, int columns>
METAL_FUNC void mul_row(thread Tile<float, rows, columns>& tile, const thread RowVector<rows>& factor) {
  UNROLL for (int i = 0; i < rows / 8; ++i)
    UNROLL for (int j = 0; j < columns / 8; ++j) tile.at[i][j] *= factor.at[i];
}

template <int rows, int columns>
METAL_FUNC void sub_row(thread Tile<float, rows, columns>& tile, const thread RowVector<rows>& subtrahend) {
  UNROLL for (int i = 0; i < rows / 8; ++i)
    UNROLL for (int j = 0; j < columns / 8; ++j) tile.at[i][j] -= subtrahend.at[i];
}

template <int rows, int columns>
METAL_FUNC void sub_column(thread Tile<float, rows, columns>& tile, const thread ColumnVector<columns>& subtrahend) {
  UNROLL for (int i = 0; i < rows / 8; ++i)
    UNROLL for (int j = 0; j < columns / 8; ++j) tile.at[i][j] -= subtrahend.at[j];
}

template <int rows, int columns>
METAL_FUNC void exp2(thread Tile<float, rows, columns>& tile) {
  UNROLL for (int i = 0; i < rows / 8; ++i)
    UNROLL for (int j = 0; j < columns / 8; ++j) tile.at[i][j] = fast::exp2(tile.at[i][j]);
}

template <int rows, int columns>
METAL_FUNC void add(thread Tile<float, rows, columns>& tile, const thread Tile<float, rows, columns>& summand) {
  UNROLL for (int i = 0; i < rows / 8; ++i)
    UNROLL for (int j = 0; j < columns / 8; ++j) tile.at[i][j] += summand.at[i][j];
}

/// Makes 0 of row `first` and those behind it.
template <int rows, int columns>
METAL_FUNC void clear_rows(thread Tile<float, rows, columns>& tile, int first, Place place) {
  UNROLL for (int i = 0; i < rows / 8; ++i)
    UNROLL for (int j = 0; j < columns / 8; ++j)
      if (8 * i + place.row >= first) tile.at[i][j] = float2(0);
}

template <int rows>
METAL_FUNC void mul(thread RowVector<rows>& vector, const thread RowVector<rows>& factor) {
  UNROLL for (int i = 0; i < rows / 8; ++i) vector.at[i] *= factor.at[i];
}

/// The larger of `start` and the row's elements.
template <int rows, int columns>
METAL_FUNC RowVector<rows> row_max(const thread Tile<float, rows, columns>& tile, const thread RowVector<rows>& start) {
  RowVector<rows> result;
  UNROLL for (int i = 0; i < rows / 8; ++i) {
    float2 largest = tile.at[i][0];
    UNROLL for (int j = 1; j < columns / 8; ++j) largest = max(largest, tile.at[i][j]);
    float value = max(largest.x, largest.y);
    value = max(value, simd_shuffle_xor(value, 1));
    value = max(value, simd_shuffle_xor(value, 8));
    result.at[i] = max(start.at[i], value);
  }
  return result;
}

/// Adds the lane's own elements of each row: a sum in parts, for row_sum to finish once the last tile is in.
template <int rows, int columns>
METAL_FUNC void add_columns(thread RowVector<rows>& sum, const thread Tile<float, rows, columns>& tile) {
  UNROLL for (int i = 0; i < rows / 8; ++i)
    UNROLL for (int j = 0; j < columns / 8; ++j) sum.at[i] += tile.at[i][j].x + tile.at[i][j].y;
}

template <int rows>
METAL_FUNC RowVector<rows> row_sum(const thread RowVector<rows>& parts) {
  RowVector<rows> result;
  UNROLL for (int i = 0; i < rows / 8; ++i) {
    const float half_row = parts.at[i] + simd_shuffle_xor(parts.at[i], 1);
    result.at[i] = half_row + simd_shuffle_xor(half_row, 8);
  }
  return result;
}

/// Adds all rows up; row 0 holds the sums.
template <int rows, int columns>
METAL_FUNC void sum_rows(thread Tile<float, rows, columns>& tile) {
  UNROLL for (int j = 0; j < columns / 8; ++j) {
    float2 sum = tile.at[0][j];
    UNROLL for (int i = 1; i < rows / 8; ++i) sum += tile.at[i][j];
    sum += simd_shuffle_xor(sum, 2);
    sum += simd_shuffle_xor(sum, 4);
    tile.at[0][j] = sum + simd_shuffle_xor(sum, 16);
  }
}

/// Adds all columns up; column 0 holds the sums.
template <int rows, int columns>
METAL_FUNC void sum_columns(thread Tile<float, rows, columns>& tile) {
  RowVector<rows> parts;
  fill(parts, 0);
  add_columns(parts, tile);
  const RowVector<rows> sum = row_sum(parts);
  UNROLL for (int i = 0; i < rows / 8; ++i) tile.at[i][0] = float2(sum.at[i]);
}

template <int rows>
METAL_FUNC void store_rows(device float* vector, const thread RowVector<rows>& values, int first, int length,
                           Place place) {
  UNROLL for (int i = 0; i < rows / 8; ++i) {
    const int row = first + 8 * i + place.row;
    if (place.column == 0 && row < length) vector[row] = values.at[i];
  }
}
