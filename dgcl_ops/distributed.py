"""A memory bank of several processes, over torch.distributed.

Replicated: each process draws its share of a push; these rows with their counts travel in one collective of a
fixed size, and every process writes the shares of all into its own bank, in the order of the ranks.

Sharded: of every ring each process holds a window of slots. Rows travel as above, and each process writes those
that fall into its window. For densities the queries travel: each process finds the best scores in its window,
and the process that asked merges them, which gives the scores that one bank would give.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist

from dgcl_ops.ops import knn_density, knn_topk, memory_push

PIECE = 4096  # queries of each process that travel at a time: bounds the memory of a search


class Ranks(NamedTuple):
    """The processes that share a bank, and this one's number among them."""

    group: object  # of torch.distributed; None alone
    rank: int
    size: int


ALONE = Ranks(None, 0, 1)


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
    mine = tensor.reshape(-1).view(torch.uint8)  # a backend may lack the dtype
    received = mine.new_empty(ranks.size * mine.numel())
    dist.all_gather_single(received, mine, group=ranks.group)
    return received.view(tensor.dtype).view(ranks.size, *tensor.shape)


def total(ranks: Ranks, number: Tensor) -> Tensor:
    """Sum over the ranks of a [] int64."""
    return gather(ranks, number).sum(0)


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
    mine = torch.cat([part.reshape(-1).view(torch.uint8) for part in parts])
    mine = torch.nn.functional.pad(mine, (0, -mine.numel() % 8))
    arrivals = []
    received = gather(ranks, mine)
    for bytes_of_rank in received.unbind():
        at, fields = 0, []
        for part in parts:
            size = part.numel() * part.element_size()
            fields.append(bytes_of_rank[at : at + size].view(part.dtype).view(part.shape))
            at += size
        state, counts, rank_density, rank_features, rank_projections = fields
        arrivals.append((state, Arrivals(rank_features, rank_projections, rank_density, counts)))
    return arrivals[0][0], [rows for _, rows in arrivals]


def write_window(bank, rows: Arrivals) -> None:
    """Writes those of the rows whose slots lie in this process's window, and moves the rings' counts and heads.

    The slots of a class's rows are one run, or two where they pass the end of the ring: each is cut with the
    window and written as a run of the window.
    """
    shard, capacity, head = bank.shard, bank.capacity, bank.heads
    arriving = rows.row_counts
    oldest = (arriving - capacity).clamp(
        min=0
    )  # of more rows than the ring holds, the last ones stay
    class_index = torch.arange(bank.num_classes, device=head.device).unsqueeze(1)
    width = min(rows.density.shape[1], shard.length)
    place = torch.arange(width, device=head.device)
    for lap in range((rows.density.shape[1] - 1) // capacity + 2):
        # Row i goes to slot head + i - lap * capacity, where that lies in the ring.
        shift = lap * capacity - head
        first = torch.maximum(shift + shard.start, oldest)
        last = torch.minimum(shift + shard.start + shard.length, arriving)
        index = (first.unsqueeze(1) + place).clamp(0, rows.density.shape[1] - 1)
        memory_push(
            bank.features,
            bank.projections,
            bank.density,
            torch.zeros_like(head),
            (first - shift - shard.start).clamp(0, shard.length - 1),
            rows.features[class_index, index],
            rows.projections[class_index, index],
            rows.density[class_index, index],
            (last - first).clamp(0, width),
        )
    bank.counts.copy_((bank.counts + arriving).clamp(max=capacity))
    bank.heads.copy_((head + arriving) % capacity)


# ---- a window of every ring -------------------------------------------------------------------------


class Shard(NamedTuple):
    """This process's window of slots: start to start + length of every ring. Windows follow the ranks."""

    ranks: Ranks
    width: int  # slots of every window but the last ones
    start: int
    length: int

    @classmethod
    def of(cls, ranks: Ranks, capacity: int) -> "Shard":
        width = -(-capacity // ranks.size)
        if capacity <= width * (ranks.size - 1):  # PyTorch's own sharding cuts like this, too
            raise ValueError(
                f"MemoryBank: capacity must leave a slot for each of {ranks.size} processes, in windows of {width}, "
                f"got {capacity}"
            )
        start = ranks.rank * width
        return cls(ranks, width, start, min(width, capacity - start))

    def counts(self, counts: Tensor) -> Tensor:
        """[C]: of the rows that a ring holds, those in the window. A ring fills from slot 0 on."""
        return (counts - self.start).clamp(0, self.length)


def sharded_density(bank, queries, query_offsets, with_density) -> Tensor:
    """`MemoryBank.density_of` with the rows of all windows. Ranks may have different numbers of queries.

    Shape: queries [M, D], query_offsets [C + 1], with_density [C] bool -> [M].
    """
    rows = queries.shape[0]
    pieces = -(-_most(bank, rows) // PIECE)
    density = []
    for piece in range(pieces):
        asked = queries[piece * PIECE : (piece + 1) * PIECE]
        offsets = (query_offsets - piece * PIECE).clamp(0, PIECE)
        density.append(_search(bank, asked, offsets, with_density, PIECE)[: asked.shape[0]])
    return torch.cat(density)[:rows] if density else bank.density.new_zeros(rows)


def own_density(bank, c: int) -> Tensor:
    """Density of each row of class c in this process's window against the class's other rows; 0 for free slots.

    Shape: [length].
    """
    shard = bank.shard
    classes = torch.arange(bank.num_classes + 1, device=bank.counts.device)
    offsets = torch.where(classes > c, shard.length, 0)
    density = _search(
        bank, bank.features[c], offsets, classes[:-1] == c, shard.width, exclude_self=True
    )[: shard.length]
    held = torch.arange(shard.length, device=density.device) < shard.counts(bank.counts)[c]
    return torch.where(held, density, 0)


def _most(bank, number: int) -> int:
    """The largest of the ranks' numbers. The host waits for it, and looks whether the windows are still their own."""
    ranks, owner = bank.shard.ranks, bank._owner
    told = torch.stack((torch.full_like(owner, number), (owner != ranks.rank).to(owner.dtype)))
    most, overwritten = gather(ranks, told).amax(0).tolist()
    if overwritten:
        raise RuntimeError(
            "MemoryBank: the buffers of a sharded bank must be those of its own rank, got buffers that another rank's "
            "were written over, as DistributedDataParallel does with what it wraps; call ddp_ignore_bank first"
        )
    return most


def _search(bank, queries, offsets, with_density, size: int, exclude_self=False) -> Tensor:
    """Densities of this process's queries, while it answers those of the others.

    Shape: queries [M, D] with M <= size, the same on all ranks; offsets [C + 1] -> [size].
    """
    ranks = bank.shard.ranks
    padded = torch.nn.functional.pad(queries, (0, 0, 0, size - queries.shape[0]))
    asked, asked_offsets = gather(ranks, padded), gather(ranks, offsets)
    counts = torch.where(with_density, bank.shard.counts(bank.counts), 0)
    scores = [
        knn_topk(
            asked[rank],
            bank.features,
            max(bank.scales),
            metric=bank.metric,
            query_offsets=asked_offsets[rank],
            bank_counts=counts,
            exclude_self=exclude_self and rank == ranks.rank,
            unit_bank=bank.holds_unit_rows(queries.dtype),
        )[0]
        for rank in range(ranks.size)
    ]
    scores = torch.stack(scores)  # [W, size, k], of this window, for each rank
    found = torch.empty_like(scores)  # of each window, for this rank
    dist.all_to_all_single(found, scores, group=ranks.group)
    density = density_of_scores(found.transpose(0, 1).reshape(size, -1), bank.scales)
    # A query with a NaN finds nothing, and nothing would mean 0. Rows of no class keep that 0.
    row = torch.arange(size, device=density.device)
    spoilt = padded.isnan().any(1) & (row >= offsets[0]) & (row < offsets[-1])
    return torch.where(spoilt, torch.nan, density)


def density_of_scores(scores: Tensor, scales: tuple[int, ...]) -> Tensor:
    """The density of queries of which the scores are known, -inf where one is missing; the same bits as from the
    rows: each query is a class whose rows hold one element, a score, and 1 * score is the score.

    Shape: [M, N] -> [M].
    """
    queries = scores.shape[0]
    return knn_density(
        scores.new_ones(queries, 1),
        scores.unsqueeze(2),
        scales,
        metric="dot",
        query_offsets=torch.arange(queries + 1, device=scores.device),
        bank_counts=torch.full((queries,), scores.shape[1], device=scores.device),
    )


def densest_slots(bank, width: int) -> Tensor:
    """The slots of highest stored density; of equal ones, the lowest. Entries beyond the rows held mean nothing.

    Shape: [C, width], or [C, capacity] if that is less.
    """
    shard, classes = bank.shard, bank.num_classes
    here = min(width, shard.width)
    density = torch.where(bank.held(), bank.density, -torch.inf)
    density, slots = torch.sort(density, dim=1, descending=True, stable=True)
    density, slots = density[:, :here], slots[:, :here] + shard.start
    if density.shape[1] < here:  # a last window may be smaller
        missing = (0, here - density.shape[1])
        density = torch.nn.functional.pad(density, missing, value=-torch.inf)
        slots = torch.nn.functional.pad(slots, missing)
    # Side by side in the order of the ranks, equal densities stand in the order of their slots.
    density = gather(shard.ranks, density).transpose(0, 1).reshape(classes, -1)
    slots = gather(shard.ranks, slots).transpose(0, 1).reshape(classes, -1)
    order = torch.sort(density, dim=1, descending=True, stable=True).indices
    return slots.gather(1, order[:, :width])


def projection_rows(bank, slots: Tensor) -> Tensor:
    """The projections in slots of all windows. Shape: [C, K], the same on all ranks -> [C, K, E]."""
    shard = bank.shard
    class_index = torch.arange(bank.num_classes, device=slots.device).unsqueeze(1)
    mine = bank.projections[class_index, (slots - shard.start).clamp(0, shard.length - 1)]
    rows = gather(shard.ranks, mine)
    return rows[
        slots // shard.width, class_index, torch.arange(slots.shape[1], device=slots.device)
    ]
