"""A memory bank of several processes, over torch.distributed.

Replicated: each process draws its share of a push; these rows with their counts travel in one collective of a
fixed size, and every process writes the shares of all into its copy of the bank, in the order of the ranks.

Sharded: see `sharding`.

What W processes compute, against one process:

    bank, densities, classes ready, keys from the bank    equal, bit for bit, to one bank that is given the rows of
                                                          rank 0, then of rank 1, ...; with "sharded" as well
    loss of a rank, its gradient                          equal, bit for bit, to the loss of that rank's batch
                                                          against that bank, with that rank's random numbers
    gradient under DistributedDataParallel                that of the mean of the ranks' losses, up to the
                                                          rounding of its sum; published: 1 / W of it, `grad_scale`
    loss of the joined batch                              another number: a rank chooses anchors, keys and negatives
                                                          among its own pixels, as the published program does, and
                                                          a rank without an active class counts as a loss of 0
    rows pushed                                           those of the joined batch where no class has more than
                                                          ceil(rows_per_push / W) rows on a rank; else so many of each
                                                          rank, in all up to W - 1 more than rows_per_push
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist

from dgcl_ops.ops import memory_push


class Ranks(NamedTuple):
    """The processes that share a bank, and this one's number among them."""

    group: object  # of torch.distributed; None alone
    rank: int
    size: int


ALONE = Ranks(None, 0, 1)
# all_gather_single is PyTorch 2.13's name for it. A build without torch.distributed has neither.
ALL_GATHER = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"


def ranks_of(process_group) -> Ranks:
    """Of the group given, by default of all processes; alone where torch.distributed is not in use."""
    if not (dist.is_available() and dist.is_initialized()):
        return ALONE
    group = dist.group.WORLD if process_group is None else process_group
    return Ranks(group, dist.get_rank(group), dist.get_world_size(group))


def check_group(op: str, process_group) -> None:
    """Raises unless it is None or a group that this process belongs to."""
    if process_group is None:
        return
    if not (dist.is_available() and isinstance(process_group, dist.ProcessGroup)):
        raise TypeError(
            f"{op}: process_group must be a torch.distributed.ProcessGroup that this process belongs to, or None, "
            f"got {process_group!r}"
        )


def gather(ranks: Ranks, tensor: Tensor) -> Tensor:
    """[...] of every rank, of the same shape and dtype on all -> [W, ...]."""
    if ranks.size == 1:
        return tensor.unsqueeze(0)
    mine = tensor.contiguous().view(-1).view(torch.uint8)  # a backend may lack the dtype
    received = mine.new_empty(ranks.size * mine.numel())
    getattr(dist, ALL_GATHER)(received, mine, group=ranks.group)
    return received.view(tensor.dtype).view(ranks.size, *tensor.shape)


def assert_equal(op: str, ranks: Ranks, told: dict[str, Tensor]) -> None:
    """Raises where a rank's numbers are not those of rank 0."""
    for name, numbers in told.items():
        everywhere = gather(ranks, numbers.reshape(-1)).tolist()
        if other := [rank for rank in range(ranks.size) if everywhere[rank] != everywhere[0]]:
            raise RuntimeError(
                f"{op}: {name} must be equal on all {ranks.size} processes, got {everywhere[0]} on rank 0 and "
                f"{everywhere[other[0]]} on rank {other[0]} ({len(other)} differ); do all of them push in every "
                "step, and does nobody write to the bank's buffers?"
            )


# ---- the rows of a push -----------------------------------------------------------------------------


class Arrivals(NamedTuple):
    """What one process adds to the bank."""

    features: Tensor  # [C, P, D], of the bank's dtype, unit rows with "cosine"
    projections: Tensor  # [C, P, E]
    density: Tensor  # [C, P]
    row_counts: Tensor  # [C] int64


def exchange(ranks: Ranks, bank, share: int, rows: Arrivals) -> tuple[Tensor, list[Arrivals]]:
    """The random state of rank 0, and the rows of all ranks in their order, as the bank stores them.

    Everything travels as the bytes of one buffer whose size depends on the bank and the number of ranks alone:
    2 + C words of 8 bytes, then C * share densities, features and projections.

    The rows of this rank may be of any float dtype and length; P <= share.
    """
    shape = (bank.num_classes, share)
    wire = (
        bank.features.new_zeros((*shape, bank.feature_dim)),
        bank.projections.new_zeros((*shape, bank.projection_dim)),
        bank.density.new_zeros(shape),
    )
    row_counts = rows.row_counts
    scratch = (torch.zeros_like(row_counts), torch.zeros_like(row_counts))
    # The operator that writes rows into the bank makes unit rows of the bank's dtype here, bit for bit the same.
    memory_push(*wire, *scratch, *rows, bank.metric == "cosine")
    parts = (bank.rng_state, row_counts, wire[2], wire[0], wire[1])  # by falling size of an element
    sizes = [part.nbytes for part in parts]
    gap = row_counts.new_zeros(
        -sum(sizes) % 8, dtype=torch.uint8
    )  # the next rank's words are aligned
    mine = torch.cat([*(part.contiguous().view(-1).view(torch.uint8) for part in parts), gap])
    states, arrivals = [], []
    for bytes_of_rank in gather(ranks, mine).unbind():
        pieces = zip(parts, bytes_of_rank[: sum(sizes)].split(sizes), strict=True)
        fields = [piece.view(part.dtype).view(part.shape) for part, piece in pieces]
        state, counts, density, features, projections = fields
        states.append(state)
        arrivals.append(Arrivals(features, projections, density, counts))
    return states[0], arrivals
