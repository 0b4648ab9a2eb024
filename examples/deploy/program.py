"""What is to be deployed: causal attention with gradients, checked against PyTorch's own."""

import torch
from torch.nn.functional import scaled_dot_product_attention

import orchard_jit

torch.manual_seed(0)
inputs = [torch.randn(1, 4, 100, 64, requires_grad=True) for _ in range(3)]
out = orchard_jit.flash_attention(*inputs, causal=True)
expected = scaled_dot_product_attention(*inputs, is_causal=True)
gradients, theirs = (torch.autograd.grad(result.square().sum(), inputs) for result in (out, expected))
# Some gradients are 0, where PyTorch's rounding leaves a hundred-thousandth.
torch.testing.assert_close((out, *gradients), (expected, *theirs), rtol=1e-5, atol=1e-4)
print("attention and its gradients are right")
