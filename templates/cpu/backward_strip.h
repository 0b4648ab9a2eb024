// The backward pass's strips of queries, and how they are loaded.
#pragma once

#include "scores.h"

namespace orchard {

/// Rows that products read are padded to whole vectors.
constexpr int kPitch = round_up(kHeadDim, kLanes), kPitchV = round_up(kHeadDimV, kLanes);

/// Some vectors of queries on their way through the keys.
template <int Width>
struct Strip {
  static constexpr int kQueries = Width * kLanes;
  static constexpr int kRealsPerQuery = 2 * kHeadDim + kHeadDimV + kPitch + kPitchV + 2;

  Rows<Real> query;          // [kHeadDim][kQueries], times scale * kQueryFactor
  Rows<Real> grad_out;       // [kHeadDimV][kQueries]
  Rows<Real> grad_query;     // [kHeadDim][kQueries], to be multiplied by scale
  Rows<Real> query_rows;     // [kQueries][kPitch]
  Rows<Real> grad_out_rows;  // [kQueries][kPitchV]
  Real* lse;                 // [kQueries], inf where no key is seen: that makes all weights zero
  Real* delta;               // [kQueries], sum of out * grad_out - log2(e) * grad_lse

  static Strip at(Real* strips, int64_t row) {
    const Rows<Real> query{strips + row * kRealsPerQuery, kQueries}, grad_out{query[kHeadDim], kQueries};
    const Rows<Real> grad_query{grad_out[kHeadDimV], kQueries};
    const Rows<Real> query_rows{grad_query[kHeadDim], kPitch}, grad_out_rows{query_rows[kQueries], kPitchV};
    Real* lse = grad_out_rows[kQueries];
    return {query, grad_out, grad_query, query_rows, grad_out_rows, lse, lse + kQueries};
  }

  Strip<1> vector(int v) const {
    const int lane = v * kLanes;
    return {query.from_column(lane),
            grad_out.from_column(lane),
            grad_query.from_column(lane),
            query_rows.from(lane),
            grad_out_rows.from(lane),
            lse + lane,
            delta + lane};
  }
};

/// Queries that see no key count as zeros: whatever they hold leaves no trace.
inline void load_vector(Strip<1> strip, const Head& head, int64_t start, int64_t count) {
  const OrchardCall& call = head.call;
  const auto query = head.queries<const Element>(call.query, call.params.query);
  const auto out = head.queries<const Element>(call.out, call.params.out);
  const auto grad_out = head.queries<const Element>(call.grad_out, call.params.grad_out);
  const Real *lse = head.numbers(call.lse), *grad_lse = head.numbers(call.grad_lse);
  for (int lane = 0; lane < kLanes; lane++) {
    const int64_t row = start + lane;
    const bool live = lane < count && lse[row] != -kInfinity;
    strip.lse[lane] = live ? lse[row] : kInfinity;
    strip.delta[lane] = live && grad_lse ? -kLog2E * grad_lse[row] : 0;
    cover<kHeadDim>([&](int d, auto lanes) {
      store(strip.query_rows[lane] + d, live ? load<lanes>(query[row] + d) : Vector{});
    });
    cover<kHeadDimV>([&](int d, auto lanes) {
      store(strip.grad_out_rows[lane] + d, live ? load<lanes>(grad_out[row] + d) : Vector{});
    });
  }
  load_transposed<kHeadDim, Real>(strip.query_rows, kLanes, call.scale * kQueryFactor, strip.query);
  load_transposed<kHeadDimV, Real>(strip.grad_out_rows, kLanes, 1, strip.grad_out);
  for (int d = 0; d < kHeadDim; d++) store(strip.grad_query[d], Vector{});

  // Summed up in the order of the product that it will be subtracted from: with a single key they cancel exactly.
  Real outs[kHeadDimV * kLanes];
  load_transposed<kHeadDimV>(out.from(start), count, 1, {outs, kLanes});
  Vector delta = load(strip.delta);
  for (int first = 0; first < kHeadDimV; first += kDepth) {
    Vector products = {};
    for (int d = first; d < min(kHeadDimV, first + kDepth); d++) {
      products += load(outs + d * kLanes) * load(strip.grad_out[d]);
    }
    delta += products;
  }
  store(strip.delta, delta);
}

}  // namespace orchard
