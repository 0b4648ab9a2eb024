// Autograd: the forward saves its output and log-sum-exp, the backward recomputes the rest.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/new_zeros.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/basic_ops.h>
#include <torch/csrc/autograd/functions/utils.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <type_traits>

#include "attention.h"
#include "requests.h"

namespace orchard {
namespace {

using at::IValue;
using torch::autograd::Node;
using torch::autograd::SavedVariable;
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

/// The backward's node in autograd's graph. It keeps the forward's arguments and results: tensors where autograd
/// watches over them, all other values, and the tensors' places, beside.
class AttentionBackward : public Node {
 public:
  static constexpr size_t kBiasEdge = 3, kSinksEdge = 4;

  explicit AttentionBackward(std::vector<IValue> arguments) : arguments_(std::move(arguments)) {
    for (IValue& argument : arguments_)
      if (argument.isTensor()) keep(argument);
    for (const Tensor& array : listed(arguments_[Arguments::kArrays])) tensors_.emplace_back(array, false);
    arguments_[Arguments::kArrays] = IValue();
  }

  /// The node becomes these tensors' history.
  void record(const Tensor& out, const Tensor& lse) {
    for (const Tensor* result : {&out, &lse}) torch::autograd::set_history(*result, getptr());
    out_ = SavedVariable(out, true);
    lse_ = SavedVariable(lse, true);
  }

  variable_list apply(variable_list&& gradients) override {
    const std::lock_guard<std::mutex> alone(mutex_);
    const Tensor out = out_.unpack(getptr()), lse = lse_.unpack(getptr());
    const bool of_bias = task_should_compute_output(kBiasEdge), of_sinks = task_should_compute_output(kSinksEdge);
    Stack stack;
    stack.reserve(Gradients::kCount);
    stack.emplace_back(gradients[0].defined() ? gradients[0] : out.new_zeros({1}).expand(out.sizes()));
    stack.push_back(gradients[1].defined() ? IValue(gradients[1]) : IValue());
    for (IValue& argument : arguments()) stack.push_back(std::move(argument));
    if (!of_sinks) stack[Gradients::kBefore + Arguments::kSinks] = IValue();
    torch::jit::push(stack, out, lse, of_bias);
    backward_operator().callBoxed(&stack);
    const auto gradient = [&](size_t i) { return stack[i].toTensor(); };
    return {gradient(0), gradient(1), gradient(2), of_bias ? gradient(3) : Tensor(), of_sinks ? gradient(4) : Tensor()};
  }

  void release_variables() override {
    const std::lock_guard<std::mutex> alone(mutex_);
    out_.reset_data();
    lse_.reset_data();
    for (SavedVariable& tensor : tensors_) tensor.reset_data();
  }

  std::string name() const override { return "OrchardAttentionBackward"; }

 private:
  void keep(IValue& argument) {
    tensors_.emplace_back(argument.toTensor(), false);
    argument = place();
  }

  static IValue place() { return Tensor(); }

  std::vector<IValue> arguments() const {
    auto tensor = tensors_.begin();
    std::vector<IValue> all = arguments_;
    for (IValue& argument : all)
      if (argument.isTensor()) argument = (tensor++)->unpack();
    std::vector<Tensor> arrays;
    for (; tensor != tensors_.end(); ++tensor) arrays.push_back(tensor->unpack());
    all[Arguments::kArrays] = std::move(arrays);
    return all;
  }

  SavedVariable out_, lse_;
  std::vector<SavedVariable> tensors_;
  std::vector<IValue> arguments_;
};

/// A new node as autograd holds it: with PyTorch's own counter since 2.13, in a std::shared_ptr before.
template <class T, class... Arguments>
auto make_node(Arguments&&... arguments) {
  using Pointer = decltype(std::declval<T&>().getptr());
  if constexpr (std::is_same_v<Pointer, std::shared_ptr<Node>>)
    return std::shared_ptr<T>(new T(std::forward<Arguments>(arguments)...), [](T* node) { deleteNode(node); });
  else
    return c10::make_intrusive<T>(std::forward<Arguments>(arguments)...);
}

}  // namespace

void autograd_attention(const c10::OperatorHandle& op, Stack* stack) {
  const auto arguments = torch::jit::last(*stack, Arguments::kPlain);
  refuse_tangents(arguments);
  if (!wants_gradient(arguments)) {
    at::AutoDispatchBelowADInplaceOrView below;
    return op.callBoxed(stack);
  }
  const auto& all = forward_operator().schema().arguments();
  for (size_t i = Arguments::kPlain; i < Arguments::kCount; ++i) stack->push_back(*all[i].default_value());
  autograd_forward(forward_operator(), stack);
  stack->pop_back();  // the log-sum-exp
}

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
  const auto node = make_node<AttentionBackward>(arguments.vec());
  node->set_next_edges(torch::autograd::collect_next_edges(a.query, a.key, a.value, a.bias.value_or(Tensor()),
                                                           a.sinks.value_or(Tensor())));
  at::AutoDispatchBelowADInplaceOrView below;
  forward_operator().callBoxed(stack);
  node->record((*stack)[stack->size() - 2].toTensor(), stack->back().toTensor());
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
