#include <metal_simdgroup_matrix>
#include <metal_stdlib>
using namespace metal;

struct Sizes {
  uint rows, columns, depth;
};

kernel void vector_add(device const float* a [[buffer(0)]], device const float* b [[buffer(1)]],
                       device float* out [[buffer(2)]], constant Sizes& sizes [[buffer(3)]],
                       uint i [[thread_position_in_grid]]) {
  if (i < sizes.rows * sizes.columns) out[i] = a[i] + b[i];
}

// out = a b. A threadgroup computes a 16x16 tile: each of its four simdgroups an 8x8 quarter, eight columns of a
// and eight rows of b at a time, staged in threadgroup memory.
constant constexpr uint TILE = 16;
constant constexpr uint STEP = 8;

kernel void matmul(device const float* a [[buffer(0)]], device const float* b [[buffer(1)]],
                   device float* out [[buffer(2)]], constant Sizes& sizes [[buffer(3)]],
                   threadgroup float* staged_a [[threadgroup(0)]], threadgroup float* staged_b [[threadgroup(1)]],
                   uint2 tile [[threadgroup_position_in_grid]], uint index [[thread_index_in_threadgroup]],
                   uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  const uint top = tile.y * TILE, left = tile.x * TILE;
  const uint quarter_row = simdgroup / 2 * 8, quarter_column = simdgroup % 2 * 8;
  simdgroup_float8x8 sum = simdgroup_float8x8(0.0f);

  for (uint k = 0; k < sizes.depth; k += STEP) {
    staged_a[index] = a[(top + index / STEP) * sizes.depth + k + index % STEP];
    staged_b[index] = b[(k + index / TILE) * sizes.columns + left + index % TILE];
    threadgroup_barrier(mem_flags::mem_threadgroup);

    simdgroup_float8x8 rows, columns;
    simdgroup_load(rows, staged_a + quarter_row * STEP, STEP);
    simdgroup_load(columns, staged_b + quarter_column, TILE);
    simdgroup_multiply_accumulate(sum, rows, columns, sum);
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  simdgroup_store(sum, out + (top + quarter_row) * sizes.columns + left + quarter_column, sizes.columns);
}
