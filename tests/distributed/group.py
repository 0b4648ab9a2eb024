"""A group of processes that have imported PyTorch once, and then parted."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

import torch
from torch import distributed as dist


def run(job):
    """Call `job(rank, size, folder)` in each process, as `python -m MODULE SIZE FOLDER` asks for."""
    size, folder = int(sys.argv[1]), Path(sys.argv[2])
    children = []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            _be(rank, size, folder, job)
        children.append(child)
    statuses = [os.waitpid(child, 0)[1] for child in children]
    sys.exit(any(statuses))


def _be(rank, size, folder, job):
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
        job(rank, size, folder)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    sys.stderr.flush()
    os._exit(0)
