"""Attention over sequences that are spread over the processes of a `torch.distributed` group."""

from orchard_jit.distributed.attention import flash_attention
from orchard_jit.distributed.layout import positions, shard, unshard
from orchard_jit.distributed.region import context_parallel

__all__ = ["context_parallel", "flash_attention", "positions", "shard", "unshard"]
