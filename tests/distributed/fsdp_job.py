"""A step of training in processes that share the model's parameters and its sequence."""

from __future__ import annotations

import torch
from torch import distributed as dist
from torch.distributed.fsdp import fully_shard

from orchard_jit.distributed import flash_attention, positions, shard

from . import group
from .cases import CHUNK
from .model import Model, gradients, tokens


def main(rank, size, folder):
    torch.manual_seed(0)
    model = Model()
    fully_shard(model, mesh=dist.init_device_mesh("cpu", (size,)))
    length = 2 * CHUNK * size
    model(
        shard(tokens(length), 1),
        positions(length),
        lambda query, key, value: flash_attention(query, key, value, causal=True, method="ring"),
    ).backward()
    whole = {
        name: gradient.full_tensor() * size for name, gradient in gradients(model).items()
    }  # not the mean
    torch.save(whole, folder / f"gradients-{rank}.pt")


if __name__ == "__main__":
    group.run(main)
