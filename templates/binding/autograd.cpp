// Autograd: the forward saves its output and log-sum-exp, the backward recomputes the rest.
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/basic_ops.h>

#include "attention.h"
#include "inputs.h"

namespace orchard {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

template <class... Tensors>
bool wants_gradient(const Tensors&... tensors) {
  return at::GradMode::is_enabled() && (tensors.requires_grad() || ...);
}

struct Attention : torch::autograd::Function<Attention> {
  static variable_list forward(AutogradContext* context, const Tensor& query, const Tensor& key, const Tensor& value,
                               std::optional<double> scale, const std::string& causal) {
    at::AutoDispatchBelowADInplaceOrView below;
    auto [out, lse] = dispatch_forward(query, key, value, scale, causal);
    context->save_for_backward({query, key, value, out, lse});
    context->saved_data["scale"] = scale;
    context->saved_data["causal"] = causal;
    context->set_materialize_grads(false);
    return {out, lse};
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const auto saved = context->get_saved_variables();
    const Tensor &query = saved[0], &key = saved[1], &value = saved[2], &out = saved[3], &lse = saved[4];
    const Tensor grad_out = gradients[0].defined() ? gradients[0] : out.new_zeros({1}).expand(out.sizes());
    const auto grad_lse = gradients[1].defined() ? std::optional<Tensor>(gradients[1]) : std::nullopt;
    auto [grad_query, grad_key, grad_value] =
        dispatch_backward(grad_out, grad_lse, query, key, value, out, lse,
                          context->saved_data["scale"].toOptional<double>(), context->saved_data["causal"].toStringRef());
    return {grad_query, grad_key, grad_value, Tensor(), Tensor()};
  }
};

}  // namespace

ForwardResult autograd_forward(const Tensor& query, const Tensor& key, const Tensor& value,
                               std::optional<double> scale, std::string causal) {
  if (!wants_gradient(query, key, value)) {
    at::AutoDispatchBelowADInplaceOrView below;
    return dispatch_forward(query, key, value, scale, std::move(causal));
  }
  const bool is_causal = causal != "none";
  const auto request = request_for(Pass::forward, query, value, is_causal);
  if (request) prepare({*request, *request_for(Pass::backward, query, value, is_causal)});
  auto results = Attention::apply(query, key, value, scale, causal);
  return {std::move(results[0]), std::move(results[1])};
}

BackwardResult autograd_backward(const Tensor& grad_out, const std::optional<Tensor>& grad_lse, const Tensor& query,
                                 const Tensor& key, const Tensor& value, const Tensor& out, const Tensor& lse,
                                 std::optional<double> scale, std::string causal) {
  BackwardResult results;
  {
    at::AutoDispatchBelowADInplaceOrView below;
    results = dispatch_backward(grad_out, grad_lse, query, key, value, out, lse, scale, std::move(causal));
  }
  if (!wants_gradient(grad_out, query, key, value)) return results;
  // create_graph=True is fine as long as nobody differentiates through it. DelayedError hands its inputs on
  // with a node that throws, if they require a gradient.
  auto& [grad_query, grad_key, grad_value] = results;
  auto refusing = torch::autograd::DelayedError(
                      "orchard_jit: the backward of attention can't be differentiated again (double backward); call "
                      "PyTorch's attention under torch.nn.attention.sdpa_kernel(SDPBackend.MATH) where you need that",
                      3)
                      .apply({grad_query.requires_grad_(), grad_key.requires_grad_(), grad_value.requires_grad_()});
  return {refusing[0], refusing[1], refusing[2]};
}

}  // namespace orchard
