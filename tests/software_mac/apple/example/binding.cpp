// The PyTorch side of the example: takes tensors apart and lends PyTorch's command buffer. No Objective-C here.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>
#include <torch/mps.h>

#include "example.h"

static at::Tensor run(const at::Tensor& a, const at::Tensor& b, c10::string_view kernel, c10::string_view source) {
  TORCH_CHECK(a.is_mps() && b.is_mps() && a.is_contiguous() && b.is_contiguous() && a.scalar_type() == at::kFloat,
              "expected contiguous float32 tensors on mps");
  at::Tensor out = at::empty({a.size(0), b.size(1)}, a.options());
  std::string source_text(source), kernel_name(kernel);
  char error[4096];
  ExampleCall call{};
  call.command_buffer = (void*)torch::mps::get_command_buffer();
  call.queue = (void*)torch::mps::get_dispatch_queue();
  call.source = source_text.c_str();
  call.kernel = kernel_name.c_str();
  call.a = a.storage().mutable_data();
  call.b = b.storage().mutable_data();
  call.out = out.storage().mutable_data();
  call.rows = (uint32_t)a.size(0);
  call.columns = (uint32_t)b.size(1);
  call.depth = (uint32_t)a.size(1);
  call.error = error;
  call.error_capacity = sizeof error;
  TORCH_CHECK(example_run(&call) == 0, error);
  return out;
}

TORCH_LIBRARY(software_mac_example, library) {
  library.def("run(Tensor a, Tensor b, str kernel, str source) -> Tensor", run);
}
