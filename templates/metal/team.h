// Simdgroups that share rows.

/// A team of `size` simdgroups works on the same rows. Each holds a slice of the head dim, so each product
/// over the head dim gives it a part of every score, and the team adds the parts up.
template <int size, int rows, int columns>
struct Team {
  static constexpr constant int fragments = rows / 8 * columns / 8;
  /// Pairs of floats that the parts of one team take. There are two places for them, used in turn:
  /// one barrier a sum is enough, for whoever writes a place has passed the barrier after it was last read.
  static constexpr constant int slots = 2 * size * fragments * 32;

  threadgroup float2* exchange;
  int member, lane;
  int turn;

  /// The same order of addition in all members, so that they agree to the bit.
  METAL_FUNC void sum(thread Tile<float, rows, columns>& tile) {
    threadgroup float2* parts = exchange + turn * (slots / 2) + lane;
    turn = 1 - turn;
    UNROLL for (int i = 0; i < rows / 8; ++i)
      UNROLL for (int j = 0; j < columns / 8; ++j)
        parts[(member * fragments + i * (columns / 8) + j) * 32] = tile.at[i][j];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    UNROLL for (int i = 0; i < rows / 8; ++i)
      UNROLL for (int j = 0; j < columns / 8; ++j) {
        float2 total = float2(0);
        UNROLL for (int m = 0; m < size; ++m) total += parts[(m * fragments + i * (columns / 8) + j) * 32];
        tile.at[i][j] = total;
      }
  }
};

template <int size, int rows, int columns>
METAL_FUNC Team<size, rows, columns> team_of(threadgroup float2* exchange, uint simdgroup, uint lane) {
  using Result = Team<size, rows, columns>;
  const int team = int(simdgroup / size), member = int(simdgroup % size);
  return Result{exchange + team * Result::slots, member, int(lane), 0};
}
