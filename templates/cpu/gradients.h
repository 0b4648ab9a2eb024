// The gradients of keys and values: who adds them up, where, and in which order.
#pragma once

#include "backward_strip.h"

namespace orchard {

/// The gradients of one head's keys and values, or a part of the sum.
struct KeyGradients {
  KeyGradients(Real* space, int64_t keys) : key{space, kPitch}, value{key[keys], kPitchV} {}
  Rows<Real> key, value;

  void clear(int64_t keys) const {
    __builtin_memset(key.data, 0, keys * kPitch * sizeof(Real));
    __builtin_memset(value.data, 0, keys * kPitchV * sizeof(Real));
  }
};

/// How the work is split. Depends on the sizes alone, so that every run sums up in the same order; on the threads only
/// in what is under way at once.
struct Plan {
  // With fewer to a task the partial sums cost more than they bring.
  static constexpr int64_t kFewQueries = kAmx ? 1024 : 512;
  static constexpr int64_t kMostTasks = 16;  // each split takes as much memory as the gradients themselves

  Plan(const OrchardParams& params, const OrchardHost& host)
      : heads(params.batch * params.kv_heads),
        group(params.kv_heads ? params.heads / params.kv_heads : 0),
        blocks(divide_up(params.query_length, kBlockQ)),
        splits(clamp<int64_t>(group * params.query_length / kFewQueries, 1,
                              divide_up(kMostTasks, max<int64_t>(heads, 1)))),
        wave(splits > 1 ? min(heads, divide_up(2 * host.threads, splits)) : heads),
        keys(params.key_length) {}

  int64_t heads;   // of keys and values
  int64_t group;   // query heads of each
  int64_t blocks;  // of queries, in a query head
  int64_t splits;  // of a group's blocks: each has a partial sum of its own
  int64_t wave;    // heads that keep the threads busy: fresh memory for more takes longer to get than to fill
  int64_t keys;

  int64_t partial_reals() const { return keys * (kPitch + kPitchV); }
  int64_t scratch_reals() const { return splits > 1 ? wave * splits * partial_reals() : 0; }
};

/// Adds up the partial sums of the owner's keys [first, end) and stores them.
inline void store_gradients(const Head& owner, const Plan& plan, KeyGradients sums, int64_t first,
                            int64_t end) {
  const OrchardCall& call = owner.call;
  const auto grad_key = owner.keys<Element>(call.grad_key, call.params.grad_key);
  const auto grad_value = owner.keys<Element>(call.grad_value, call.params.grad_value);
  const auto total = [&](const Real* sum) {
    Vector total = load(sum);
    for (int64_t split = 1; split < plan.splits; split++) total += load(sum + split * plan.partial_reals());
    return total;
  };
  for (int64_t row = first; row < end; row++) {
    cover<kHeadDim>([&](int d, auto lanes) {
      store<lanes>(grad_key[row] + d, total(sums.key[row] + d) * Real(call.scale));
    });
    cover<kHeadDimV>(
        [&](int d, auto lanes) { store<lanes>(grad_value[row] + d, total(sums.value[row] + d)); });
  }
}

}  // namespace orchard
