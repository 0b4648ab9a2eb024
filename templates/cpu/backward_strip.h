// The backward pass's strips of queries, and how they are loaded.
#pragma once

#include "scores.h"

namespace orchard {

/// Rows that products read are padded to whole vectors.
constexpr int kPitch = round_up(kHeadDim, kLanes), kPitchV = round_up(kHeadDimV, kLanes);
/// Those that products run down.
constexpr int kColumnPitch = pitch(kPitch), kColumnPitchV = pitch(kPitchV);

/// Some vectors of queries on their way through the keys.
template <int Width>
struct Strip {
  static constexpr int kQueries = Width * kLanes;
  static constexpr int kRealsPerQuery = steps(kHeadDim) + steps(kHeadDimV) + kHeadDim + 2;

  Rows<Operand> query;     // [steps(kHeadDim)][kQueries]
  Rows<Operand> grad_out;  // [steps(kHeadDimV)][kQueries]
  Rows<Real> grad_query;   // [kHeadDim][kQueries], to be multiplied by scale
  Real* lse;               // [kQueries], inf where no key is seen: that makes all weights zero
  Real* delta;             // [kQueries], sum of out * grad_out - log2(e) * grad_lse

  static Strip at(Real* strips, int64_t row) {
    const Rows<Operand> query{reinterpret_cast<Operand*>(strips + row * kRealsPerQuery), kQueries};
    const Rows<Operand> grad_out{query[steps(kHeadDim)], kQueries};
    const Rows<Real> grad_query{reinterpret_cast<Real*>(grad_out[steps(kHeadDimV)]), kQueries};
    Real* lse = grad_query[kHeadDim];
    return {query, grad_out, grad_query, lse, lse + kQueries};
  }

  /// Some of its vectors.
  template <int Part>
  Strip<Part> part(int v) const {
    const int lane = v * kLanes;
    return {query.from_column(lane), grad_out.from_column(lane), grad_query.from_column(lane), lse + lane,
            delta + lane};
  }
};

/// A task's queries and the gradients of their outputs once more, for products down them.
struct QueryColumns {
  QueryColumns(Arena& arena, int64_t queries)
      : query{arena.take<Operand>(steps(queries) * kColumnPitch), kColumnPitch},
        grad_out{arena.take<Operand>(steps(queries) * kColumnPitchV), kColumnPitchV} {}

  Rows<Operand> query;     // [steps(queries)][kColumnPitch]
  Rows<Operand> grad_out;  // [steps(queries)][kColumnPitchV]
};

/// Those from `row` of the task's on. Queries that see no key count as zeros: whatever they hold leaves no trace.
inline void load_vector(Strip<1> strip, const QueryColumns& columns, int64_t row, const Head& head, int64_t start,
                        int64_t count) {
  const OrchardCall& call = head.call;
  const auto query = head.queries<const Element>(call.query, call.params.query);
  const auto out = head.queries<const Element>(call.out, call.params.out);
  const auto grad_out = head.queries<const Element>(call.grad_out, call.params.grad_out);
  const Real *lse = head.numbers(call.lse), *grad_lse = head.numbers(call.grad_lse);
  Element queries[kLanes][kHeadDim], grad_outs[kLanes][kHeadDimV];
  for (int lane = 0; lane < kLanes; lane++) {
    const int64_t at = start + lane;
    const bool live = lane < count && lse[at] != -kInfinity;
    strip.lse[lane] = live ? lse[at] : kInfinity;
    strip.delta[lane] = live && grad_lse ? -kLog2E * grad_lse[at] : 0;
    if (live) {
      __builtin_memcpy(queries[lane], query[at], sizeof(queries[lane]));
      __builtin_memcpy(grad_outs[lane], grad_out[at], sizeof(grad_outs[lane]));
    } else {
      __builtin_memset(queries[lane], 0, sizeof(queries[lane]));
      __builtin_memset(grad_outs[lane], 0, sizeof(grad_outs[lane]));
    }
  }
  const Rows<const Element> query_rows{queries[0], kHeadDim}, grad_out_rows{grad_outs[0], kHeadDimV};
  load_queries(query_rows, kLanes, call.scale, strip.query);
  pack_transposed<kHeadDimV>(grad_out_rows, kLanes, strip.grad_out);
  pack_down<kHeadDim>(query_rows, kLanes, columns.query.from(row / kStep));
  pack_down<kHeadDimV>(grad_out_rows, kLanes, columns.grad_out.from(row / kStep));
  for (int d = 0; d < kHeadDim; d++) store(strip.grad_query[d], Vector{});

  // Summed up in the order of the product that it will be subtracted from: with a single key they cancel exactly.
  Operand outs[steps(kHeadDimV) * kLanes];
  pack_transposed<kHeadDimV>(out.from(start), count, {outs, kLanes});
  const Vector products = column_products({outs, kLanes}, strip.grad_out, steps(kHeadDimV));
  store(strip.delta, load(strip.delta) + products);
}

}  // namespace orchard
