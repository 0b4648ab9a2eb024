// Below autograd: check, allocate, describe the call, run its kernel.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/empty.h>
#include <cmath>
#include <limits>

#include "attention.h"
#include "host.h"
#include "inputs.h"
#include "journal.h"

namespace orchard {
namespace {

/// An empty tensor of (batch, heads, length, head_dim) that keeps the model's memory order: heads
/// inside of rows if `model` has them so, as projections from (batch, length, heads, head_dim) do.
Tensor empty_like_rows(const Tensor& model, int64_t heads, int64_t length, int64_t head_dim) {
  const int64_t batch = model.size(0);
  const bool heads_inside = 0 < model.stride(1) && model.stride(1) < model.stride(2);
  const int64_t row = heads_inside ? heads * head_dim : head_dim;
  const int64_t head = heads_inside ? head_dim : length * head_dim;
  return at::empty_strided({batch, heads, length, head_dim}, {heads * length * head_dim, head, row, 1}, model.options());
}

Tensor empty_like(const Tensor& model) { return empty_like_rows(model, model.size(1), model.size(2), model.size(3)); }

/// Gradients come in whatever strides autograd made them, as stride 0 from sum().
Tensor dense_rows(const Tensor& tensor) {
  return tensor.size(3) == 1 || tensor.stride(3) == 1 ? tensor : tensor.contiguous();
}

OrchardBuffer buffer(const Tensor& tensor) {
  if (tensor.is_mps()) {
    return {tensor.storage().mutable_data(), tensor.storage_offset() * static_cast<int64_t>(tensor.element_size())};
  }
  return {tensor.data_ptr(), 0};
}

OrchardStrides strides(const Tensor& tensor) { return {tensor.stride(0), tensor.stride(1), tensor.stride(2)}; }

/// The part of a call that forward and backward have in common.
OrchardCall describe(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& out, const Tensor& lse,
                     std::optional<double> scale, const std::string& causal) {
  OrchardCall call{};
  OrchardParams& p = call.params;
  p.batch = query.size(0);
  p.heads = query.size(1);
  p.kv_heads = key.size(1);
  p.query_length = query.size(2);
  p.key_length = key.size(2);
  p.diagonal = causal == "lower_right" ? p.key_length - p.query_length : 0;
  p.query = strides(query);
  p.key = strides(key);
  p.value = strides(value);
  p.out = strides(out);
  call.scale = scale ? *scale : 1.0 / std::sqrt(static_cast<double>(query.size(3)));
  call.query = buffer(query);
  call.key = buffer(key);
  call.value = buffer(value);
  call.out = buffer(out);
  call.lse = buffer(lse);
  return call;
}

void run(OrchardCall& call, const Request& request, const Tensor& query, std::initializer_list<Role> roles) {
  const Kernel kernel = kernel_for(request);
  note_tensors(kernel, roles);
  const OrchardHost host = host_for(request.backend);
  char error[4096] = "";
  call.host = &host;
  call.error = error;
  call.error_capacity = sizeof error;
  Tensor scratch;
  if (const int64_t bytes = kernel.scratch(&call)) {
    scratch = at::empty({bytes}, query.options().dtype(at::kByte));
    call.scratch = buffer(scratch);
  }
  const int32_t status = kernel.run(&call);
  TORCH_CHECK(status == 0, "orchard_jit: the kernel failed with code ", status, ": ", error);
  note_call(request);
}

}  // namespace

ForwardResult device_forward(const Tensor& query, const Tensor& key, const Tensor& value, std::optional<double> scale,
                             std::string causal) {
  check_inputs(query, key, value, causal);
  const auto lse_dtype = query.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  Tensor out = empty_like_rows(query, query.size(1), query.size(2), value.size(3));
  Tensor lse = at::empty({query.size(0), query.size(1), query.size(2)}, query.options().dtype(lse_dtype));
  if (lse.numel() == 0) return {out, lse};
  if (key.size(2) == 0) return {out.zero_(), lse.fill_(-std::numeric_limits<double>::infinity())};
  OrchardCall call = describe(query, key, value, out, lse, scale, causal);
  run(call, *request_for(Pass::forward, query, value, causal != "none"), query,
      {{"query", &query}, {"key", &key}, {"value", &value}, {"out", &out}, {"lse", &lse}});
  return {out, lse};
}

BackwardResult device_backward(const Tensor& grad_out_, const std::optional<Tensor>& grad_lse_, const Tensor& query,
                               const Tensor& key, const Tensor& value, const Tensor& out, const Tensor& lse,
                               std::optional<double> scale, std::string causal) {
  check_inputs(query, key, value, causal);
  check_gradients(grad_out_, grad_lse_, out, lse);
  const Tensor grad_out = dense_rows(grad_out_);
  Tensor grad_query = empty_like(query), grad_key = empty_like(key), grad_value = empty_like(value);
  if (lse.numel() == 0 || key.size(2) == 0) return {grad_query.zero_(), grad_key.zero_(), grad_value.zero_()};
  OrchardCall call = describe(query, key, value, out, lse, scale, causal);
  OrchardParams& p = call.params;
  p.grad_out = strides(grad_out);
  p.grad_query = strides(grad_query);
  p.grad_key = strides(grad_key);
  p.grad_value = strides(grad_value);
  call.grad_out = buffer(grad_out);
  call.grad_query = buffer(grad_query);
  call.grad_key = buffer(grad_key);
  call.grad_value = buffer(grad_value);
  Tensor grad_lse;
  if (grad_lse_) {
    grad_lse = grad_lse_->contiguous();
    call.grad_lse = buffer(grad_lse);
  }
  run(call, *request_for(Pass::backward, query, value, causal != "none"), query,
      {{"query", &query}, {"key", &key}, {"value", &value}, {"out", &out}, {"lse", &lse}, {"grad_out", &grad_out},
       {"grad_lse", grad_lse.defined() ? &grad_lse : nullptr}, {"grad_query", &grad_query}, {"grad_key", &grad_key},
       {"grad_value", &grad_value}});
  return {grad_query, grad_key, grad_value};
}

}  // namespace orchard
