"""Ways in for code that was written for PyTorch's, transformers' or flash-attn's attention."""
