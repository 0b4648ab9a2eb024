// What the backward kernels know of each query's row of scores: (lse, delta), beside each other, so that a lane
// reads both of its pair of columns in 16 bytes. Each head's rows are padded to an even number for that.

METAL_FUNC long statistics_rows(int query_length) { return (query_length + 1) / 2 * 2; }

/// Probabilities are exp2(score - lse). A query without keys has lse -inf; with +inf in its place all its
/// probabilities are 0, where -inf - -inf would be NaN.
METAL_FUNC float2 row_statistics(float lse, float delta) {
  return pair_of<float>(lse == -INFINITY ? INFINITY : lse, delta);
}

template <int rows>
struct RowStatistics {
  RowVector<rows> lse, delta;
};

/// Of rows first, first + 1, ...; beyond the end, of the last.
template <int rows>
METAL_FUNC RowStatistics<rows> load_rows(const device float2* statistics, int first, int length, Place place) {
  RowStatistics<rows> result;
  UNROLL for (int i = 0; i < rows / 8; ++i) {
    const float2 row = statistics[min(first + 8 * i + place.row, length - 1)];
    result.lse.at[i] = row.x;
    result.delta.at[i] = row.y;
  }
  return result;
}

template <int columns>
struct ColumnStatistics {
  ColumnVector<columns> lse, delta;
};

/// Of rows first, first + 1, ..., where `first` is even; beyond the end, of the last pair.
template <int columns>
METAL_FUNC ColumnStatistics<columns> load_columns(const device float2* statistics, int first, int length, Place place) {
  const device float4* pairs = reinterpret_cast<const device float4*>(statistics);
  ColumnStatistics<columns> result;
  UNROLL for (int j = 0; j < columns / 8; ++j) {
    const float4 pair = pairs[min(first + 8 * j + place.column, length - 1) / 2];
    result.lse.at[j] = pair.xz;
    result.delta.at[j] = pair.yw;
  }
  return result;
}
