"""All that the tests ask of a group of processes, in one start of them; what was found is in a folder."""

from __future__ import annotations

import itertools
import os
import sys
from functools import partial

import torch
from software_mac import mps
from torch import distributed as dist
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import orchard_jit
import orchard_jit.distributed.sharding
from orchard_jit.distributed import context_parallel, flash_attention, positions, shard, unshard

from . import group
from .cases import BFLOAT16, CASES, CHUNK
from .journal import Journal
from .model import Model, gradients, tokens


def main(rank, size, folder):
    for check in (
        attention,
        traffic,
        parts,
        modes,
        groups,
        training,
        pytorchs,
        mistakes,
        on_mps,
        dtensors,
        death,
    ):
        torch.save(check(rank, size), folder / f"{check.__name__}-{rank}.pt")


def attention(rank, size):
    """Output, log-sum-exp and gradients, by case."""
    return {name: run(case, size) for name, case in CASES.items()}


def run(case, size, members=None, device="cpu"):
    query, key, value, *grads = (shard(tensor, 2, members).to(device) for tensor in case.inputs(size))
    leaves = [tensor.requires_grad_() for tensor in (query, key, value)]
    results = attend(*leaves, case, members)
    torch.autograd.backward(results, grads)
    return [*(result.detach() for result in results), *(leaf.grad for leaf in leaves)]


def attend(query, key, value, case, members=None):
    options = {"causal": case.causal, "method": case.method, "return_lse": True, **case.options}
    return flash_attention(query, key, value, group=members, **options)


def traffic(rank, size):
    """The journals of forward and backward, by case."""
    journals = {}
    for name in BFLOAT16:
        query, key, value, *grads = (shard(tensor, 2) for tensor in CASES[name].inputs(size))
        with Journal().kept() as forward:
            results = attend(query.requires_grad_(), key, value, CASES[name])
        with Journal().kept() as backward:
            torch.autograd.backward(results, grads)
        journals[name] = [(journal.events, dict(journal.sent)) for journal in (forward, backward)]
    return journals


def parts(rank, size):
    """A sequence of numbers, cut and put together again in each order."""
    whole = torch.arange(4 * size).view(1, -1, 1).expand(2, -1, 3)
    found = {}
    for order in ("zigzag", "contiguous"):
        part = shard(whole, 1, order=order)
        same = torch.equal(unshard(part, 1, order=order), whole)
        found[order] = (part[0, :, 0].tolist(), positions(4 * size, order=order).tolist(), same)
    return found


def modes(rank, size):
    """Whether a call gives the same in another mode."""
    case = CASES["ring causal, float32"]
    inputs = [shard(tensor, 2) for tensor in case.inputs(size)]
    query, key, value, grad_out, _ = inputs
    expected = run(case, size)
    found = {}
    with torch.no_grad():
        found["no_grad"] = torch.equal(attend(query, key, value, case)[0], expected[0])

    def of_query(function, **options):
        leaf = query.clone().requires_grad_()
        function(leaf).backward(grad_out)
        return leaf.grad

    def plain(leaf):
        return flash_attention(leaf, key, value, causal=True)

    def again(leaf):
        return checkpoint(plain, leaf, use_reentrant=False)

    found["checkpoint"] = torch.equal(of_query(plain), of_query(again))
    found["compile"] = torch.equal(
        of_query(plain), of_query(torch.compile(lambda leaf: plain(leaf + 0), backend="eager"))
    )
    with torch.autocast("cpu", torch.bfloat16):
        out = plain(query)
    low = flash_attention(*(tensor.bfloat16() for tensor in (query, key, value)), causal=True)
    found["autocast"] = out.dtype == torch.bfloat16 and torch.equal(out, low)
    found["repeated"] = all(map(torch.equal, expected, run(case, size)))
    return found


def groups(rank, size):
    """Results in a group of one, and, of four processes, in a group of two."""
    case = CASES["ring causal, float32"]
    alone = [dist.new_group([member]) for member in range(size)][rank]
    found = {"one": run(case, 1, alone)}
    if size == 4:
        pairs = [dist.new_group([0, 2]), dist.new_group([1, 3])]
        found["two"] = run(case, 2, pairs[rank % 2])
    return found


def training(rank, size):
    """The gradients of a model's parameters, each process's summed."""
    torch.manual_seed(0)
    model = Model()
    length = 2 * CHUNK * size
    model(
        shard(tokens(length), 1),
        positions(length),
        lambda query, key, value: flash_attention(query, key, value, causal=True),
    ).backward()
    for gradient in gradients(model).values():
        dist.all_reduce(gradient)
    return gradients(model)


def pytorchs(rank, size):
    """PyTorch's own attention in a region: called by a model, by a module, as it can't be, and compiled."""
    torch.manual_seed(0)
    model, length = Model(), 2 * CHUNK * size
    with context_parallel():
        attend = partial(functional.scaled_dot_product_attention, is_causal=True, enable_gqa=True)
        model(shard(tokens(length), 1), positions(length), attend).backward()
    for gradient in gradients(model).values():
        dist.all_reduce(gradient)

    torch.manual_seed(0)
    module, rows = torch.nn.MultiheadAttention(32, 2, batch_first=True), torch.randn(2, length, 32)
    part = shard(rows, 1)
    with context_parallel(method="gather"):
        out = unshard(module(part, part, part, need_weights=False)[0].detach(), 1)

    x = torch.randn(1, 2, 4, 16)

    def block(x):
        return x + functional.scaled_dot_product_attention(x, x, x)

    attempts = {
        "mask": lambda: functional.scaled_dot_product_attention(x, x, x, torch.ones(4, 4)),
        "dropout": lambda: functional.scaled_dot_product_attention(x, x, x, dropout_p=0.5),
        "whole graph": lambda: torch.compile(block, backend="aot_eager", fullgraph=True)(x),
    }
    with context_parallel():
        errors = {name: error_of(attempt) for name, attempt in attempts.items()}
        same = torch.equal(torch.compile(block, backend="aot_eager")(x), block(x))
    return gradients(model), out, errors, same


class Own(torch.Tensor):
    """As DTensor is one."""


def mistakes(rank, size):
    """The error that each process gets, by what is wrong."""
    query, key, value = (torch.randn(1, 2, 4, 16) for _ in range(3))
    everyone = dist.new_group(list(range(1, size)))

    def twice():
        leaf = query.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(flash_attention(leaf, key, value).sum(), leaf, create_graph=True)
        (leaf.sum() + gradient.sum()).backward()

    attempts = {
        "lengths differ": lambda: flash_attention(query, key[:, :, rank:], value[:, :, rank:]),
        "scales differ": lambda: flash_attention(query, key, value, scale=1.0 + (rank == 0)),
        "one wants gradients": lambda: flash_attention(query.clone().requires_grad_(rank == 0), key, value),
        "one is wrong": lambda: flash_attention(query, key, value.double() if rank == 0 else value),
        "odd length": lambda: flash_attention(*(x[:, :, 1:] for x in (query, key, value)), causal=True),
        "fewer keys": lambda: flash_attention(query, key[:, :, 2:], value[:, :, 2:], causal=True),
        "no keys": lambda: flash_attention(query, key[:, :, :0], value[:, :, :0]),
        "a class of its own": lambda: flash_attention(query, key, value.as_subclass(Own)),
        "three dimensions": lambda: flash_attention(query[0], key[0], value[0]),
        "method": lambda: flash_attention(query, key, value, method="star"),
        "order": lambda: shard(query, 2, order="snake"),
        "uneven": lambda: shard(torch.zeros(4 * size + 1), 0),
        "a part that is odd": lambda: unshard(torch.zeros(3), 0),
        "unshard with gradients": lambda: unshard(query.clone().requires_grad_(), 2),
        "another's group": lambda: flash_attention(query, key, value, group=everyone) if rank == 0 else None,
        "differentiated twice": twice,
    }
    return {name: error_of(attempt) for name, attempt in attempts.items()}


def error_of(attempt):
    try:
        attempt()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def on_mps(rank, size):
    """Results of tensors that are on MPS, which gloo does not know."""
    case = CASES["ring causal, float32"]
    results = run(case, size, device="mps")
    return [result.device.type for result in results], [result.cpu() for result in results]


def dtensors(rank, size):
    """By heads, sharding and causal: the placement of the output, and whether results are one process's."""
    mesh = dist.init_device_mesh("cpu", (size,))
    found = {}
    for heads, placement, causal in itertools.product(
        ((4, 4), (12, 3)), (Shard(0), Shard(1), Shard(2)), (False, True)
    ):
        torch.manual_seed(0)
        shapes = [(size, count, 4 * size, 16) for count in (heads[0], heads[1], heads[1], heads[0])]
        *leaves, grad_out = (torch.randn(shape).requires_grad_() for shape in shapes)
        alone = orchard_jit.flash_attention(*leaves, causal=causal)
        expected = [alone, *torch.autograd.grad(alone, leaves, grad_out)]
        spread = [distribute_tensor(leaf.detach(), mesh, [placement]).requires_grad_() for leaf in leaves]
        out = orchard_jit.flash_attention(*spread, causal=causal)
        gradients = torch.autograd.grad(out, spread, distribute_tensor(grad_out, mesh, out.placements))
        results = [result.full_tensor() for result in (out, *gradients)]
        same = all(torch.allclose(*pair, atol=1e-5) for pair in zip(results, expected, strict=True))
        found[heads, placement.dim, causal] = (str(out.placements[0]), same)
    return found


def death(rank, size):
    """What the others get when rank 1 dies instead of sending anything."""
    query, key, value = (torch.randn(1, 2, 4, 16) for _ in range(3))
    if rank == 1:
        dist.batch_isend_irecv = lambda _: os._exit(0)
    try:
        flash_attention(query, key, value)
    except RuntimeError as error:
        return str(error)


if __name__ == "__main__":
    if sys.platform != "darwin":
        mps.install()
    group.run(main)
