#include "arguments.h"

#include <ATen/core/ivalue.h>

namespace orchard {
namespace {

/// Takes one value after the other.
class Reader {
 public:
  Reader(const Stack& stack, size_t first) : next_(stack.begin() + static_cast<std::ptrdiff_t>(first)) {}

  Tensor tensor() { return (next_++)->toTensor(); }
  std::optional<Tensor> optional_tensor() {
    // A caller in C++ may say "none" by an undefined tensor.
    auto value = (next_++)->toOptional<Tensor>();
    return value && value->defined() ? value : std::nullopt;
  }
  template <class T>
  std::optional<T> optional() {
    return (next_++)->toOptional<T>();
  }
  const at::IValue& value() { return *next_++; }

 private:
  Stack::const_iterator next_;
};

}  // namespace

std::vector<Tensor> listed(const at::IValue& tensors) {
  return tensors.isTensorList() ? tensors.toTensorVector() : std::vector<Tensor>();
}

Arguments::Arguments(const Stack& stack, size_t first, size_t count) {
  Reader reader(stack, first);
  query = reader.tensor();
  key = reader.tensor();
  value = reader.tensor();
  scale = reader.optional<double>();
  left = reader.optional<int64_t>();
  right = reader.optional<int64_t>();
  lower_right = reader.value().toBool();
  if (count == kPlain) return;
  for (auto* tensor : {&mask, &bias, &sinks, &seed, &query_offsets, &key_offsets, &key_lengths})
    *tensor = reader.optional_tensor();
  dropout = reader.value().toDouble();
  longest_query = reader.value().toSymInt();
  longest_key = reader.value().toSymInt();
  arrays = listed(reader.value());
  scalars = reader.value().toDoubleVector();
  score = reader.value().toStringRef();
  blocks = reader.value().toStringRef();
}

Gradients::Gradients(const Stack& stack, size_t first) {
  Reader before(stack, first), behind(stack, first + kBefore + Arguments::kCount);
  grad_out = before.tensor();
  grad_lse = before.optional_tensor();
  out = behind.tensor();
  lse = behind.tensor();
  of_bias = behind.value().toBool();
}

}  // namespace orchard
