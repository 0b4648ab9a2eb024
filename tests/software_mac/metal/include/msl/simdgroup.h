// Barriers and the operations of a simdgroup, on top of the lanes of the target.
#pragma once

namespace metal {

METAL_FUNC void threadgroup_barrier(mem_flags flags) { msl::meet_threadgroup(uint(flags)); }
METAL_FUNC void simdgroup_barrier(mem_flags flags) { msl::meet_simdgroup(uint(flags)); }

template <class T>
METAL_FUNC T simd_shuffle(T data, ushort lane) { return msl::from_lane(data, lane); }
template <class T>
METAL_FUNC T simd_shuffle_xor(T data, ushort mask) { return msl::from_lane_xor(data, mask); }
template <class T>
METAL_FUNC T simd_broadcast(T data, ushort lane) { return msl::from_lane(data, lane); }
template <class T>
METAL_FUNC T simd_broadcast_first(T data) { return msl::from_lane(data, 0); }

// Lanes that would read from outside the simdgroup keep their own data.
template <class T>
METAL_FUNC T simd_shuffle_up(T data, ushort delta) {
  const uint lane = msl::lane_id();
  return msl::from_lane(data, lane >= delta ? lane - delta : lane);
}
template <class T>
METAL_FUNC T simd_shuffle_down(T data, ushort delta) {
  const uint lane = msl::lane_id();
  return msl::from_lane(data, lane + delta < msl::lane_count() ? lane + delta : lane);
}
template <class T>
METAL_FUNC T simd_shuffle_rotate_up(T data, ushort delta) {
  return msl::from_lane(data, (msl::lane_id() - delta) & 31u);
}
template <class T>
METAL_FUNC T simd_shuffle_rotate_down(T data, ushort delta) {
  return msl::from_lane(data, (msl::lane_id() + delta) & 31u);
}
template <class T>
METAL_FUNC T simd_shuffle_and_fill_up(T data, T filling, ushort delta) {
  const uint lane = msl::lane_id();
  const T shifted = msl::from_lane(data, (lane - delta) & 31u);
  const T filled = msl::from_lane(filling, (lane - delta) & 31u);
  return lane >= delta ? shifted : filled;
}
template <class T>
METAL_FUNC T simd_shuffle_and_fill_down(T data, T filling, ushort delta) {
  const uint lane = msl::lane_id();
  const T shifted = msl::from_lane(data, (lane + delta) & 31u);
  const T filled = msl::from_lane(filling, (lane + delta) & 31u);
  return lane + delta < 32u ? shifted : filled;
}

template <class T, class = msl::if_number<T>>
METAL_FUNC T simd_sum(T data) { return msl::fold(data, [](T a, T b) { return T(a + b); }); }
template <class T, class = msl::if_number<T>>
METAL_FUNC T simd_product(T data) { return msl::fold(data, [](T a, T b) { return T(a * b); }); }
template <class T, class = msl::if_number<T>>
METAL_FUNC T simd_max(T data) { return msl::fold(data, [](T a, T b) { return max(a, b); }); }
template <class T, class = msl::if_number<T>>
METAL_FUNC T simd_min(T data) { return msl::fold(data, [](T a, T b) { return min(a, b); }); }
template <class T, class = msl::if_integer<T>>
METAL_FUNC T simd_and(T data) { return msl::fold(data, [](T a, T b) { return T(a & b); }); }
template <class T, class = msl::if_integer<T>>
METAL_FUNC T simd_or(T data) { return msl::fold(data, [](T a, T b) { return T(a | b); }); }
template <class T, class = msl::if_integer<T>>
METAL_FUNC T simd_xor(T data) { return msl::fold(data, [](T a, T b) { return T(a ^ b); }); }

template <class T, class = msl::if_number<T>>
METAL_FUNC T simd_prefix_inclusive_sum(T data) {
  return msl::fold_before(data, msl::lane_id() + 1, T(0), [](T a, T b) { return T(a + b); });
}
template <class T, class = msl::if_number<T>>
METAL_FUNC T simd_prefix_exclusive_sum(T data) {
  return msl::fold_before(data, msl::lane_id(), T(0), [](T a, T b) { return T(a + b); });
}

METAL_FUNC bool simd_any(bool condition) { return simd_or(uint(condition)) != 0; }
METAL_FUNC bool simd_all(bool condition) { return simd_and(uint(condition)) != 0; }
METAL_FUNC bool simd_is_first() { return msl::lane_id() == 0; }

struct simd_vote {
  using vote_t = ulong;
  vote_t votes;
  METAL_FUNC explicit constexpr simd_vote(vote_t v) : votes(v) {}
  METAL_FUNC explicit constexpr operator vote_t() const { return votes; }
  METAL_FUNC bool any() const { return votes != 0; }
  METAL_FUNC bool all() const { return votes == 0xffffffffull; }
};
METAL_FUNC simd_vote simd_ballot(bool condition) { return simd_vote(simd_or(ulong(condition) << msl::lane_id())); }

template <class T>
METAL_FUNC T quad_shuffle(T data, ushort lane) { return msl::from_lane(data, (msl::lane_id() & 28u) | (lane & 3u)); }
template <class T>
METAL_FUNC T quad_shuffle_xor(T data, ushort mask) { return msl::from_lane_xor(data, mask & 3u); }

}  // namespace metal
