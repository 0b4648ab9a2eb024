// How simdgroups share out rows and head dims.

/// What one simdgroup works on.
struct Position {
  int first, last;  // its rows
  int from, to;     // the rows whose loops run in step: its own, or the threadgroup's where it waits for others
  int member;       // of its team: which slice of the head dim it holds
  Place place;
};

/// A block of rows of one head: what a threadgroup works on.
struct Block {
  int number, head;
};

/// Threadgroups are taken to start in the order of their places in the grid. One head's blocks follow each other, so
/// that caches serve all of them with its keys.
METAL_FUNC Block in_turn(uint3 group) { return Block{int(group.x), int(group.y)}; }

/// The first blocks of all heads come first, then the second ones. Where those have the most work, the last threadgroups
/// to start are the shortest, and the GPU's cores finish together. There are fewer than 2^32: all have results in memory.
METAL_FUNC Block across_heads(uint3 group, uint3 groups) {
  const uint place = group.y * groups.x + group.x;
  return Block{int(place / groups.y), int(place % groups.y)};
}

template <int rows, int simdgroups, int split>
METAL_FUNC Position position_of(int block, uint simdgroup, uint lane, int length) {
  static_assert(rows % 8 == 0, "rows come in fragments of 8");
  static_assert(simdgroups % split == 0 && simdgroups <= 32, "whole teams, at most 1024 threads");
  constexpr int height = split == 1 ? rows : simdgroups / split * rows;
  const int group = block * (simdgroups / split * rows);
  const int first = group + int(simdgroup / split) * rows;
  const int from = split == 1 ? first : group;
  return Position{first, first + rows - 1, from, min(from + height, length), int(simdgroup % split), place_of(lane)};
}

/// Columns that each of `split` simdgroups holds.
constexpr int slice_of(int dim, int split) { return (dim + 8 * split - 1) / (8 * split) * 8; }

/// The sequence's rows in one head of a tensor: the slice of them that belongs to the simdgroup.
template <int dim, int split, bool wide, typename Pointer>
METAL_FUNC Rows<Pointer, slice_of(dim, split), wide> head_of(Pointer tensor, constant OrchardStrides& strides,
                                                             Extent extent, int head, Position position) {
  constexpr int width = slice_of(dim, split);
  const int first = split == 1 ? 0 : position.member * width;
  const int columns = dim == width * split ? width : dim - first;
  const Pointer data = rows_of(tensor, strides, extent, head);
  return Rows<Pointer, width, wide>{data, strides.row, extent.length, first, columns, position.place};
}

/// Where the lane's first element of a tile of scores lies. Rows are queries and columns are keys, or,
/// `transposed`, the other way round.
template <bool transposed>
struct Origin {
  int row, column;

  METAL_FUNC int query(int i, int j, int e) const { return transposed ? column + 8 * j + e : row + 8 * i; }
  METAL_FUNC int key(int i, int j, int e) const { return transposed ? row + 8 * i : column + 8 * j + e; }
};

template <bool transposed>
METAL_FUNC Origin<transposed> origin_of(Position position, int column) {
  return Origin<transposed>{position.first + position.place.row, column + position.place.column};
}
