// Below autograd: check, allocate, describe the call, run its kernel.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/exp2.h>

#include <cmath>
#include <limits>
#include <utility>

#include "attention.h"
#include "checks.h"
#include "host.h"
#include "journal.h"
#include "refusal.h"
#include "requests.h"

namespace orchard {
namespace {

constexpr double log2_e = 1.4426950408889634;
constexpr double infinity = std::numeric_limits<double>::infinity();

/// An empty tensor of (batch, heads, length, head_dim) that keeps the model's memory order: heads
/// inside of rows if `model` has them so, as projections from (batch, length, heads, head_dim) do.
Tensor empty_like_rows(const Tensor& model, int64_t heads, int64_t length, int64_t head_dim) {
  const int64_t batch = model.size(0);
  const bool heads_inside = 0 < model.stride(1) && model.stride(1) < model.stride(2);
  const int64_t row = heads_inside ? heads * head_dim : head_dim;
  const int64_t head = heads_inside ? head_dim : length * head_dim;
  return at::empty_strided({batch, heads, length, head_dim}, {heads * length * head_dim, head, row, 1}, model.options());
}

Tensor empty_gradient(const Tensor& model) { return empty_like_rows(model, model.size(1), model.size(2), model.size(3)); }

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

OrchardBuffer buffer(const std::optional<Tensor>& tensor) { return tensor ? buffer(*tensor) : OrchardBuffer{}; }

/// Strides as kernels count them. Packed sequences share the one batch there is.
OrchardStrides strides(const Tensor& tensor, bool packed) {
  return {packed ? 0 : tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

OrchardPlane plane(const Tensor& tensor) {
  const auto stride = [&](int64_t dim) { return tensor.size(dim) == 1 ? 0 : tensor.stride(dim); };
  return {stride(0), stride(1), stride(2), stride(3)};
}

OrchardArray array(const Tensor& tensor) {
  OrchardArray array{{1, 1, 1, 1}, {}};
  for (int64_t dim = 0; dim < tensor.dim(); ++dim) {
    array.sizes[dim] = tensor.size(dim);
    array.strides[dim] = tensor.stride(dim);
  }
  return array;
}

/// The part of a call that forward and backward have in common.
OrchardCall describe(const Arguments& a, const Tensor& out, const Tensor& lse) {
  constexpr int64_t unbounded = int64_t(1) << 40;  // beyond all lengths, and sums of it are no overflow
  OrchardCall call{};
  OrchardParams& p = call.params;
  const bool packed = a.packed();
  p.batch = packed ? a.query_offsets->size(0) - 1 : a.query.size(0);
  p.heads = a.query.size(1);
  p.kv_heads = a.key.size(1);
  p.query_length = packed ? a.longest_query.expect_int() : a.query.size(2);
  p.key_length = packed ? a.longest_key.expect_int() : a.key.size(2);
  p.left = std::min(a.left.value_or(unbounded), unbounded);
  p.right = std::min(a.right.value_or(unbounded), unbounded);
  p.lower_right = a.lower_right;
  p.query = strides(a.query, packed);
  p.key = strides(a.key, packed);
  p.value = strides(a.value, packed);
  p.out = strides(out, packed);
  p.lse = {packed ? 0 : lse.size(1) * lse.size(2), lse.size(2), 1};  // not its strides: those of 1 row may be anything
  if (a.mask) p.mask = plane(*a.mask);
  if (a.bias) p.bias = plane(*a.bias);
  constexpr double words = 4294967296.0;  // what 32 random bits can be
  p.dropout_threshold = static_cast<int64_t>(std::min(a.dropout * words, words - 1));
  call.keep_scale = a.dropout < 1 ? 1 / (1 - a.dropout) : 0;
  call.scale = a.scale ? *a.scale : 1.0 / std::sqrt(static_cast<double>(a.query.size(3)));
  for (size_t i = 0; i < a.arrays.size(); ++i) {
    p.arrays[i] = array(a.arrays[i]);
    call.arrays[i] = buffer(a.arrays[i]);
  }
  std::copy(a.scalars.begin(), a.scalars.end(), call.scalars);
  call.query = buffer(a.query);
  call.key = buffer(a.key);
  call.value = buffer(a.value);
  call.out = buffer(out);
  call.lse = buffer(lse);
  call.mask = buffer(a.mask);
  call.bias = buffer(a.bias);
  call.sinks = buffer(a.sinks);
  call.seed = buffer(a.seed);
  call.query_offsets = buffer(a.query_offsets);
  call.key_offsets = buffer(a.key_offsets);
  call.key_lengths = buffer(a.key_lengths);
  return call;
}

using Roles = std::vector<Role>;

/// The tensors that a call reads in both passes, for the journal.
Roles roles_of(const Arguments& a, const Tensor& out, const Tensor& lse) {
  Roles roles{{"query", &a.query}, {"key", &a.key}, {"value", &a.value}, {"out", &out}, {"lse", &lse}};
  const auto add = [&](const char* name, const std::optional<Tensor>& tensor) {
    if (tensor) roles.push_back({name, &*tensor});
  };
  add("mask", a.mask);
  add("bias", a.bias);
  add("sinks", a.sinks);
  add("seed", a.seed);
  add("query_offsets", a.query_offsets);
  add("key_offsets", a.key_offsets);
  add("key_lengths", a.key_lengths);
  for (const auto& array : a.arrays) roles.push_back({"array", &array});
  return roles;
}

template <class MakeRoles>
void run(OrchardCall& call, const Request& request, const Tensor& query, MakeRoles make_roles) {
  const Kernel kernel = kernel_for(request);
  if (profiles_tensors()) note_tensors(kernel, make_roles());
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
  if (status == ORCHARD_NOT_COMPILED) refuse(error);
  TORCH_CHECK(status == ORCHARD_DONE, "orchard_jit: the kernel failed with code ", status, ": ", error);
  note_call(request);
}

/// What a sink takes of a row gives nothing: its share times what the row's output was worth.
Tensor gradient_of_sinks(const Arguments& a, const Gradients& g, at::ScalarType dtype) {
  const Tensor share = at::exp2(a.sinks->mul(log2_e).view({1, -1, 1}).sub(g.lse)).masked_fill(g.lse.eq(-infinity), 0);
  Tensor worth = g.grad_out.to(dtype).mul(g.out.to(dtype)).sum(-1).neg();
  if (g.grad_lse) worth = worth.add(*g.grad_lse, log2_e);
  return share.mul(worth).sum(at::IntArrayRef({0, 2}));
}

std::pair<Tensor, Tensor> forward(const Arguments& a) {
  check_arguments(a);
  check_sequences(a);
  const auto lse_dtype = a.query.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  Tensor out = empty_like_rows(a.query, a.query.size(1), a.query.size(2), a.value.size(3));
  Tensor lse = at::empty({a.query.size(0), a.query.size(1), a.query.size(2)}, a.query.options().dtype(lse_dtype));
  if (lse.numel() > 0 && a.key.size(2) == 0) {
    out.zero_();
    if (a.sinks) lse.copy_(a.sinks->mul(log2_e).view({1, -1, 1}).expand_as(lse));
    else lse.fill_(-infinity);
  } else if (lse.numel() > 0) {
    OrchardCall call = describe(a, out, lse);
    run(call, request_for_forward(a), a.query, [&] { return roles_of(a, out, lse); });
  }
  return {std::move(out), std::move(lse)};
}

}  // namespace

void device_attention(const c10::OperatorHandle&, Stack* stack) {
  auto [out, lse] = forward(Arguments(*stack, stack->size() - Arguments::kPlain, Arguments::kPlain));
  replace(stack, Arguments::kPlain, std::move(out));
}

void device_forward(const c10::OperatorHandle&, Stack* stack) {
  auto [out, lse] = forward(Arguments(*stack, stack->size() - Arguments::kCount));
  replace(stack, Arguments::kCount, std::move(out), std::move(lse));
}

void device_backward(const c10::OperatorHandle&, Stack* stack) {
  const size_t first = stack->size() - Gradients::kCount;
  const Arguments a(*stack, first + Gradients::kBefore);
  const Gradients g(*stack, first);
  check_arguments(a);
  check_gradients(a, g);
  const auto none = [&] { return at::empty({0}, a.query.options()); };
  Tensor grad_query = empty_gradient(a.query), grad_key = empty_gradient(a.key), grad_value = empty_gradient(a.value);
  Tensor grad_bias = g.of_bias ? at::empty(a.bias->sizes(), a.bias->options()) : none();
  Tensor grad_sinks = a.sinks ? gradient_of_sinks(a, g, g.lse.scalar_type()) : none();
  if (g.lse.numel() == 0 || a.key.size(2) == 0) {
    for (Tensor* gradient : {&grad_query, &grad_key, &grad_value, &grad_bias}) gradient->zero_();
  } else {
    const Tensor grad_out = dense_rows(g.grad_out);
    const Tensor out = dense_rows(g.out), lse = g.lse.contiguous();  // vmap may have expanded them
    OrchardCall call = describe(a, out, lse);
    OrchardParams& p = call.params;
    p.grad_out = strides(grad_out, a.packed());
    p.grad_query = strides(grad_query, a.packed());
    p.grad_key = strides(grad_key, a.packed());
    p.grad_value = strides(grad_value, a.packed());
    call.grad_out = buffer(grad_out);
    call.grad_query = buffer(grad_query);
    call.grad_key = buffer(grad_key);
    call.grad_value = buffer(grad_value);
    if (g.of_bias) {
      p.grad_bias = plane(grad_bias);
      call.grad_bias = buffer(grad_bias);
    }
    Tensor grad_lse;
    if (g.grad_lse) {
      grad_lse = g.grad_lse->contiguous();
      call.grad_lse = buffer(grad_lse);
    }
    run(call, request_for_backward(a, g.of_bias), a.query, [&] {
      Roles roles = roles_of(a, out, lse);
      roles.insert(roles.end(), {{"grad_out", &grad_out}, {"grad_query", &grad_query}, {"grad_key", &grad_key},
                                 {"grad_value", &grad_value}});
      if (g.of_bias) roles.push_back({"grad_bias", &grad_bias});
      if (grad_lse.defined()) roles.push_back({"grad_lse", &grad_lse});
      return roles;
    });
  }
  replace(stack, Gradients::kCount, std::move(grad_query), std::move(grad_key), std::move(grad_value),
          std::move(grad_bias), std::move(grad_sinks));
}

void device_plan(const c10::OperatorHandle&, Stack* stack) {
  const Arguments a(*stack, stack->size() - Arguments::kCount);
  check_arguments(a);
  check_sequences(a);
  const bool of_bias = a.bias && a.bias->requires_grad();
  replace(stack, Arguments::kCount, json({request_for_forward(a), request_for_backward(a, of_bias)}));
}

}  // namespace orchard
