"""A call that is traced into a graph: whether kernels will take it has to be told from shapes and strides."""

from __future__ import annotations

import torch

from orchard_jit.call import autocast_dtype
from orchard_jit.operators import BACKEND_OF_DEVICE
from orchard_jit.variant import DTYPES, MAX_HEAD_DIM


def is_traced(*tensors: torch.Tensor | None) -> bool:
    """Whether there are no numbers to compute with, or not the ones that kernels will see."""
    return (
        torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
        or any(
            tensor is not None
            and type(tensor) not in (torch.Tensor, torch.nn.Parameter)
            and not tensor.is_nested
            for tensor in tensors
        )
    )


def check(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor | None
) -> None:
    """What templates/binding/checks.cpp checks when the graph runs, which is too late to fall back."""
    inputs = {"query": query, "key": key, "value": value}
    tensors = inputs if attn_mask is None else {**inputs, "attn_mask": attn_mask}
    for name, tensor in tensors.items():
        if tensor.device != query.device or tensor.device.type not in BACKEND_OF_DEVICE:
            raise NotImplementedError(f"{name} is on {tensor.device}; kernels take cpu or mps, one device")
        if tensor.layout is not torch.strided:
            raise NotImplementedError(f"{name} has layout {tensor.layout}; kernels read torch.strided")
    for name, tensor in inputs.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in DTYPES or (dtype == "float64" and tensor.device.type != "cpu"):
            raise TypeError(f"{name} is {dtype}, for which there is no kernel on {tensor.device.type}")
        if tensor.dtype != query.dtype and autocast_dtype(query.device.type) is None:
            raise TypeError(f"{name} is {tensor.dtype} but query is {query.dtype}")
        if not 1 <= tensor.shape[-1] <= MAX_HEAD_DIM:
            raise ValueError(f"the head_dim of {name} must be 1 to {MAX_HEAD_DIM}, got {tensor.shape[-1]}")
        # Below vmap the last dimension of memory is hidden, and made dense where it has to be.
        if (
            tensor.shape[-1] > 1
            and tensor.stride(-1) != 1
            and not torch._C._are_functorch_transforms_active()
        ):
            raise ValueError(f"the last dimension of {name} must be dense, got stride {tensor.stride(-1)}")
    if key.shape[-2] != value.shape[-2]:
        raise ValueError(f"value has length {value.shape[-2]} but key has {key.shape[-2]}")
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(f"key has head_dim {key.shape[-1]} but query has {query.shape[-1]}")
    if query.dim() > 2 and (key.shape[-3] != value.shape[-3] or query.shape[-3] % max(key.shape[-3], 1)):
        heads = ", ".join(str(tensor.shape[-3]) for tensor in inputs.values())
        raise ValueError(f"the heads of query, key and value don't go together: {heads}")
    if attn_mask is not None:
        if attn_mask.dtype not in (torch.bool, torch.float32, query.dtype):
            raise TypeError(f"attn_mask must be bool, float32 or {query.dtype}, got {attn_mask.dtype}")
        scores = (*query.shape[:-1], key.shape[-2])
        wrong = attn_mask.dim() > len(scores) or any(
            size not in (1, wanted)
            for size, wanted in zip(reversed(attn_mask.shape), reversed(scores), strict=False)
        )
        if wrong:
            raise ValueError(f"attn_mask must broadcast to {scores}, got {tuple(attn_mask.shape)}")


def describe(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None,
    dropout_p: float,
    is_causal: bool,
) -> str:
    """The call in a few words."""
    sizes = " ".join(str(tuple(tensor.shape)) for tensor in (query, key, value))
    mask = "" if attn_mask is None else f" mask {str(attn_mask.dtype).removeprefix('torch.')}"
    return (
        f"{query.device.type} {str(query.dtype).removeprefix('torch.')} {sizes}{mask}"
        f"{' causal' if is_causal else ''}{' dropout' if dropout_p else ''}"
    )
