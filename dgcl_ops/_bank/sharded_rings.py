"""A sharded memory bank: each rank holds a shard of every ring, a run of its slots.

The rows of a push travel as described in `exchange`. Each rank writes those that fall into its shard. For densities the
queries travel: each rank finds the best scores in its shard, and the rank that sent the queries merges them. The merged
scores are those of one whole bank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch import distributed as dist

from dgcl_ops._bank.checkpoint import DTYPES, as_dtensors
from dgcl_ops._bank.exchange import PushedRows, Ranks, all_gather
from dgcl_ops.ops import _arguments, knn_density, knn_topk, memory_push

if TYPE_CHECKING:
    from dgcl_ops.memory import MemoryBank

CHUNK = 4096  # queries of each rank that travel at a time: bounds the memory of a search
NOT_ONE_GRAPH = (
    "MemoryBank: a step with placement 'sharded' synchronises with the host, so it is not one graph; compile without "
    "fullgraph=True, or use placement 'replicated'"
)


class ShardedRings:
    """The operations of a bank whose process holds a shard. See `rings.Rings`.

    Shards are in rank order: this one holds the slots start to start + length of every ring.
    """

    whole = False

    def __init__(self, ranks: Ranks, capacity: int):
        self.ranks = ranks
        # Not a decorator, which would import torch._dynamo with the package and double its import time.
        self._max_queries = torch.compiler.disable(_max_queries, reason=NOT_ONE_GRAPH)
        # Slots of every shard but the last, which may have fewer. PyTorch's own sharding cuts the same way.
        self.width = -(-capacity // ranks.world_size)
        if capacity <= self.width * (ranks.world_size - 1):
            raise ValueError(
                f"MemoryBank: capacity {capacity} leaves the last of {ranks.world_size} ranks without a slot (shards "
                f"of {self.width} slots); use a multiple of {ranks.world_size}"
            )
        self.start = ranks.rank * self.width
        self.length = min(self.width, capacity - self.start)

    def counts(self, counts: Tensor) -> Tensor:
        """[C]: rows in each ring -> rows of each ring in this shard."""
        return (counts - self.start).clamp(0, self.length)

    def synced_state(self, bank: MemoryBank) -> dict[str, Tensor]:
        return {"counts": bank.counts, "heads": bank.heads}

    def write(self, bank: MemoryBank, rows: PushedRows, normalize: bool) -> None:
        """Writes the rows whose slots lie in this shard, and moves the rings' counts and heads.

        The slots of a class's rows are one run, or two if they wrap around the ring. The part of each run that lies in
        the shard is written.
        """
        capacity, head = bank.capacity, bank.heads
        arriving = rows.row_counts
        # If more rows arrive than the ring holds, the last ones stay.
        oldest = (arriving - capacity).clamp(min=0)
        class_index = torch.arange(bank.num_classes, device=head.device).unsqueeze(1)
        width = min(rows.density.shape[1], self.length)
        place = torch.arange(width, device=head.device)
        for lap in range((rows.density.shape[1] - 1) // capacity + 2):
            # Row i goes to slot head + i - lap * capacity, if that lies in the ring.
            shift = lap * capacity - head
            first = torch.maximum(shift + self.start, oldest)
            last = torch.minimum(shift + self.start + self.length, arriving)
            index = (first.unsqueeze(1) + place).clamp(0, rows.density.shape[1] - 1)
            memory_push(
                bank.features,
                bank.projections,
                bank.density,
                torch.zeros_like(head),
                (first - shift - self.start).clamp(0, self.length - 1),
                rows.features[class_index, index],
                rows.projections[class_index, index],
                rows.density[class_index, index],
                (last - first).clamp(0, width),
                normalize,
            )
        bank.counts.copy_((bank.counts + arriving).clamp(max=capacity))
        bank.heads.copy_((head + arriving) % capacity)

    def density_of(
        self,
        bank: MemoryBank,
        queries: Tensor,
        query_offsets: Tensor,
        with_density: Tensor,
        exclude_self: bool,
    ) -> Tensor:
        """`MemoryBank.density_of` against the rows of all shards. Ranks may have different numbers of queries.

        queries [M, D], query_offsets [C + 1], with_density [C] bool -> [M].
        """
        if exclude_self:
            raise ValueError(
                "MemoryBank.density_of: exclude_self=True is not supported with placement 'sharded'"
            )
        if queries.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                "MemoryBank.density_of: with placement 'sharded', densities have no gradient; detach queries (shape "
                f"{list(queries.shape)})"
            )
        rows, counts = queries.shape[0], torch.where(with_density, bank.counts, 0)
        density = []
        most = self._max_queries(bank, rows, queries.dtype)
        size = min(most, CHUNK)
        for begin in range(0, most, CHUNK):
            chunk = queries[begin : begin + size]
            padded = torch.nn.functional.pad(chunk, (0, 0, 0, size - chunk.shape[0]))
            offsets = (query_offsets - begin).clamp(0, size)
            all_queries, all_offsets = (
                all_gather(self.ranks, padded),
                all_gather(self.ranks, offsets),
            )
            scores = _scores_in_shard(bank, all_queries, all_offsets, counts)
            density.append(_merge(bank, padded, offsets, counts, scores))
        return torch.cat(density)[:rows] if density else bank.density.new_zeros(rows)

    def refresh(self, bank: MemoryBank, classes: Tensor) -> None:
        """See `Rings.refresh`.

        Only classes due for a refresh exchange queries, so the host must know which.
        """
        for c in classes.nonzero().flatten().tolist():
            bank.density[c] = self._density_of_own_rows(bank, c).to(bank.density.dtype)

    def _density_of_own_rows(self, bank: MemoryBank, c: int) -> Tensor:
        """[length]: density of each row of class c in this shard among the class's other rows; 0 for free slots."""
        classes = torch.arange(bank.num_classes + 1, device=bank.counts.device)
        offsets = torch.where(classes > c, self.width, 0)
        counts = torch.where(classes[:-1] == c, bank.counts, 0)
        rows = torch.nn.functional.pad(bank.features[c], (0, 0, 0, self.width - self.length))
        scores = [
            _best_scores(bank, queries, offsets, counts, exclude_self=rank == self.ranks.rank)
            for rank, queries in enumerate(all_gather(self.ranks, rows))
        ]
        density = _merge(bank, rows, offsets, counts, torch.stack(scores))[: self.length]
        valid = torch.arange(self.length, device=density.device) < self.counts(bank.counts)[c]
        return torch.where(valid, density, 0)

    def topk_density(self, bank: MemoryBank, k: int) -> tuple[Tensor, Tensor]:
        """See `Rings.topk_density`."""
        classes = bank.num_classes
        width = min(k, self.width)
        usable = bank.valid_slots() & ~bank.density.isnan()
        density = torch.where(usable, bank.density, -torch.inf)
        density, slots = torch.sort(density, dim=1, descending=True, stable=True)
        density, slots = density[:, :width], slots[:, :width] + self.start
        if density.shape[1] < width:  # the last shard may be smaller
            missing = (0, width - density.shape[1])
            density = torch.nn.functional.pad(density, missing, value=-torch.inf)
            slots = torch.nn.functional.pad(slots, missing)
        # Concatenated in rank order, equal densities are in the order of their slots.
        density = all_gather(self.ranks, density).transpose(0, 1).reshape(classes, -1)
        slots = all_gather(self.ranks, slots).transpose(0, 1).reshape(classes, -1)
        density, order = torch.sort(density, dim=1, descending=True, stable=True)
        return slots.gather(1, order[:, :k]), (density[:, :k] > -torch.inf).sum(1)

    def projection_rows(self, bank: MemoryBank, slots: Tensor) -> tuple[Tensor, Tensor | None]:
        """See `Rings.projection_rows`. The slots of all shards, the same on all ranks."""
        class_index = torch.arange(bank.num_classes, device=slots.device).unsqueeze(1)
        mine = bank.projections[class_index, (slots - self.start).clamp(0, self.length - 1)]
        rows = all_gather(self.ranks, mine)
        place = torch.arange(slots.shape[1], device=slots.device)
        return rows[slots // self.width, class_index, place], None

    def save(self, bank: MemoryBank, state_dict: dict[str, Any], prefix: str) -> None:
        as_dtensors(bank, state_dict, prefix)


def _max_queries(bank: MemoryBank, number: int, dtype: torch.dtype) -> int:
    """Returns the largest number of queries on any rank.

    Syncs with the host. Also checks the query dtype and the shards of all ranks.
    """
    ranks, owner = bank.rings.ranks, bank._owner
    code = DTYPES.index(_arguments.one_of("MemoryBank", "the dtype of queries", dtype, DTYPES))
    state = torch.tensor([number, code, -code], device=owner.device)
    state = torch.cat((state, (owner != ranks.rank).to(state.dtype).view(1)))
    most: int
    most, last, first, overwritten = all_gather(ranks, state).amax(0).tolist()
    if last != -first:
        raise RuntimeError(
            f"MemoryBank: the queries of a sharded bank must have one dtype on all {ranks.world_size} ranks, got "
            f"{dtype} on rank {ranks.rank}; all ranks together use {DTYPES[-first]} and {DTYPES[last]}"
        )
    if overwritten:
        raise RuntimeError(
            "MemoryBank: a rank's shard was overwritten by another rank's buffers (DDP broadcasts buffers); call "
            "dgcl_ops.ddp_ignore_bank(model) before wrapping"
        )
    return most


def _best_scores(
    bank: MemoryBank, queries: Tensor, offsets: Tensor, counts: Tensor, exclude_self: bool = False
) -> Tensor:
    """The best scores in this shard. queries [M, D], offsets [C + 1], counts [C] of whole rings -> [M, k]."""
    return knn_topk(
        queries,
        bank.features,
        max(bank.scales),
        metric=bank.metric,
        query_offsets=offsets,
        bank_counts=bank.rings.counts(counts),
        exclude_self=exclude_self,
        unit_bank=bank._holds_unit_rows(queries.dtype),
    )[0]


def _scores_in_shard(bank: MemoryBank, queries: Tensor, offsets: Tensor, counts: Tensor) -> Tensor:
    """`_best_scores` for the queries of all ranks, in one search.

    queries [W, M, D], offsets [W, C + 1] that start at 0, counts [C] -> [W, M, k].
    """
    row = torch.arange(queries.shape[1], device=queries.device)
    row = row.expand(queries.shape[:2]).contiguous()
    classes = torch.searchsorted(offsets[:, 1:].contiguous(), row, right=True)
    order = torch.argsort(classes.reshape(-1), stable=True)
    # The offsets of the joined queries: each rank's start at 0.
    scores = _best_scores(bank, queries.flatten(0, 1)[order], offsets.sum(0), counts)
    return torch.empty_like(scores).index_copy_(0, order, scores).view(*queries.shape[:2], -1)


def _merge(
    bank: MemoryBank, queries: Tensor, offsets: Tensor, counts: Tensor, scores: Tensor
) -> Tensor:
    """Sends each rank the scores of its queries. Returns the densities of this rank's queries.

    queries [M, D], offsets [C + 1], counts [C] of whole rings, scores [W, M, k] in this shard for each rank -> [M].
    """
    received = torch.empty_like(scores)  # from each shard, for this rank
    dist.all_to_all_single(received, scores, group=bank.rings.ranks.group)
    density = density_of_scores(received.transpose(0, 1).flatten(1), bank.scales)
    # A NaN query, or an infinite one with "cosine", has no neighbours and would get density 0. Return NaN instead,
    # unless its class is empty.
    row = torch.arange(queries.shape[0], device=queries.device)
    classes = torch.searchsorted(offsets[1:].contiguous(), row, right=True)
    searched = torch.nn.functional.pad(counts, (0, 1))[classes] > 0
    invalid = ~queries.isfinite() if bank.metric == "cosine" else queries.isnan()
    return torch.where(invalid.any(1) & searched, torch.nan, density)


def density_of_scores(scores: Tensor, scales: tuple[int, ...]) -> Tensor:
    """The density of queries from their scores, -inf where one is missing. [M, N] -> [M].

    Bit-identical to a search of the rows: each query becomes a class with the query 1 and its scores as rows, and
    1 * score is exact.
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
