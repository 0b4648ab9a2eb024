// The operators' arguments as C++ reads them: the one place that knows their order in the schema, which Python
// defines (orchard_jit/operators.py). All kernels are boxed: what a caller's stack holds is handed on as it is.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/stack.h>

#include <optional>
#include <string>
#include <vector>

namespace orchard {

using at::Tensor;
using torch::jit::Stack;

/// The tensors of an argument that may be none.
std::vector<Tensor> listed(const at::IValue& tensors);

/// Those of the forward operator, which are also most of the backward's. The first `kPlain` are all that the attention
/// operator has.
struct Arguments {
  static constexpr size_t kPlain = 7, kBias = 8, kSinks = 9, kArrays = 17, kCount = 21;

  Tensor query, key, value;
  std::optional<double> scale;
  std::optional<int64_t> left, right;
  bool lower_right;
  std::optional<Tensor> mask, bias, sinks, seed, query_offsets, key_offsets, key_lengths;
  double dropout = 0;
  c10::SymInt longest_query = 0, longest_key = 0;  // varlen: of a sequence
  std::vector<Tensor> arrays;
  std::vector<double> scalars;
  std::string score, blocks;

  /// Reads `count` values, kPlain or kCount.
  explicit Arguments(const Stack& stack, size_t first = 0, size_t count = kCount);

  bool packed() const { return query_offsets.has_value(); }
};

/// Those that the backward operator has beside them: grad_out and grad_lse before, the others behind.
struct Gradients {
  static constexpr size_t kBefore = 2, kBehind = 3, kResults = 5;
  static constexpr size_t kCount = kBefore + Arguments::kCount + kBehind;

  Tensor grad_out;
  std::optional<Tensor> grad_lse;
  Tensor out, lse;
  bool of_bias;

  explicit Gradients(const Stack& stack, size_t first = 0);
};

/// Replaces the last `count` values of a stack, an operator's arguments, by its results.
template <class... Results>
void replace(Stack* stack, size_t count, Results&&... results) {
  torch::jit::drop(*stack, count);
  torch::jit::push(*stack, std::forward<Results>(results)...);
}

}  // namespace orchard
