"""What kernels for a processor that is not this one must do, wherever they are executed in software."""

from __future__ import annotations

import itertools

import torch
from software_arm.memory import Guarded

import orchard_jit

from .test_conformance import check, tensors


def results(query, key, value, grad_out=None, **options):
    """Output, log-sum-exp and gradients."""
    leaves = [x.detach().requires_grad_() for x in (query, key, value)]
    out, lse = orchard_jit.flash_attention(*leaves, **options, return_lse=True)
    grad_out = torch.ones_like(out) if grad_out is None else grad_out
    return out, lse, *torch.autograd.grad(out, leaves, grad_out)


def check_rows_that_see_no_key(dtype):
    """Lower-right with 30 queries more than keys."""
    q, k, v = tensors((1, 2, 50, 64), (1, 2, 20, 64), dtype, "cpu")
    out, lse, *grads = results(q, k, v, causal="lower_right")
    assert (out[:, :, :30] == 0).all()
    assert (lse[:, :, :30] == -torch.inf).all()
    assert (grads[0][:, :, :30] == 0).all()
    assert all(grad.isfinite().all() for grad in grads)
    check(q, k, v, causal="lower_right")


def check_nan_past_lengths(head_dim, dtype):
    """What lies past a sequence's length leaves no trace."""
    lengths = torch.tensor([50, 3], dtype=torch.int32)
    clean = tensors((2, 2, 37, head_dim), (2, 2, 70, head_dim), dtype, "cpu")
    dirty = [x.clone() for x in clean]
    for x, (batch, length) in itertools.product(dirty[1:], enumerate(lengths)):
        x[batch, :, length:] = torch.nan
    assert all(map(torch.equal, *(results(*inputs, key_lengths=lengths) for inputs in (clean, dirty))))


def check_threads(inputs, threads, after_each=lambda threads: None, **options):
    """One of them and several give the same bits."""
    before = torch.get_num_threads()
    found = []
    try:
        for number in (1, threads):
            torch.set_num_threads(number)
            found.append(results(*inputs, **options))
            after_each(number)
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, *found))


def check_ends_of_memory(inputs, **options):
    """Nothing is read past the end of a tensor, which is where memory ends."""
    guarded = Guarded()
    assert all(x.isfinite().all() for x in results(*(guarded.copy(x) for x in inputs), **options))
