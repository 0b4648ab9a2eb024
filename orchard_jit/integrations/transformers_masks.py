"""What the masks of Hugging Face transformers say, where kernels need not read them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any, cast

import torch
from transformers import AutoModel, masking_utils

from orchard_jit import dynamo
from orchard_jit.diagonal import Alignment
from orchard_jit.options import Options

MaskFunction = Callable[..., Any]

_ATTRIBUTE = "_orchard_jit_structure"

# They may give None, but not for what is asked of them here.
_materialise = cast(Callable[..., torch.Tensor], masking_utils.sdpa_mask)
_padding_mask = cast(Callable[..., torch.Tensor], masking_utils.prepare_padding_mask)


@dataclass(frozen=True)
class Structure:
    """What a mask says, without a place for every score.

    Attributes:
        left, right: How far a query sees, from its place on the diagonal; None without end.
        alignment: Where the diagonal is.
        sequences: int (B, S): the number of each token's sequence in its row; None where a row is one.
        padding: bool (B, Sk): which keys are there; None if all are.

    """

    left: int | None = None
    right: int | None = None
    alignment: Alignment = "upper_left"
    sequences: torch.Tensor | None = None
    padding: torch.Tensor | None = None

    @cached_property
    def offsets(self) -> tuple[torch.Tensor, int]:
        """Where each sequence begins when all rows are laid one after the other; and the longest."""
        assert self.sequences is not None
        starts = torch.ones_like(self.sequences, dtype=torch.bool)
        starts[:, 1:] = self.sequences[:, 1:] != self.sequences[:, :-1]
        ends = torch.tensor([starts.numel()], device=starts.device)
        offsets = torch.cat([starts.flatten().nonzero().flatten(), ends]).to(torch.int32)
        return offsets, int(offsets.diff().max())

    def options(self) -> Options:
        """The same in arguments of `flash_attention`, but for the sequences."""
        bounded = self.left is not None or self.right is not None
        return {
            "window": (self.left, self.right) if bounded else None,
            "alignment": self.alignment if bounded else None,
            "mask": None if self.padding is None else self.padding[:, None, None, :],
        }


def mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | torch.Tensor = 0,
    kv_offset: int = 0,
    mask_function: MaskFunction = masking_utils.causal_mask_function,
    attention_mask: torch.Tensor | None = None,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool = False,
    **others: Any,
) -> torch.Tensor | None:
    """The library's mask function: a boolean mask that knows its `Structure`, or None where it hides nothing
    that `attention` would not know without.

    Raises:
        NotImplementedError: The model has an attention of its own, which would misread it.

    """
    loner = _loner(type(others.get("config")))
    if loner:
        raise NotImplementedError(
            f"{loner} has an attention of its own, for which attn_implementation='orchard_jit' does nothing; "
            "use 'eager'"
        )
    traced = torch.compiler.is_compiling()
    structure = _known(mask_function, q_length, kv_length, q_offset, kv_offset)
    if structure is not None and attention_mask is not None:
        if traced or not bool(attention_mask.all()) or attention_mask.shape[-1] < kv_offset + kv_length:
            padding = _padding_mask(attention_mask, kv_length, kv_offset)
            structure = replace(structure, padding=padding[:, kv_offset : kv_offset + kv_length])
        else:
            attention_mask = None
    if structure is not None and structure.padding is None and structure.sequences is None:
        left, right, widest = structure.left, structure.right, max(q_length, kv_length) - 1
        unbounded = left is None or left >= widest
        square = q_length == kv_length and structure.alignment == "upper_left"
        last = q_length == 1 and structure.alignment == "lower_right"
        if allow_is_causal_skip and right == 0 and unbounded and (square or last):
            return None
        if allow_is_bidirectional_skip and unbounded and (right is None or right >= widest):
            return None
    materialised = _materialise(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        kv_offset=kv_offset,
        mask_function=mask_function,
        attention_mask=attention_mask,
        allow_is_causal_skip=False,
        allow_is_bidirectional_skip=False,
        **others,
    )
    if structure is not None and not traced:
        setattr(materialised, _ATTRIBUTE, (structure, _edits(materialised)))
    return materialised


@dynamo.constant
def _loner(config: type) -> str:
    """The model of such a configuration, if its attention is not the library's; or nothing."""
    return _found_loner(config)


@cache
def _found_loner(config: type) -> str:
    try:
        found: Any = AutoModel._model_mapping[config]
        model = found[0] if isinstance(found, tuple) else found
        return "" if model._can_set_attn_implementation() else str(model.__name__)
    except (AttributeError, ImportError, KeyError):
        return ""  # of one that is not the library's, nothing is known


def structure_of(attention_mask: torch.Tensor) -> Structure | None:
    """What was known when it was made, unless it has been written to since.

    What a model makes from a mask is another tensor, of which nothing is known.
    """
    if torch.compiler.is_compiling():
        return None
    structure: Structure | None
    structure, edits = getattr(attention_mask, _ATTRIBUTE, (None, 0))
    return structure if edits == _edits(attention_mask) else None


def _edits(tensor: torch.Tensor) -> int:
    """How often it has been written to; in inference mode PyTorch does not count."""
    return 0 if tensor.is_inference() else tensor._version


def _known(
    function: MaskFunction, q_length: int, kv_length: int, q_offset: int | torch.Tensor, kv_offset: int
) -> Structure | None:
    """What the function says of these queries and keys, if it is something that kernels have."""
    if isinstance(q_offset, torch.Tensor):
        return None  # in a cache of fixed size, only the device knows where the queries stand
    structure, diagonal = _parse(function), q_offset - kv_offset
    if structure is None or (structure.left is None and structure.right is None) or diagonal == 0:
        return structure
    return replace(structure, alignment="lower_right") if diagonal == kv_length - q_length else None


def _parse(function: MaskFunction) -> Structure | None:
    """What a mask function of the library says; None for one that we don't know."""
    if function is masking_utils.causal_mask_function:
        return Structure(right=0)
    if function is masking_utils.bidirectional_mask_function:
        return Structure()
    if torch.compiler.is_compiling():
        return None  # Dynamo does not look into closures
    reader = _READERS.get(getattr(function, "__qualname__", ""))
    if reader is None or getattr(function, "__module__", "") != masking_utils.__name__:
        return None
    return reader(inspect.getclosurevars(function).nonlocals)


def _read_all(parts: Mapping[str, Any]) -> Structure | None:
    together = Structure()
    for part in map(_parse, parts["mask_functions"]):
        if part is None or (part.sequences is not None and together.sequences is not None):
            return None
        together = Structure(
            left=_nearest(together.left, part.left),
            right=_nearest(together.right, part.right),
            sequences=together.sequences if part.sequences is None else part.sequences,
        )
    return together


def _nearest(one: int | None, other: int | None) -> int | None:
    return other if one is None else one if other is None else min(one, other)


_READERS: dict[str, Callable[[Mapping[str, Any]], Structure | None]] = {
    "and_masks.<locals>.and_mask": _read_all,
    "sliding_window_overlay.<locals>.inner_mask": lambda cell: Structure(left=cell["sliding_window"] - 1),
    "sliding_window_bidirectional_overlay.<locals>.inner_mask": lambda cell: Structure(
        left=cell["sliding_window"], right=cell["sliding_window"]
    ),
    "packed_sequence_mask_function.<locals>.inner_mask": lambda cell: Structure(
        sequences=cell["packed_sequence_mask"]
    ),
    # Positions count up within a sequence, so they are as far apart as the tokens.
    "remap_positions_for_packed_sequence.<locals>.inner_mask": lambda cell: _parse(cell["mask_function"]),
}
"""The library's closures, by name, and what they say."""


_IDS = torch.tensor([[0, 0, 0, 1, 1, 1, 1]])
_POSITIONS = torch.tensor([[0, 1, 2, 0, 1, 2, 3]])

_SAMPLES: dict[str, Callable[[], MaskFunction]] = {
    "and_masks.<locals>.and_mask": lambda: masking_utils.and_masks(
        masking_utils.causal_mask_function, masking_utils.bidirectional_mask_function
    ),
    "sliding_window_overlay.<locals>.inner_mask": lambda: masking_utils.sliding_window_overlay(2),
    "sliding_window_bidirectional_overlay.<locals>.inner_mask": (
        lambda: masking_utils.sliding_window_bidirectional_overlay(2)
    ),
    "packed_sequence_mask_function.<locals>.inner_mask": (
        lambda: masking_utils.packed_sequence_mask_function(_IDS)
    ),
    "remap_positions_for_packed_sequence.<locals>.inner_mask": lambda: masking_utils.and_masks(
        masking_utils.remap_positions_for_packed_sequence(
            masking_utils.sliding_window_causal_mask_function(2), _POSITIONS
        ),
        masking_utils.packed_sequence_mask_function(_IDS),
    ),
}
"""By the same names, a mask that holds the closure."""


def _check_readers() -> None:
    """Another release may mean something else by a name, or have none: that is not read, but as a tensor."""
    for name, sample in _SAMPLES.items():
        try:
            right = _says_the_same(sample())
        except (AttributeError, KeyError, TypeError, ValueError):
            right = False
        if not right:
            del _READERS[name]


def _says_the_same(function: MaskFunction) -> bool:
    structure = _parse(function)
    if structure is None:
        return False
    length = _IDS.shape[1]
    theirs = _materialise(1, length, length, mask_function=function, allow_is_causal_skip=False)
    distance = torch.arange(length)[None, :] - torch.arange(length)[:, None]
    ours = torch.ones(length, length, dtype=torch.bool)
    if structure.left is not None:
        ours &= distance >= -structure.left
    if structure.right is not None:
        ours &= distance <= structure.right
    if structure.sequences is not None:
        ours &= structure.sequences[0][:, None] == structure.sequences[0][None, :]
    return torch.equal(theirs[0, 0], ours)


_check_readers()
