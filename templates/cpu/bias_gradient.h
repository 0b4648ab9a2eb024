// The gradient of the bias: the scores' gradients, summed up over all that the bias was broadcast to. A pass of its own
// whose tasks own tiles of it and compute the scores once more: no memory for all scores, and one order of summation.
#pragma once

#include "score_gradients.h"

namespace orchard {

/// How the sum is split. Depends on the sizes and on what is broadcast alone.
struct BiasPlan {
  explicit BiasPlan(const OrchardParams& params)
      : blocks{params.batch, params.heads, divide_up(params.query_length, kBlockQ),
               divide_up(params.key_length, kBlockK)},
        owned{params.grad_bias.batch != 0, params.grad_bias.head != 0, params.grad_bias.row != 0,
              params.grad_bias.column != 0} {
    for (int dim = 0; dim < 4; dim++) (owned[dim] ? tiles : parts) *= blocks[dim];
    splits = clamp<int64_t>(kManyTasks / max<int64_t>(tiles, 1), 1, max<int64_t>(parts, 1));
  }

  int64_t blocks[4];  // of scores along the batch, the heads, the queries and the keys
  bool owned[4];      // along which the bias has a tile for each block; along the others they are summed up
  int64_t tiles = 1;  // of the gradient
  int64_t parts = 1;  // that each tile is the sum of
  int64_t splits;     // of the parts: each has a partial sum of its own

  // A tile's sums are [vector of queries][key]. A single vector has those over all queries.
  int64_t key_step() const { return owned[3] ? kLanes : 0; }
  int64_t vector_step() const { return owned[2] ? (owned[3] ? kBlockK : 1) * kLanes : 0; }
  int64_t partial_reals() const { return (owned[2] ? kBlockQ : kLanes) * (owned[3] ? kBlockK : 1); }
  int64_t scratch_reals() const { return splits > 1 ? tiles * splits * partial_reals() : 0; }
};

/// A block of scores.
struct ScoreBlock {
  ScoreBlock(const BiasPlan& plan, int64_t tile, int64_t part) {
    int64_t at[4];
    for (int dim = 3; dim >= 0; dim--) {
      int64_t& index = plan.owned[dim] ? tile : part;
      at[dim] = index % plan.blocks[dim];
      index /= plan.blocks[dim];
    }
    batch = at[0], head = at[1], query = at[2] * kBlockQ, key = at[3] * kBlockK;
  }
  int64_t batch, head, query, key;
};

/// sums += the gradients of the block's scores.
inline void add_gradients(const OrchardCall& call, const BiasPlan& plan, const ScoreBlock& block, Real* sums,
                          const Space& space) {
  const Head head(call, block.batch, block.head);
  const Bounds bounds(call.params, head.sequence);
  const int64_t rows = min<int64_t>(kBlockQ, head.sequence.query_length - block.query);
  const Range range =
      Range{block.key, block.key + kBlockK} & bounds.keys() & bounds.seen_by_any(block.query, rows);
  if (range.empty()) return;

  const Softmax softmax(head);
  for_each_vector<Strip>(rows, space.strips, [&](Strip<1> strip, int64_t row) {
    load_vector(strip, space.columns, row, head, block.query + row, rows - row);
  });
  const auto attend = [&](auto strip, const Meeting& meeting) {
    Real* first = sums + (meeting.query - block.query) / kLanes * plan.vector_step() +
                  (meeting.key - block.key) * plan.key_step();
    differentiate(strip, meeting, softmax, space, [&](int key, auto& tile) {
      tile.for_each([&](int row, int v, Vector grad_score) {
        if (key + row >= meeting.count) return;
        Real* sum = first + v * plan.vector_step() + (key + row) * plan.key_step();
        store(sum, load(sum) + grad_score);
      });
    });
  };
  meet_range<Strip>(head, bounds, range, block.query, rows, space, attend, Nothing{});
}

/// Adds up a tile's partial sums and stores it.
inline void store_tile(const OrchardCall& call, const BiasPlan& plan, int64_t tile, const Real* partial) {
  const OrchardParams& params = call.params;
  const ScoreBlock first(plan, tile, 0);
  const auto grad_bias = head_plane<BiasElement>(call.grad_bias, params.grad_bias, first.batch, first.head);
  const int64_t queries = plan.owned[2] ? min<int64_t>(kBlockQ, params.query_length - first.query) : 1;
  const int64_t keys = plan.owned[3] ? min<int64_t>(kBlockK, params.key_length - first.key) : 1;
  for (int64_t query = 0; query < queries; query += kLanes) {
    for (int64_t key = 0; key < keys; key += kLanes) {
      Vector columns[kLanes] = {};
      for (int i = 0; i < min<int64_t>(kLanes, keys - key); i++) {
        const Real* sums = partial + query / kLanes * plan.vector_step() + (key + i) * plan.key_step();
        for (int64_t split = 0; split < plan.splits; split++)
          columns[i] += load(sums + split * plan.partial_reals());
        if (!plan.owned[2]) columns[i] = broadcast(sum(columns[i]));
      }
      store_square(columns, grad_bias.from(first.query + query, first.key + key), queries - query,
                   keys - key);
    }
  }
}

inline void bias_gradient(const OrchardCall& call) {
  const OrchardParams& params = call.params;
  const BiasPlan plan(params);
  const double work =
      double(kHeadDim + kHeadDimV) * params.batch * params.heads * params.query_length * params.key_length;
  Real* scratch = static_cast<Real*>(call.scratch.data);
  struct Workspace {
    Workspace(void* memory, const OrchardParams& params, const BiasPlan& plan)
        : arena{uintptr_t(memory)}, partial(arena.take<Real>(plan.partial_reals())), space(arena, params) {}
    Arena arena;
    Real* partial;
    Space space;
  };

  const int64_t workspace_bytes = Workspace(nullptr, params, plan).arena.next;
  run_tasks(*call.host, plan.tiles * plan.splits, work, workspace_bytes, [&](int64_t task, void* memory) {
    const Workspace workspace(memory, params, plan);
    const int64_t tile = task / plan.splits;
    Real* partial = plan.splits > 1 ? scratch + task * plan.partial_reals() : workspace.partial;
    __builtin_memset(partial, 0, plan.partial_reals() * sizeof(Real));
    for (int64_t part = task % plan.splits; part < plan.parts; part += plan.splits) {
      add_gradients(call, plan, ScoreBlock(plan, tile, part), partial, workspace.space);
    }
    if (plan.splits == 1) store_tile(call, plan, tile, partial);
  });
  if (plan.splits == 1) return;
  run_tasks(*call.host, plan.tiles, work, 0, [&](int64_t tile, void*) {
    store_tile(call, plan, tile, scratch + tile * plan.splits * plan.partial_reals());
  });
}

}  // namespace orchard
