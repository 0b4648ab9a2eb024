"""The blocks of a BlockMask. Compiled FlexAttention goes by them, by the mask_mod only in partial ones."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

import torch

from orchard_jit.integrations.flex.arrays import Arrays
from orchard_jit.integrations.flex.nodes import TRUE, conjunction, disjunction, number
from orchard_jit.score.expression import Node

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


class _Tables(NamedTuple):
    """Which blocks there are: bool (B or 1, H or 1, blocks of queries, blocks of keys)."""

    partial: torch.Tensor
    full: torch.Tensor


class _Verdict(NamedTuple):
    """What was found of a BlockMask: the tables, if they say anything else than its mask_mod.

    It holds as long as all is as it was; `tensors` live on, so that no other one gets their identity.
    """

    state: object
    tensors: list[torch.Tensor]
    tables: _Tables | None


_VERDICTS: WeakKeyDictionary[BlockMask, _Verdict] = WeakKeyDictionary()


def restricted(mask: Node, block_mask: BlockMask, arrays: Arrays, shape: tuple[int, ...]) -> Node:
    """What the query sees by the mask_mod and by the blocks.

    Blocks by `create_block_mask` say what the mask_mod says. Whether they do is found once, which takes a
    mask of all scores, and again when something has changed that it depends on.

    Args:
        mask: What it sees by the mask_mod.
        block_mask: Whose blocks count.
        arrays: What expressions index.
        shape: Of the scores.

    """
    tensors = _tensors(block_mask) + [
        arrays.tensors[int(node.value)] for node in mask if node.operator == "element"
    ]
    state = (mask, shape, [(id(tensor), _version(tensor)) for tensor in tensors])
    verdict = _VERDICTS.get(block_mask)
    if verdict is None or verdict.state != state:
        tables = _tables(block_mask, shape)
        verdict = _Verdict(state, tensors, None if _agree(mask, block_mask, tables, shape) else tables)
        _VERDICTS[block_mask] = verdict
    if verdict.tables is None:
        return mask
    partial, full = (_block_of_score(table, block_mask, arrays) for table in verdict.tables)
    return disjunction(full, conjunction(partial, mask))


def _tensors(block_mask: BlockMask) -> list[torch.Tensor]:
    tensors = (
        block_mask.kv_num_blocks,
        block_mask.kv_indices,
        block_mask.full_kv_num_blocks,
        block_mask.full_kv_indices,
    )
    return [tensor for tensor in tensors if tensor is not None]


def _version(tensor: torch.Tensor) -> object:
    return object() if tensor.is_inference() else tensor._version  # writes into the former are not counted


@torch.inference_mode(False)  # they are kept, also for calls with gradients
def _tables(block_mask: BlockMask, shape: tuple[int, ...]) -> _Tables:
    sizes = (
        *shape[:2],
        *map(math.ceil, (shape[2] / block_mask.BLOCK_SIZE[0], shape[3] / block_mask.BLOCK_SIZE[1])),
    )
    partial = _table(block_mask.kv_num_blocks, block_mask.kv_indices, sizes)
    if block_mask.full_kv_num_blocks is None or block_mask.full_kv_indices is None:
        return _Tables(partial, torch.zeros_like(partial))
    return _Tables(partial, _table(block_mask.full_kv_num_blocks, block_mask.full_kv_indices, sizes))


def _table(counts: torch.Tensor, columns: torch.Tensor, sizes: tuple[int, ...]) -> torch.Tensor:
    *leading, rows, most = columns.shape
    leading = [1] * (2 - len(leading)) + leading
    if rows != sizes[2] or any(size not in (1, wanted) for size, wanted in zip(leading, sizes, strict=False)):
        raise ValueError(
            f"block_mask has blocks for (batch, heads, blocks of queries) = {(*leading, rows)}, "
            f"the inputs have {sizes[:3]}; batch and heads may be 1"
        )
    beyond = sizes[3]
    is_listed = torch.arange(most, device=columns.device) < counts.unsqueeze(-1)
    listed = torch.where(is_listed, columns, beyond).long().view(*leading, rows, most)
    return torch.zeros(*leading, rows, beyond + 1, dtype=torch.bool, device=columns.device).scatter(
        -1, listed, True
    )[..., :beyond]


@torch.no_grad()
def _agree(mask: Node, block_mask: BlockMask, tables: _Tables, shape: tuple[int, ...]) -> bool:
    """Whether what the blocks hide, or show, is what the mask_mod hides or shows."""
    from torch.nn.attention.flex_attention import create_mask

    partial, full = tables
    if mask == TRUE:
        return bool((partial | full).all())
    names = {node.value for node in mask if node.operator == "name"}
    batch, heads = (
        size if name in names or table_size > 1 else 1
        for name, size, table_size in zip("bh", shape, partial.shape, strict=False)
    )
    queries, keys = shape[2:]
    seen = create_mask(block_mask.mask_mod, batch, heads, queries, keys, partial.device)
    rows, columns = (
        torch.arange(length, device=partial.device) // size
        for length, size in zip((queries, keys), block_mask.BLOCK_SIZE, strict=True)
    )
    partial, full = (table[:, :, rows][..., columns] for table in tables)
    return torch.equal(full | (partial & seen), seen)


def _block_of_score(table: torch.Tensor, block_mask: BlockMask, arrays: Arrays) -> Node:
    blocks = (
        Node("floor_divide", "int", (Node("name", "int", (), name), number(size)))
        for name, size in zip(("q", "kv"), block_mask.BLOCK_SIZE, strict=True)
    )
    leading = (
        number(0) if size == 1 else Node("name", "int", (), name)
        for name, size in zip("bh", table.shape, strict=False)
    )
    return arrays.element(table, (*leading, *blocks))
