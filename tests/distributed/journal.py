"""What a process does with its messages, and when: posted, waited for, and the bytes that it sends."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
from torch import distributed as dist

from orchard_jit import call, operators

KINDS = {torch.bfloat16: "block", torch.float32: "sum"}
"""Of a message in a bfloat16 call, by its dtype: keys and values, or sums of their gradients."""


class Journal:
    """Events in their order, and bytes by kind of message, but for what the processes first agree upon."""

    def __init__(self):
        self.events = []
        self.sent = Counter()

    @contextmanager
    def kept(self):
        with ExitStack() as stack:
            for module, name, wrapped in (
                (dist, "batch_isend_irecv", self._exchange),
                (dist, "all_gather", self._gather),
                (dist, "all_to_all_single", self._scatter),
                (call, "forward", self._work),
                (operators, "backward", self._work),
            ):
                replacement = wrapped(getattr(module, name))
                stack.enter_context(mock.patch.object(module, name, replacement))
            yield self

    def _work(self, function):
        def work(*args):
            self.events.append("work")
            return function(*args)

        return work

    def _exchange(self, function):
        def exchange(operations):
            kind = KINDS[operations[0].tensor.dtype]
            for operation in operations:
                self.sent[kind] += operation.tensor.nbytes * (operation.op is dist.isend)
            *others, last = function(operations)
            return [*others, self._posted(kind, last)]

        return exchange

    def _gather(self, function):
        def gather(parts, part, group, async_op=False):
            if part.dtype not in KINDS:
                return function(parts, part, group, async_op=async_op)
            kind = KINDS[part.dtype]
            self.sent[kind] += (len(parts) - 1) * part.nbytes
            return self._posted(kind, function(parts, part, group, async_op=async_op))

        return gather

    def _scatter(self, function):
        def scatter(received, sent, of, to, group):
            row = sent[0].nbytes
            self.sent[KINDS[sent.dtype]] += sent.nbytes - to[dist.get_rank(group)] * row
            return function(received, sent, of, to, group)

        return scatter

    def _posted(self, kind, work):
        self.events.append(f"post {kind}")

        def wait():
            self.events.append(f"wait {kind}")
            work.wait()

        return mock.Mock(wait=wait)
