// Autograd: the forward saves its output and log-sum-exp, the backward recomputes the rest.
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/basic_ops.h>

#include <algorithm>

#include "attention.h"
#include "requests.h"

namespace orchard {
namespace {

using at::IValue;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

bool wants_gradient(at::ArrayRef<IValue> values) {
  return at::GradMode::is_enabled() && std::any_of(values.begin(), values.end(), [](const IValue& value) {
           return value.isTensor() && value.toTensor().requires_grad();
         });
}

/// Whoever differentiates forward would get no derivative, and no word of it either.
void refuse_tangents(at::ArrayRef<IValue> values) {
  for (const IValue& value : values)
    TORCH_CHECK_NOT_IMPLEMENTED(!value.isTensor() || !value.toTensor()._fw_grad(/*level=*/0).defined(),
                                "orchard_jit: forward-mode differentiation (jvp, jacfwd) of attention is not supported; "
                                "use grad, vjp or jacrev, or PyTorch's attention under "
                                "torch.nn.attention.sdpa_kernel(SDPBackend.MATH)");
}

/// Keeps an operator's arguments: tensors where autograd watches over them, their places and all other values beside.
void save(AutogradContext* context, std::vector<IValue> arguments, const Tensor& out, const Tensor& lse) {
  variable_list tensors{out, lse};
  const IValue place = Tensor();
  for (IValue& argument : arguments) {
    if (!argument.isTensor()) continue;
    tensors.push_back(argument.toTensor());
    argument = place;
  }
  const auto arrays = listed(arguments[Arguments::kArrays]);
  arguments[Arguments::kArrays] = place;
  tensors.insert(tensors.end(), arrays.begin(), arrays.end());
  context->save_for_backward(std::move(tensors));
  context->saved_data["arguments"] = c10::ivalue::Tuple::create(std::move(arguments));
}

/// The arguments again, from what `save` kept.
Stack saved_arguments(AutogradContext* context, const variable_list& tensors) {
  const auto& saved = context->saved_data["arguments"].toTupleRef().elements();
  Stack arguments(saved.begin(), saved.end());
  auto next = tensors.begin() + 2;
  for (size_t i = 0; i < arguments.size(); ++i)
    if (arguments[i].isTensor() && i != Arguments::kArrays) arguments[i] = *next++;
  arguments[Arguments::kArrays] = std::vector<Tensor>(next, tensors.end());
  return arguments;
}

/// Autograd sees the tensors that may have a gradient; the stack holds all arguments.
struct Attention : torch::autograd::Function<Attention> {
  static variable_list forward(AutogradContext* context, const Tensor& /*query*/, const Tensor& /*key*/,
                               const Tensor& /*value*/, const std::optional<Tensor>& /*bias*/,
                               const std::optional<Tensor>& /*sinks*/, Stack* stack) {
    at::AutoDispatchBelowADInplaceOrView below;
    std::vector<IValue> arguments = torch::jit::last(stack, Arguments::kCount).vec();
    forward_operator().callBoxed(stack);
    Tensor out, lse;
    torch::jit::pop(stack, out, lse);
    save(context, std::move(arguments), out, lse);
    context->set_materialize_grads(false);
    return {out, lse};
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const variable_list saved = context->get_saved_variables();
    const Tensor &out = saved[0], &lse = saved[1];
    Stack arguments = saved_arguments(context, saved);
    // Edges are counted without inputs that are none.
    size_t edge = 3;
    const bool of_bias = arguments[Arguments::kBias].isTensor() && context->needs_input_grad(edge++);
    const bool of_sinks = arguments[Arguments::kSinks].isTensor() && context->needs_input_grad(edge++);
    if (!of_sinks) arguments[Arguments::kSinks] = IValue();

    Stack stack;
    stack.push_back(gradients[0].defined() ? gradients[0] : out.new_zeros({1}).expand(out.sizes()));
    stack.push_back(gradients[1].defined() ? IValue(gradients[1]) : IValue());
    stack.insert(stack.end(), arguments.begin(), arguments.end());
    torch::jit::push(stack, out, lse, of_bias);
    backward_operator().callBoxed(&stack);
    const auto gradient = [&](size_t i) { return stack[i].toTensor(); };
    return {gradient(0), gradient(1), gradient(2), of_bias ? gradient(3) : Tensor(), of_sinks ? gradient(4) : Tensor(),
            Tensor()};
  }
};

}  // namespace

void autograd_forward(const c10::OperatorHandle&, Stack* stack) {
  const auto arguments = torch::jit::last(*stack, Arguments::kCount);
  refuse_tangents(arguments);
  for (const Tensor& array : listed(arguments[Arguments::kArrays]))
    TORCH_CHECK_NOT_IMPLEMENTED(!wants_gradient({array}), "orchard_jit: a tensor of the score function requires a ",
                                "gradient, which kernels don't give; detach it, or pass what it adds as a bias");
  if (!wants_gradient(arguments)) {
    at::AutoDispatchBelowADInplaceOrView below;
    return forward_operator().callBoxed(stack);
  }
  const Arguments a(*stack, stack->size() - Arguments::kCount);
  prepare(requests_of_training(a, a.bias && a.bias->requires_grad()));
  auto results = Attention::apply(a.query, a.key, a.value, a.bias, a.sinks, stack);
  torch::jit::push(*stack, std::move(results[0]), std::move(results[1]));
}

void autograd_backward(const c10::OperatorHandle&, Stack* stack) {
  const auto arguments = torch::jit::last(*stack, Gradients::kCount);
  refuse_tangents(arguments);
  variable_list differentiable;
  for (const IValue& argument : arguments)
    if (wants_gradient({argument})) differentiable.push_back(argument.toTensor());
  {
    at::AutoDispatchBelowADInplaceOrView below;
    backward_operator().callBoxed(stack);
  }
  if (differentiable.empty()) return;
  // create_graph=True is fine as long as nobody differentiates through it. DelayedError hands its inputs on with a
  // node that throws. The arguments are among them, so that this node lies on every way back to them.
  variable_list gradients;
  for (const IValue& gradient : torch::jit::pop(*stack, Gradients::kResults)) gradients.push_back(gradient.toTensor());
  gradients.insert(gradients.end(), differentiable.begin(), differentiable.end());
  const auto count = static_cast<int64_t>(gradients.size());
  gradients = torch::autograd::DelayedError(
                  "orchard_jit: the backward of attention can't be differentiated again (double backward); call "
                  "PyTorch's attention under torch.nn.attention.sdpa_kernel(SDPBackend.MATH) where you need that",
                  count)
                  .apply(std::move(gradients));
  for (size_t i = 0; i < Gradients::kResults; ++i) torch::jit::push(*stack, std::move(gradients[i]));
}

}  // namespace orchard
