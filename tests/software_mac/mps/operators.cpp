// The operators of device "mps": those that make, copy and reshape memory are here, all others run on the CPU.
#include <ATen/EmptyTensor.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_local_scalar_dense.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/_scaled_dot_product_attention_math.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_as_complex_native.h>
#include <ATen/ops/view_as_real_native.h>
#include <ATen/ops/view_native.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include "generator.h"
#include "memory.h"

namespace software_mac {
namespace {

using at::IntArrayRef;
using at::Tensor;
constexpr c10::DispatchKeySet kKeys(c10::DispatchKey::MPS);

at::ScalarType supported(std::optional<at::ScalarType> dtype) {
  at::ScalarType type = c10::dtype_or_default(dtype);
  TORCH_CHECK_TYPE(type != at::kDouble,
                   "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support "
                   "float64. Please use float32 instead.");
  return type;
}

// Making

Tensor empty(IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
             std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, allocator(), kKeys, supported(dtype), format);
}

Tensor empty_strided(IntArrayRef size, IntArrayRef stride, std::optional<at::ScalarType> dtype,
                     std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, allocator(), kKeys, supported(dtype));
}

// Copying

Tensor& copy_(Tensor& self, const Tensor& source, bool) {
  cpu_alias(self).copy_(cpu_alias(source));
  return self;
}

Tensor _copy_from(const Tensor& source, const Tensor& destination, bool) {
  cpu_alias(destination).copy_(cpu_alias(source));
  return destination;
}

Tensor _copy_from_and_resize(const Tensor& source, const Tensor& destination) {
  at::native::resize_output(destination, source.sizes());
  cpu_alias(destination).copy_(cpu_alias(source));
  return destination;
}

at::Scalar _local_scalar_dense(const Tensor& self) { return at::_local_scalar_dense(cpu_alias(self)); }

// Reshaping

const Tensor& resize_(const Tensor& self, IntArrayRef size, std::optional<at::MemoryFormat> format) {
  auto* tensor = self.unsafeGetTensorImpl();
  if (tensor->sizes() != size) {
    grow(self.storage(), at::detail::computeStorageNbytesContiguous(size, self.element_size(), self.storage_offset()));
    tensor->set_sizes_contiguous(size);
  }
  if (format) tensor->empty_tensor_restride(*format);
  return self;
}

Tensor& set_storage(Tensor& self, at::Storage source, int64_t offset, IntArrayRef size, IntArrayRef stride) {
  at::native::checkSetStorage(self, source, offset, size, stride);
  auto* tensor = self.unsafeGetTensorImpl();
  tensor->set_storage_offset(offset);
  if (stride.data())
    tensor->set_sizes_and_strides(size, stride);
  else
    tensor->set_sizes_contiguous(size);
  grow(self.storage(), at::detail::computeStorageNbytes(size, self.strides(), self.element_size(), offset));
  return self;
}

Tensor& set_empty(Tensor& self) {
  at::Storage nothing(at::Storage::use_byte_size_t(), 0, allocator(), true);
  return set_storage(self, nothing, 0, {0}, {});
}

// What PyTorch chooses by device in a table that a Linux build cannot extend

Tensor scaled_dot_product_attention(const Tensor& query, const Tensor& key, const Tensor& value,
                                    const std::optional<Tensor>& mask, double dropout, bool is_causal,
                                    std::optional<double> scale, bool enable_gqa) {
  std::optional<Tensor> bias = mask;
  if (mask && mask->scalar_type() == at::kBool)
    bias = at::zeros_like(*mask, query.options()).masked_fill(mask->logical_not(), -INFINITY);
  return std::get<0>(at::_scaled_dot_product_attention_math(query, key, value, bias, dropout, is_causal, std::nullopt,
                                                            scale, enable_gqa));
}

// Everything else

/// Gives a random operator the CPU generator behind the mps one that it was called with, or behind the default one.
void replace_generators(const c10::FunctionSchema& schema, torch::jit::Stack& stack) {
  size_t first = stack.size() - schema.arguments().size();
  for (size_t i = 0; i < schema.arguments().size(); ++i) {
    const auto& type = schema.arguments()[i].type();
    auto* optional = type->castRaw<c10::OptionalType>();
    if ((optional ? optional->getElementType() : type)->kind() != c10::TypeKind::GeneratorType) continue;
    c10::IValue& argument = stack[first + i];
    at::Generator chosen = argument.isNone() ? default_generator() : argument.toGenerator();
    if (chosen.device() == kDevice) argument = cpu_generator(chosen);
  }
}

void run_on_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  replace_generators(op.schema(), *stack);
  at::native::cpu_fallback(op, stack);  // its copies wait for the GPU
}

TORCH_LIBRARY_IMPL(aten, MPS, library) {
  library.impl("empty.memory_format", empty);
  library.impl("empty_strided", empty_strided);
  library.impl("copy_", copy_);
  library.impl("_copy_from", _copy_from);
  library.impl("_copy_from_and_resize", _copy_from_and_resize);
  library.impl("_local_scalar_dense", _local_scalar_dense);
  library.impl("resize_", resize_);
  library.impl("set_", set_empty);
  library.impl("set_.source_Tensor", at::native::set_tensor_);
  library.impl("set_.source_Storage", at::native::set_);
  library.impl("set_.source_Storage_storage_offset", set_storage);
  library.impl("as_strided", at::native::as_strided_tensorimpl);
  library.impl("view", at::native::view);
  library.impl("_reshape_alias", at::native::_reshape_alias);
  library.impl("unfold", at::native::unfold);
  library.impl("view_as_real", at::native::view_as_real);
  library.impl("view_as_complex", at::native::view_as_complex);
  library.impl("scaled_dot_product_attention", scaled_dot_product_attention);
}

TORCH_LIBRARY_IMPL(aten, AutogradMPS, library) {
  library.impl("scaled_dot_product_attention", scaled_dot_product_attention);
}

TORCH_LIBRARY_IMPL(_, MPS, library) { library.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_cpu>()); }

}  // namespace
}  // namespace software_mac
