#include "checks.h"

#include <ATen/ops/_to_copy.h>
#include <c10/util/Exception.h>

#include <array>
#include <mutex>

#include "requests.h"

namespace orchard {
namespace {

void check_form(const char* name, const Tensor& tensor) {
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

void check_device(const char* name, const Tensor& tensor, const Tensor& query) {
  TORCH_CHECK_VALUE(tensor.device() == query.device(), "orchard_jit: ", name, " is on ", tensor.device(),
                    " but query is on ", query.device(), "; they must be on one device");
}

void check_same(const char* name, const Tensor& tensor, const Tensor& query) {
  TORCH_CHECK_TYPE(tensor.scalar_type() == query.scalar_type(), "orchard_jit: ", name, " is ", tensor.scalar_type(),
                   " but query is ", query.scalar_type(), "; they must have one dtype");
  check_device(name, tensor, query);
  TORCH_CHECK_VALUE(tensor.size(0) == query.size(0), "orchard_jit: ", name, " has batch ", tensor.size(0),
                    " but query has ", query.size(0), "; they must be equal");
}

/// A tensor with a place for every score, or 1 for all along a dimension.
void check_plane(const char* name, const Tensor& tensor, const Arguments& a) {
  check_device(name, tensor, a.query);
  TORCH_CHECK_VALUE(!a.packed(), "orchard_jit: ", name, " can't be combined with packed sequences (cu_seqlens), which ",
                    "have no common (batch, heads, queries, keys) shape; use a ScoreMod with a mask or a score expression");
  const std::array<int64_t, 4> scores{a.query.size(0), a.query.size(1), a.query.size(2), a.key.size(2)};
  bool fits = tensor.dim() == 4;
  for (int i = 0; fits && i < 4; ++i) fits = tensor.size(i) == 1 || tensor.size(i) == scores[i];
  TORCH_CHECK_VALUE(fits, "orchard_jit: ", name, " has shape ", tensor.sizes(),
                    ", which does not broadcast to the scores' (batch, heads, queries, keys), ", at::IntArrayRef(scores));
}

/// A short vector that kernels read as it lies.
void check_vector(const char* name, const Tensor& tensor, at::ScalarType dtype, int64_t size, const Tensor& query) {
  check_device(name, tensor, query);
  TORCH_CHECK_TYPE(tensor.scalar_type() == dtype, "orchard_jit: ", name, " must be ", dtype, ", got ",
                   tensor.scalar_type());
  TORCH_CHECK_VALUE(tensor.dim() == 1 && tensor.size(0) == size, "orchard_jit: ", name, " must have shape [", size,
                    "], got ", tensor.sizes());
  TORCH_CHECK_VALUE(tensor.is_contiguous(), "orchard_jit: ", name, " must be contiguous, got stride ", tensor.stride(0));
}

/// Numbers that were found good, by the tensor they are in. Layers of one model are given the same tensor.
class KnownToBeGood {
 public:
  bool contains(const Tensor& tensor, int64_t total, int64_t longest) {
    if (tensor.is_inference()) return false;  // it has no version
    const std::lock_guard lock(guard_);
    for (const auto& entry : entries_)
      // The weak pointer keeps the address from being given to another tensor.
      if (entry.tensor && entry.tensor->_unsafe_get_target() == tensor.unsafeGetTensorImpl() &&
          entry.version == tensor._version() && entry.total == total && entry.longest == longest)
        return true;
    return false;
  }

  void add(const Tensor& tensor, int64_t total, int64_t longest) {
    if (tensor.is_inference()) return;
    const std::lock_guard lock(guard_);
    entries_[next_++ % entries_.size()] = {Weak(tensor.getIntrusivePtr()), tensor._version(), total, longest};
  }

 private:
  using Weak = c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>;
  struct Entry {
    std::optional<Weak> tensor;
    int64_t version = 0, total = 0, longest = 0;
  };
  std::mutex guard_;
  std::array<Entry, 8> entries_;
  size_t next_ = 0;
};

/// Calls check(values, count) unless the tensor was found good before.
template <class Check>
void check_values(const Tensor& tensor, int64_t total, int64_t longest, Check check) {
  static KnownToBeGood known;
  if (tensor.is_cpu()) return check(tensor.const_data_ptr<int32_t>(), tensor.numel());
  if (known.contains(tensor, total, longest)) return;
  const Tensor here = at::_to_copy(tensor, tensor.options().device(at::kCPU));
  check(here.const_data_ptr<int32_t>(), here.numel());
  known.add(tensor, total, longest);
}

void check_offsets(const char* name, const Tensor& offsets, const char* rows, int64_t total, int64_t longest) {
  check_values(offsets, total, longest, [&](const int32_t* offset, int64_t count) {
    TORCH_CHECK_VALUE(offset[0] == 0, "orchard_jit: ", name, " must begin with 0, got ", offset[0]);
    for (int64_t i = 1; i < count; ++i) {
      TORCH_CHECK_VALUE(offset[i - 1] <= offset[i], "orchard_jit: ", name, " must not fall, got ", offset[i - 1], " at ",
                        i - 1, " and ", offset[i], " at ", i);
      TORCH_CHECK_VALUE(offset[i] - offset[i - 1] <= longest, "orchard_jit: ", name, " has a sequence of ",
                        offset[i] - offset[i - 1], " rows at ", i - 1, ", but the longest was said to have ", longest);
    }
    TORCH_CHECK_VALUE(offset[count - 1] == total, "orchard_jit: ", name, " must end with the number of ", rows, ", ",
                      total, ", got ", offset[count - 1]);
  });
}

}  // namespace

void check_arguments(const Arguments& a) {
  check_form("query", a.query);
  check_form("key", a.key);
  check_form("value", a.value);
  check_same("key", a.key, a.query);
  check_same("value", a.value, a.query);
  const int64_t heads = a.query.size(1), kv_heads = a.key.size(1);
  TORCH_CHECK_VALUE(a.key.size(3) == a.query.size(3), "orchard_jit: key has head_dim ", a.key.size(3), " but query has ",
                    a.query.size(3), "; they must be equal");
  TORCH_CHECK_VALUE(a.value.size(1) == kv_heads, "orchard_jit: value has ", a.value.size(1), " heads but key has ",
                    kv_heads, "; they must be equal");
  TORCH_CHECK_VALUE(a.value.size(2) == a.key.size(2), "orchard_jit: value has length ", a.value.size(2),
                    " but key has ", a.key.size(2), "; they must be equal");
  TORCH_CHECK_VALUE(kv_heads ? heads % kv_heads == 0 : heads == 0, "orchard_jit: query has ", heads,
                    " heads, which key's ", kv_heads, " heads do not divide");

  if (a.mask) {
    check_plane("mask", *a.mask, a);
    TORCH_CHECK_TYPE(a.mask->scalar_type() == at::kBool, "orchard_jit: mask must be bool, got ", a.mask->scalar_type());
  }
  if (a.bias) {
    check_plane("bias", *a.bias, a);
    TORCH_CHECK_TYPE(a.bias->scalar_type() == a.query.scalar_type() || a.bias->scalar_type() == at::kFloat,
                     "orchard_jit: bias must be ", a.query.scalar_type(), " as query is, or Float, got ",
                     a.bias->scalar_type());
  }
  const auto lse_dtype = a.query.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  if (a.sinks) check_vector("sinks", *a.sinks, lse_dtype, heads, a.query);
  TORCH_CHECK_VALUE(a.dropout >= 0 && a.dropout <= 1, "orchard_jit: dropout must be 0 to 1, got ", a.dropout);
  TORCH_CHECK_VALUE((a.dropout > 0) == a.seed.has_value(), "orchard_jit: dropout and a seed belong together, got dropout ",
                    a.dropout, a.seed ? " and a seed" : " and no seed");
  if (a.seed) check_vector("seed", *a.seed, at::kLong, 1, a.query);

  TORCH_CHECK_VALUE(a.query_offsets.has_value() == a.key_offsets.has_value(),
                    "orchard_jit: query_offsets and key_offsets belong together, got only one of them");
  if (a.packed()) {
    TORCH_CHECK_VALUE(!a.key_lengths, "orchard_jit: key_lengths can't be combined with packed sequences (cu_seqlens)");
    TORCH_CHECK_VALUE(a.query.size(0) == 1, "orchard_jit: packed sequences have batch 1, got ", a.query.size(0));
    const int64_t offsets = a.query_offsets->dim() == 1 ? a.query_offsets->size(0) : 0;
    TORCH_CHECK_VALUE(offsets >= 1, "orchard_jit: cu_seqlens_q must have shape [sequences + 1], got ",
                      a.query_offsets->sizes());
    check_vector("cu_seqlens_q", *a.query_offsets, at::kInt, offsets, a.query);
    check_vector("cu_seqlens_k", *a.key_offsets, at::kInt, offsets, a.query);
  }
  if (a.key_lengths) check_vector("key_lengths", *a.key_lengths, at::kInt, a.query.size(0), a.query);
  TORCH_CHECK_VALUE(a.arrays.size() <= ORCHARD_MAX_ARRAYS && a.scalars.size() <= ORCHARD_MAX_SCALARS,
                    "orchard_jit: a score function has at most ", ORCHARD_MAX_ARRAYS, " tensors and ",
                    ORCHARD_MAX_SCALARS, " scalars, got ", a.arrays.size(), " and ", a.scalars.size());
  for (const auto& array : a.arrays) {
    check_device("a score function's tensor", array, a.query);
    TORCH_CHECK_VALUE(array.dim() >= 1 && array.dim() <= 4 && array.numel() > 0,
                      "orchard_jit: a score function's tensor must have 1 to 4 dimensions and elements, got shape ",
                      array.sizes());
  }
}

void check_sequences(const Arguments& a) {
  if (a.packed()) {
    check_offsets("cu_seqlens_q", *a.query_offsets, "queries", a.query.size(2), a.longest_query.expect_int());
    check_offsets("cu_seqlens_k", *a.key_offsets, "keys", a.key.size(2), a.longest_key.expect_int());
  }
  if (a.key_lengths) {
    const int64_t longest = a.key.size(2);
    check_values(*a.key_lengths, 0, longest, [&](const int32_t* lengths, int64_t count) {
      for (int64_t i = 0; i < count; ++i)
        TORCH_CHECK_VALUE(0 <= lengths[i] && lengths[i] <= longest, "orchard_jit: key_lengths must be 0 to ", longest,
                          ", the length of key, got ", lengths[i], " at ", i);
    });
  }
}

void check_gradients(const Arguments& a, const Gradients& g) {
  TORCH_CHECK_VALUE(g.grad_out.sizes() == g.out.sizes(), "orchard_jit: grad_out has shape ", g.grad_out.sizes(),
                    " but out has ", g.out.sizes(), "; they must be equal");
  TORCH_CHECK_TYPE(g.grad_out.scalar_type() == g.out.scalar_type(), "orchard_jit: grad_out is ",
                   g.grad_out.scalar_type(), " but out is ", g.out.scalar_type(), "; they must have one dtype");
  TORCH_CHECK_VALUE(!g.grad_lse || g.grad_lse->sizes() == g.lse.sizes(), "orchard_jit: grad_lse has shape ",
                    g.grad_lse->sizes(), " but lse has ", g.lse.sizes(), "; they must be equal");
  TORCH_CHECK_VALUE(!g.of_bias || a.bias, "orchard_jit: the gradient of a bias is wanted, but there is no bias");
}

}  // namespace orchard
