#include "requests.h"

namespace orchard {
namespace {

/// What both passes need.
uint16_t features_of(const Arguments& a) {
  uint16_t features = 0;
  if (a.left) features |= window;
  else if (a.right) features |= causal;
  if (a.mask) features |= mask;
  if (a.bias) features |= a.bias->scalar_type() == a.query.scalar_type() ? bias : bias_f32;
  if (a.dropout > 0) features |= dropout;
  if (a.query_offsets) features |= varlen;
  if (a.key_lengths) features |= lengths;
  return features;
}

Request request_for(const Arguments& a, Pass pass, uint16_t features) {
  return {a.query.is_mps() ? Backend::metal : Backend::cpu,
          pass,
          *dtype_of(a.query),
          features,
          a.query.size(3),
          a.value.size(3),
          a.score,
          a.blocks};
}

/// Few queries and many keys: one query must use the whole machine, and heads that share keys must share their reading.
bool decodes(const Arguments& a) {
  constexpr uint16_t features = causal | window | lengths;
  constexpr int64_t few_queries = 16, few_rows = 64, many_keys = 512;
  return (features_of(a) & ~features) == 0 && a.query.scalar_type() != at::kDouble && a.query.size(2) <= few_queries &&
         a.query.size(1) * a.query.size(2) <= few_rows * a.key.size(1) && a.key.size(2) >= many_keys;
}

}  // namespace

std::optional<Dtype> dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kFloat: return Dtype::float32;
    case at::kHalf: return Dtype::float16;
    case at::kBFloat16: return Dtype::bfloat16;
    case at::kDouble: return Dtype::float64;
    default: return std::nullopt;
  }
}

Request request_for_forward(const Arguments& a) {
  // The log-sum-exp tells the backward all about sinks.
  const uint16_t features = features_of(a) | (a.sinks ? sinks : 0);
  return request_for(a, decodes(a) ? Pass::decode : Pass::forward, features);
}

Request request_for_backward(const Arguments& a, bool of_bias) {
  return request_for(a, Pass::backward, features_of(a) | (of_bias ? bias_grad : 0));
}

std::vector<Request> requests_of_training(const Arguments& a, bool of_bias) {
  if (!dtype_of(a.query) || !(a.query.is_cpu() || a.query.is_mps())) return {};
  for (const Tensor* tensor : {&a.query, &a.key, &a.value}) {
    if (tensor->dim() != 4) return {};
    for (const auto& size : tensor->sym_sizes())
      if (!size.maybe_as_int()) return {};
    if (tensor->size(3) < 1 || tensor->size(3) > max_head_dim || tensor->size(1) < 1) return {};
  }
  return {request_for_forward(a), request_for_backward(a, of_bias)};
}

}  // namespace orchard
