"""An exchange of rows that overlaps the rest of the step: `MemoryBank(overlap_exchange=True)`.

A push starts the collective. The next use of the bank waits for it and writes the rows. Nothing uses the bank in
between, so each step has the bits of an exchange without overlap. Ranks may finish at different times: finishing starts
no collective.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch import distributed as dist

from dgcl_ops._bank.exchange import ALL_GATHER, Field, PushedRows, Ranks, packed, receive, unpacked
from dgcl_ops._precision import no_autocast

if TYPE_CHECKING:
    from dgcl_ops.memory import MemoryBank

NOT_ONE_GRAPH = (
    "MemoryBank: with overlap_exchange=True the exchange goes on after the step, so the step is not one graph; compile "
    "without fullgraph=True, or use overlap_exchange=False"
)


class Overlap:
    """Starts and finishes the exchanges of a bank.

    Attributes:
        started: whether there has been an exchange. In one process there is none, so a compiled step stays one graph.
    """

    def __init__(self) -> None:
        self.started = False

    @torch.compiler.disable(reason=NOT_ONE_GRAPH)
    def start(self, bank: MemoryBank, ranks: Ranks, rows: PushedRows) -> None:
        """Starts the exchange of this rank's rows. See `exchange.exchange_rows`."""
        if rows.row_counts.is_cuda and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                "MemoryBank: overlap_exchange=True is not supported in a CUDA graph, because a replay would not write "
                "the rows; use overlap_exchange=False"
            )
        mine, fields = packed(bank, rows)
        received = mine.new_empty((ranks.world_size, mine.numel()))
        gather = getattr(dist, ALL_GATHER)
        work = gather(received.view(-1), mine, group=ranks.group, async_op=True)
        self.started = True
        bank.__dict__["_buffers"] = PendingBuffers(bank, work, mine, received, fields)

    @torch.compiler.disable(reason=NOT_ONE_GRAPH)
    def finish(self, bank: MemoryBank) -> None:
        """Finishes the pending exchange, if there is one."""
        buffers = bank.__dict__["_buffers"]
        if isinstance(buffers, PendingBuffers):
            buffers.finish()


class PendingBuffers(MutableMapping[str, Tensor | None]):
    """The buffers of a bank while an exchange is pending. The first access to one of them finishes the exchange.

    It replaces the dict `_buffers` of `torch.nn.Module`, through which every access goes: attributes, state_dict,
    named_buffers, `.to()`, copies. The names alone can be read without finishing.
    """

    def __init__(
        self, bank: MemoryBank, work: Any, mine: Tensor, received: Tensor, fields: list[Field]
    ):
        self.bank, self.buffers = bank, bank.__dict__["_buffers"]
        self.work, self.mine, self.received, self.fields = work, mine, received, fields

    def finish(self) -> None:
        """Waits and writes the rows. Raises if another rank failed; the exchange then stays pending."""
        if self.bank.__dict__["_buffers"] is not self:
            return  # finished before
        self.work.wait()
        self.bank.__dict__["_buffers"] = self.buffers
        with torch.no_grad(), no_autocast(self.received):
            receive(self.bank, *unpacked(self.received, self.fields))

    def __getitem__(self, name: str) -> Tensor | None:
        self.finish()
        return self.buffers[name]

    def __setitem__(self, name: str, value: Tensor | None) -> None:
        self.finish()
        self.buffers[name] = value

    def __delitem__(self, name: str) -> None:
        self.finish()
        del self.buffers[name]

    def __contains__(self, name: object) -> bool:
        return name in self.buffers

    def __iter__(self) -> Iterator[str]:
        return iter(self.buffers)

    def __len__(self) -> int:
        return len(self.buffers)

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)  # copies and pickles hold the finished buffers
