#include "inputs.h"

#include <c10/util/Exception.h>

namespace orchard {
namespace {

constexpr int64_t max_head_dim = 512;

std::optional<Dtype> dtype_of(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kFloat: return Dtype::float32;
    case at::kHalf: return Dtype::float16;
    case at::kBFloat16: return Dtype::bfloat16;
    case at::kDouble: return Dtype::float64;
    default: return std::nullopt;
  }
}

void check_form(const char* name, const at::Tensor& tensor) {
  TORCH_CHECK_VALUE(tensor.dim() == 4, "orchard_jit: ", name, " must have 4 dimensions (batch, heads, length, head_dim), got ",
                    tensor.dim(), " with shape ", tensor.sizes());
  TORCH_CHECK_TYPE(dtype_of(tensor), "orchard_jit: ", name, " must be float32, float16, bfloat16 or float64, got ",
                   tensor.scalar_type());
  TORCH_CHECK_NOT_IMPLEMENTED(tensor.is_cpu() || tensor.is_mps(), "orchard_jit: ", name, " is on ", tensor.device(),
                              "; there are kernels for cpu and mps");
  TORCH_CHECK_TYPE(!tensor.is_mps() || tensor.scalar_type() != at::kDouble, "orchard_jit: ", name,
                   " is float64, which Metal does not have; use float32, or move it to the cpu");
  TORCH_CHECK_VALUE(tensor.size(3) >= 1 && tensor.size(3) <= max_head_dim, "orchard_jit: the last dimension of ", name,
                    " (head_dim) must be 1 to ", max_head_dim, ", got ", tensor.size(3));
  TORCH_CHECK_VALUE(tensor.size(3) == 1 || tensor.stride(3) == 1, "orchard_jit: the last dimension of ", name,
                    " must be dense (stride 1), got stride ", tensor.stride(3),
                    "; kernels read tensors in place and never copy them: pass ", name, ".contiguous()");
}

void check_same(const char* name, const at::Tensor& tensor, const at::Tensor& query) {
  TORCH_CHECK_TYPE(tensor.scalar_type() == query.scalar_type(), "orchard_jit: ", name, " is ", tensor.scalar_type(),
                   " but query is ", query.scalar_type(), "; they must have one dtype");
  TORCH_CHECK_VALUE(tensor.device() == query.device(), "orchard_jit: ", name, " is on ", tensor.device(),
                    " but query is on ", query.device(), "; they must be on one device");
  TORCH_CHECK_VALUE(tensor.size(0) == query.size(0), "orchard_jit: ", name, " has batch ", tensor.size(0),
                    " but query has ", query.size(0), "; they must be equal");
}

}  // namespace

void check_inputs(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, const std::string& causal) {
  check_form("query", query);
  check_form("key", key);
  check_form("value", value);
  check_same("key", key, query);
  check_same("value", value, query);
  TORCH_CHECK_VALUE(key.size(3) == query.size(3), "orchard_jit: key has head_dim ", key.size(3), " but query has ",
                    query.size(3), "; they must be equal");
  TORCH_CHECK_VALUE(value.size(1) == key.size(1), "orchard_jit: value has ", value.size(1), " heads but key has ",
                    key.size(1), "; they must be equal");
  TORCH_CHECK_VALUE(value.size(2) == key.size(2), "orchard_jit: value has length ", value.size(2), " but key has ",
                    key.size(2), "; they must be equal");
  TORCH_CHECK_VALUE(key.size(1) ? query.size(1) % key.size(1) == 0 : query.size(1) == 0, "orchard_jit: query has ",
                    query.size(1), " heads, which key's ", key.size(1), " heads do not divide");
  TORCH_CHECK_VALUE(causal == "none" || causal == "upper_left" || causal == "lower_right",
                    "orchard_jit: causal must be 'none', 'upper_left' or 'lower_right', got '", causal, "'");
}

void check_gradients(const at::Tensor& grad_out, const std::optional<at::Tensor>& grad_lse, const at::Tensor& out,
                     const at::Tensor& lse) {
  TORCH_CHECK_VALUE(grad_out.sizes() == out.sizes(), "orchard_jit: grad_out has shape ", grad_out.sizes(),
                    " but out has ", out.sizes(), "; they must be equal");
  TORCH_CHECK_TYPE(grad_out.scalar_type() == out.scalar_type(), "orchard_jit: grad_out is ", grad_out.scalar_type(),
                   " but out is ", out.scalar_type(), "; they must have one dtype");
  TORCH_CHECK_VALUE(!grad_lse || grad_lse->sizes() == lse.sizes(), "orchard_jit: grad_lse has shape ",
                    grad_lse->sizes(), " but lse has ", lse.sizes(), "; they must be equal");
}

std::optional<Request> request_for(Pass pass, const at::Tensor& query, const at::Tensor& value, bool causal) {
  const auto dtype = dtype_of(query);
  if (!dtype || query.dim() != 4 || value.dim() != 4 || !(query.is_cpu() || query.is_mps())) return std::nullopt;
  const auto head_dim = query.sym_size(3).maybe_as_int(), head_dim_v = value.sym_size(3).maybe_as_int();
  if (!head_dim || !head_dim_v) return std::nullopt;
  const auto fits = [](int64_t dim) { return dim >= 1 && dim <= max_head_dim; };
  if (!fits(*head_dim) || !fits(*head_dim_v)) return std::nullopt;
  return Request{query.is_mps() ? Backend::metal : Backend::cpu, pass, *dtype, causal, *head_dim, *head_dim_v};
}

}  // namespace orchard
