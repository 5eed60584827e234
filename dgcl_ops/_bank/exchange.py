"""A memory bank shared by several ranks, over torch.distributed.

Replicated: each rank draws its part of a push. One collective of fixed size carries these rows and their counts. Every
rank then writes the rows of all ranks, in rank order.

Sharded: see `sharded_rings`.

What W ranks compute, compared with one process:

    bank, densities, ready       Bit-identical to one bank that receives the rows of rank 0, then of rank 1, ...
    classes, keys from the bank  This also holds for a sharded bank.
    loss and gradient of a rank  Bit-identical to the loss of that rank's batch against that bank, with that rank's
                                 random numbers.
    gradient under DDP           The gradient of the mean of the ranks' losses, up to the rounding of DDP's sum. The
                                 authors' code gets 1 / W times that: see `grad_scale`.
    loss of the combined batch   Differs. A rank chooses anchors, keys and negatives among its own pixels, as the
                                 authors' code does. A rank without an active class has loss 0.
    rows pushed                  The same as for the combined batch, if no class has more than ceil(rows_per_push / W)
                                 rows on a rank. Otherwise each rank pushes that many, in all up to W - 1 more than
                                 rows_per_push.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist

from dgcl_ops.ops import memory_push

if TYPE_CHECKING:
    from dgcl_ops._bank.overlap import Overlap
    from dgcl_ops.memory import MemoryBank


class Ranks(NamedTuple):
    """The ranks that share a bank, and the rank of this process."""

    group: Any  # a torch.distributed.ProcessGroup; None in a single process
    rank: int
    world_size: int


SINGLE_PROCESS = Ranks(None, 0, 1)
# PyTorch 2.13 renamed it to all_gather_single. A build without torch.distributed has neither.
ALL_GATHER = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"


def ranks_of(process_group: Any) -> Ranks:
    """The ranks of a group, or of the default group for None. SINGLE_PROCESS if torch.distributed is not in use."""
    if not (dist.is_available() and dist.is_initialized()):
        return SINGLE_PROCESS
    group = dist.group.WORLD if process_group is None else process_group
    return Ranks(group, dist.get_rank(group), dist.get_world_size(group))


def check_group(op: str, process_group: Any) -> None:
    """Raises a TypeError unless it is None or a group that this process belongs to."""
    if process_group is None:
        return
    if not (dist.is_available() and isinstance(process_group, dist.ProcessGroup)):
        raise TypeError(
            f"{op}: process_group must be a torch.distributed.ProcessGroup that this process belongs to, or None, "
            f"got {process_group!r}"
        )


def all_gather(ranks: Ranks, tensor: Tensor) -> Tensor:
    """[...], of the same shape and dtype on all ranks -> [W, ...]."""
    if ranks.world_size == 1:
        return tensor.unsqueeze(0)
    mine = tensor.contiguous().view(-1).view(torch.uint8)  # not every backend supports every dtype
    received = mine.new_empty(ranks.world_size * mine.numel())
    getattr(dist, ALL_GATHER)(received, mine, group=ranks.group)
    return received.view(tensor.dtype).view(ranks.world_size, *tensor.shape)


def new_overlap() -> Overlap:
    """Imports its module only for banks that overlap: it imports torch._dynamo, which doubles the import time."""
    from dgcl_ops._bank.overlap import Overlap

    return Overlap()


def assert_equal(op: str, ranks: Ranks, state: dict[str, Tensor]) -> None:
    """Raises a RuntimeError if a rank's state differs from rank 0's."""
    for name, values in state.items():
        gathered = all_gather(ranks, values.reshape(-1)).tolist()
        if different := [r for r in range(ranks.world_size) if gathered[r] != gathered[0]]:
            raise RuntimeError(
                f"{op}: {name} must be equal on all {ranks.world_size} ranks, got {gathered[0]} on rank 0 and "
                f"{gathered[different[0]]} on rank {different[0]} ({len(different)} differ). All ranks must build "
                "the bank with the same settings and push in every step, and nothing else may write to its buffers"
            )


# ---- the rows of a push -----------------------------------------------------------------------------


class PushedRows(NamedTuple):
    """What one rank adds to the bank."""

    features: Tensor  # [C, P, D]
    projections: Tensor  # [C, P, E]
    density: Tensor  # [C, P]
    row_counts: Tensor  # [C] int64


class Field(NamedTuple):
    """A tensor in the bytes that travel."""

    dtype: torch.dtype
    shape: torch.Size
    nbytes: int


def exchange_rows(
    ranks: Ranks, bank: MemoryBank, rows: PushedRows
) -> tuple[Tensor, list[PushedRows]]:
    """The random state of rank 0, and the rows of all ranks in rank order.

    Args:
        ranks: the ranks that share the bank.
        bank: the bank.
        rows: of this rank; any float dtype, P <= rows_per_rank.
    """
    mine, fields = packed(bank, rows)
    return unpacked(all_gather(ranks, mine), fields)


def receive(bank: MemoryBank, rng_state: Tensor, rows_of_ranks: list[PushedRows]) -> None:
    """Writes what an exchange brought.

    Rows that travelled in the bank's dtype are unit rows already. Rounded to a narrower dtype, they are unit only to
    its precision. A search trusts a float32 or float64 bank to hold exact unit rows and skips their norms, so they are
    normalised again. All ranks do this with the same bytes, so the bits stay equal.
    """
    bank.rng_state.copy_(rng_state)
    rounded = bank.exchange_dtype != bank.dtype
    bank._append(rows_of_ranks, normalize=rounded and bank.metric == "cosine")


def packed(bank: MemoryBank, rows: PushedRows) -> tuple[Tensor, list[Field]]:
    """What this rank sends: bytes, [B] uint8, and what they hold.

    B depends only on the bank and the number of ranks. The bytes are 2 + C words of 8 bytes, then C * rows_per_rank
    densities, features and projections. Features and projections have the exchange dtype.
    """
    shape, dtype = (bank.num_classes, bank.rows_per_rank), bank.exchange_dtype
    wire = (
        bank.features.new_zeros((*shape, bank.feature_dim), dtype=dtype),
        bank.projections.new_zeros((*shape, bank.projection_dim), dtype=dtype),
        bank.density.new_zeros(shape),
    )
    row_counts = rows.row_counts
    scratch = (torch.zeros_like(row_counts), torch.zeros_like(row_counts))
    # The op that writes into the bank also converts here. So rows that travel in the bank's dtype have the bits of a
    # single process, and unit rows do not overflow in float16.
    memory_push(*wire, *scratch, *rows, bank.metric == "cosine")
    parts = (bank.rng_state, row_counts, wire[2], wire[0], wire[1])  # by falling element size
    fields = [Field(part.dtype, part.shape, part.nbytes) for part in parts]
    size = sum(field.nbytes for field in fields)
    padding = row_counts.new_zeros(-size % 8, dtype=torch.uint8)  # aligns the next rank
    mine = torch.cat([*(part.contiguous().view(-1).view(torch.uint8) for part in parts), padding])
    return mine, fields


def unpacked(received: Tensor, fields: list[Field]) -> tuple[Tensor, list[PushedRows]]:
    """The random state of rank 0 and the rows of each rank, from the bytes of all ranks, [W, B] uint8."""
    sizes = [field.nbytes for field in fields]
    states, rows_of_ranks = [], []
    for of_rank in received.unbind():
        pieces = zip(fields, of_rank[: sum(sizes)].split(sizes), strict=True)
        state, counts, density, features, projections = (
            piece.view(field.dtype).view(field.shape) for field, piece in pieces
        )
        states.append(state)
        rows_of_ranks.append(PushedRows(features, projections, density, counts))
    return states[0], rows_of_ranks
