// The online softmax, base 2, of rows that arrive in pieces.

/// The running state of each row: the largest score so far, and the sum of exp2(score - largest), in parts.
template <int rows>
struct Softmax {
  RowVector<rows> largest, sum;
};

template <int rows>
METAL_FUNC Softmax<rows> softmax_start() {
  Softmax<rows> state;
  fill(state.largest, -INFINITY);
  fill(state.sum, 0);
  return state;
}

/// Of rows that begin with one score, and no value for it.
template <int rows>
METAL_FUNC Softmax<rows> softmax_start(float score, Place place) {
  Softmax<rows> state;
  fill(state.largest, score);
  fill(state.sum, place.column == 0 ? 1 : 0);  // four lanes hold the parts
  return state;
}

/// Turns scores into probabilities relative to the largest score so far. Returns what scores seen before
/// this one now count for. A row that has seen no score yet is shifted by 0: -inf - -inf would be NaN.
template <int rows, int columns>
METAL_FUNC RowVector<rows> softmax_step(thread Softmax<rows>& state, thread Tile<float, rows, columns>& scores) {
  const RowVector<rows> previous = state.largest;
  state.largest = row_max(scores, previous);
  RowVector<rows> shift, decay;
  UNROLL for (int i = 0; i < rows / 8; ++i) {
    shift.at[i] = state.largest.at[i] == -INFINITY ? 0 : state.largest.at[i];
    decay.at[i] = fast::exp2(previous.at[i] - shift.at[i]);
  }
  sub_row(scores, shift);
  exp2(scores);
  mul(state.sum, decay);
  add_columns(state.sum, scores);
  return decay;
}

/// Finishes the sums; they become factors that normalise the rows. A row without keys gets 0, one with NaN NaN.
template <int rows>
METAL_FUNC RowVector<rows> softmax_finish(thread Softmax<rows>& state) {
  RowVector<rows> factor;
  state.sum = row_sum(state.sum);
  UNROLL for (int i = 0; i < rows / 8; ++i) factor.at[i] = state.sum.at[i] == 0 ? 0 : 1 / state.sum.at[i];
  return factor;
}

/// log2 of the sum of exp2 of all scores of the row: -inf for a row without keys.
template <int rows>
METAL_FUNC RowVector<rows> log_sum_exp(const thread Softmax<rows>& state) {
  RowVector<rows> lse;
  UNROLL for (int i = 0; i < rows / 8; ++i) lse.at[i] = state.largest.at[i] + precise::log2(state.sum.at[i]);
  return lse;
}
