"""Hugging Face transformers: `attn_implementation="orchard_jit"`, registered by importing this module.

A mask of the library is a function of indices. Where it is one of the library's own (causal, windows,
packed sequences, padding), what it says is handed to the kernels, which skip what it hides; else they
read the tensor that the function is turned into.
"""

from __future__ import annotations

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from orchard_jit import call, dynamo, packed
from orchard_jit.call import Arguments
from orchard_jit.integrations import traced
from orchard_jit.integrations.report import LEDGER
from orchard_jit.integrations.transformers_masks import Structure, mask, structure_of
from orchard_jit.options import Options, resolve

NAME = "orchard_jit"
"""What to give as `attn_implementation`."""


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    cache: object = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    cu_seq_lens_k: torch.Tensor | None = None,
    max_length_q: int | None = None,
    max_length_k: int | None = None,
    **others: object,
) -> tuple[torch.Tensor, None]:
    """The library's attention function: (B, H, S, D) in, (B, S, H, D) out, no weights.

    Raises:
        NotImplementedError: A paged cache, or the weights (`output_attentions`), which kernels don't have.
        ValueError: Contradicting masks.
        TypeError, ValueError, OrchardError: As in `orchard_jit.flash_attention`.

    """
    if cache is not None:
        raise NotImplementedError("attn_implementation='orchard_jit' has no paged cache; use 'sdpa'")
    if others.get("output_attentions"):
        raise NotImplementedError("attn_implementation='orchard_jit' gives no weights; use 'eager'")
    rest: Options = {"dropout_p": dropout, "scale": scaling, "softcap": softcap, "sinks": s_aux}
    structure: Structure | None
    if attention_mask is None:
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        _require_no_window(sliding_window, key)
        # The library's convention: without a mask a decoder's first query stands at the first key, and a
        # single one sees all.
        structure = Structure(right=0) if causal and query.shape[2] > 1 else Structure()
    else:
        structure = structure_of(attention_mask)
    if cu_seq_lens_q is not None and cu_seq_lens_k is not None:
        if structure is None or structure.padding is not None:
            raise ValueError("cu_seq_lens_q and a mask were given, which say different things")
        lengths = max_length_q, max_length_k
        longest = [
            int(offsets.diff().max()) if given is None else int(given)
            for given, offsets in zip(lengths, (cu_seq_lens_q, cu_seq_lens_k), strict=True)
        ]
        return _packed(query, key, value, (cu_seq_lens_q, cu_seq_lens_k), longest, structure, rest), None
    if structure is not None and structure.sequences is not None and position_bias is None:
        offsets, length = structure.offsets
        return _packed(query, key, value, (offsets, offsets), [length] * 2, structure, rest), None
    if structure is not None and structure.sequences is None:
        rest |= structure.options()
    elif attention_mask is not None and attention_mask.dtype == torch.bool:
        rest["mask"] = attention_mask
    elif position_bias is not None and attention_mask is not None:
        position_bias = position_bias + attention_mask
    else:
        position_bias = attention_mask
    rest["bias"] = position_bias
    return _counted(resolve(query, key, value, **rest)).transpose(1, 2).contiguous(), None


def _require_no_window(sliding_window: int | None, key: torch.Tensor) -> None:
    if sliding_window is not None and key.shape[2] > sliding_window:
        raise ValueError(
            f"a layer has a window of {sliding_window} and {key.shape[2]} keys but no mask; let the model "
            "make its mask with transformers.masking_utils"
        )


def _packed(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    offsets: tuple[torch.Tensor, torch.Tensor],
    longest: list[int],
    structure: Structure,
    rest: Options,
) -> torch.Tensor:
    """Rows of packed sequences, laid one after the other."""
    batch, _, length, _ = query.shape
    arguments = packed.resolve(
        *(tensor.transpose(0, 1).flatten(1, 2) for tensor in (query, key, value)),
        query_offsets=offsets[0].to(torch.int32),
        key_offsets=offsets[1].to(torch.int32),
        longest_query=longest[0],
        longest_key=longest[1],
        options=rest | structure.options(),
    )
    rows = _counted(arguments)[0].transpose(0, 1)
    return rows.reshape(batch, length, *rows.shape[1:])


def _counted(arguments: Arguments) -> torch.Tensor:
    """The output of a call, which `orchard_jit.report` then knows of."""
    out = call.output(arguments)
    if torch.compiler.is_compiling() or traced.is_traced(*arguments[:3]):
        features = (
            ("causal", arguments.right == 0),
            ("window", arguments.left is not None),
            ("mask", arguments.mask is not None),
            ("bias", arguments.bias is not None),
            ("dropout", arguments.seed is not None),
            ("packed", arguments.query_offsets is not None),
        )
        used = " ".join([name for name, is_used in features if is_used])
        _note(arguments.query.device, arguments.query.dtype, used)
    else:
        LEDGER.serve(LEDGER.plan(arguments), backward=out.requires_grad)
    return out


@dynamo.constant
def _note(device: torch.device, dtype: torch.dtype, used: str) -> str:
    """Note a call in a graph. Its sizes may be symbols, which they would not stay if they were asked for."""
    name = f"transformers: {device.type} {str(dtype).removeprefix('torch.')} {used}"
    LEDGER.trace(name.rstrip(), None)
    return name


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, mask)
