"""A sharded memory bank: of every ring each process holds a window of slots.

Rows of a push travel as in `distributed`, and each process writes those that fall into its window. For densities
the queries travel: each process finds the best scores in its window, and the process that asked merges them, which
gives the scores that one bank would give.
"""

import torch
from torch import Tensor
from torch import distributed as dist

from dgcl_ops._bank.checkpoint import DTYPES, as_windows
from dgcl_ops._bank.exchange import Arrivals, Ranks, gather
from dgcl_ops.ops import _arguments, knn_density, knn_topk, memory_push

PIECE = 4096  # queries of each process that travel at a time: bounds the memory of a search


class ShardedRings:
    """What a bank does with its rings where this process holds a window of slots. See `rings.Rings`.

    Windows follow the ranks: this one has the slots start to start + length of every ring.
    """

    whole = False

    def __init__(self, ranks: Ranks, capacity: int):
        self.ranks = ranks
        # Of every window but the last, which may have fewer.
        self.width = -(-capacity // ranks.size)
        if capacity <= self.width * (ranks.size - 1):  # PyTorch's own sharding cuts like this, too
            raise ValueError(
                f"MemoryBank: capacity must leave a slot for each of {ranks.size} processes, in windows of "
                f"{self.width}, got {capacity}"
            )
        self.start = ranks.rank * self.width
        self.length = min(self.width, capacity - self.start)

    def counts(self, counts: Tensor) -> Tensor:
        """[C]: of the rows that a ring holds, those in the window."""
        return (counts - self.start).clamp(0, self.length)

    def fingerprint(self, bank) -> dict[str, Tensor]:
        return {"counts": bank.counts, "heads": bank.heads}

    def write(self, bank, rows: Arrivals, normalize: bool) -> None:
        """Writes those of the rows whose slots lie in this process's window, and moves the rings' counts and heads.

        The slots of a class's rows are one run, or two where they pass the end of the ring: each is cut with the
        window and written as a run of the window. `normalize` is False: `distributed.exchange` has made unit rows
        where the bank wants those.
        """
        capacity, head = bank.capacity, bank.heads
        arriving = rows.row_counts
        # Of more rows than the ring holds, the last ones stay.
        oldest = (arriving - capacity).clamp(min=0)
        class_index = torch.arange(bank.num_classes, device=head.device).unsqueeze(1)
        width = min(rows.density.shape[1], self.length)
        place = torch.arange(width, device=head.device)
        for lap in range((rows.density.shape[1] - 1) // capacity + 2):
            # Row i goes to slot head + i - lap * capacity, where that lies in the ring.
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
            )
        bank.counts.copy_((bank.counts + arriving).clamp(max=capacity))
        bank.heads.copy_((head + arriving) % capacity)

    def density_of(self, bank, queries, query_offsets, with_density, exclude_self) -> Tensor:
        """`MemoryBank.density_of` with the rows of all windows. Ranks may have different numbers of queries.

        Shape: queries [M, D], query_offsets [C + 1], with_density [C] bool -> [M].
        """
        if exclude_self:
            raise ValueError(
                "MemoryBank.density_of: exclude_self must be False with placement 'sharded', got True"
            )
        if queries.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                "MemoryBank.density_of: queries must not require a gradient with placement 'sharded', whose "
                f"densities have none; detach them, got a tensor of shape {list(queries.shape)} that does"
            )
        rows, counts = queries.shape[0], torch.where(with_density, bank.counts, 0)
        density = []
        most = _most(bank, rows, queries.dtype)
        size = min(most, PIECE)
        for begin in range(0, most, PIECE):
            piece = queries[begin : begin + size]
            padded = torch.nn.functional.pad(piece, (0, 0, 0, size - piece.shape[0]))
            offsets = (query_offsets - begin).clamp(0, size)
            asked, asked_offsets = gather(self.ranks, padded), gather(self.ranks, offsets)
            found = _scores_in_window(bank, asked, asked_offsets, counts)
            density.append(_merged(bank, padded, offsets, counts, found))
        return torch.cat(density)[:rows] if density else bank.density.new_zeros(rows)

    def refresh(self, bank, classes: Tensor) -> None:
        """Windows exchange queries only for the classes that are due, so the host must know which."""
        for c in classes.nonzero().flatten().tolist():
            bank.density[c] = self._density_of_own_rows(bank, c).to(bank.density.dtype)

    def _density_of_own_rows(self, bank, c: int) -> Tensor:
        """Density of each row of class c in this process's window against the class's other rows; 0 for free slots.

        Shape: [length].
        """
        classes = torch.arange(bank.num_classes + 1, device=bank.counts.device)
        offsets = torch.where(classes > c, self.width, 0)
        counts = torch.where(classes[:-1] == c, bank.counts, 0)
        rows = torch.nn.functional.pad(bank.features[c], (0, 0, 0, self.width - self.length))
        asked = gather(self.ranks, rows)
        found = [
            _best(bank, queries, offsets, counts, exclude_self=rank == self.ranks.rank)
            for rank, queries in enumerate(asked)
        ]
        density = _merged(bank, rows, offsets, counts, torch.stack(found))[: self.length]
        held = torch.arange(self.length, device=density.device) < self.counts(bank.counts)[c]
        return torch.where(held, density, 0)

    def densest_slots(self, bank, width: int) -> Tensor:
        """The slots of highest stored density; of equal ones, the lowest. Entries beyond the rows held mean nothing.

        Shape: [C, width], or [C, capacity] if that is less.
        """
        classes = bank.num_classes
        here = min(width, self.width)
        density = torch.where(bank.held(), bank.density, -torch.inf)
        density, slots = torch.sort(density, dim=1, descending=True, stable=True)
        density, slots = density[:, :here], slots[:, :here] + self.start
        if density.shape[1] < here:  # the last window may be smaller
            missing = (0, here - density.shape[1])
            density = torch.nn.functional.pad(density, missing, value=-torch.inf)
            slots = torch.nn.functional.pad(slots, missing)
        # Side by side in the order of the ranks, equal densities stand in the order of their slots.
        density = gather(self.ranks, density).transpose(0, 1).reshape(classes, -1)
        slots = gather(self.ranks, slots).transpose(0, 1).reshape(classes, -1)
        order = torch.sort(density, dim=1, descending=True, stable=True).indices
        return slots.gather(1, order[:, :width])

    def projection_rows(self, bank, slots: Tensor) -> Tensor:
        """The projections in slots of all windows. Shape: [C, K], the same on all ranks -> [C, K, E]."""
        class_index = torch.arange(bank.num_classes, device=slots.device).unsqueeze(1)
        mine = bank.projections[class_index, (slots - self.start).clamp(0, self.length - 1)]
        rows = gather(self.ranks, mine)
        return rows[
            slots // self.width, class_index, torch.arange(slots.shape[1], device=slots.device)
        ]

    def save(self, bank, state_dict: dict, prefix: str) -> None:
        as_windows(bank, state_dict, prefix)


@torch.compiler.disable(
    reason="MemoryBank: with placement 'sharded' a step waits for the host, so it is not one graph; compile without "
    "fullgraph=True, or take placement 'replicated'"
)
def _most(bank, number: int, dtype: torch.dtype) -> int:
    """The largest of the ranks' numbers of queries. The host waits for it, and looks whether the queries fit each
    other and the windows are still their own."""
    ranks, owner = bank.rings.ranks, bank._owner
    code = DTYPES.index(_arguments.one_of("MemoryBank", "the dtype of queries", dtype, DTYPES))
    told = torch.tensor([number, code, -code], device=owner.device)
    told = torch.cat((told, (owner != ranks.rank).to(told.dtype).view(1)))
    most, last, first, overwritten = gather(ranks, told).amax(0).tolist()
    if last != -first:
        raise RuntimeError(
            f"MemoryBank: the queries of a sharded bank must have one dtype on all {ranks.size} processes, got "
            f"{dtype} on rank {ranks.rank}, and {DTYPES[-first]} and {DTYPES[last]} among all"
        )
    if overwritten:
        raise RuntimeError(
            "MemoryBank: the buffers of a sharded bank must be those of its own rank, got buffers that another rank's "
            "were written over, as DistributedDataParallel does with what it wraps; call ddp_ignore_bank first"
        )
    return most


def _best(bank, queries, offsets, counts, exclude_self=False) -> Tensor:
    """The best scores in this process's window. Shape: [M, D], [C + 1], counts [C] of whole rings -> [M, k]."""
    return knn_topk(
        queries,
        bank.features,
        max(bank.scales),
        metric=bank.metric,
        query_offsets=offsets,
        bank_counts=bank.rings.counts(counts),
        exclude_self=exclude_self,
        unit_bank=bank.holds_unit_rows(queries.dtype),
    )[0]


def _scores_in_window(bank, asked, asked_offsets, counts) -> Tensor:
    """`_best` for the queries of all ranks, in one search.

    Shape: asked [W, M, D], asked_offsets [W, C + 1] from 0 on -> [W, M, k].
    """
    row = torch.arange(asked.shape[1], device=asked.device).expand(asked.shape[:2]).contiguous()
    classes = torch.searchsorted(asked_offsets[:, 1:].contiguous(), row, right=True)
    order = torch.argsort(classes.reshape(-1), stable=True)
    offsets = asked_offsets.sum(0)  # each begins at 0
    scores = _best(bank, asked.flatten(0, 1)[order], offsets, counts)
    return torch.empty_like(scores).index_copy_(0, order, scores).view(*asked.shape[:2], -1)


def _merged(bank, queries, offsets, counts, found) -> Tensor:
    """Sends each rank the scores of its queries, and gives the densities of this rank's.

    Shape: queries [M, D], offsets [C + 1], counts [C] of whole rings, found [W, M, k] in this window, for each
    rank -> [M].
    """
    scores = torch.empty_like(found)  # in each window, for this rank
    dist.all_to_all_single(scores, found, group=bank.rings.ranks.group)
    density = density_of_scores(scores.transpose(0, 1).flatten(1), bank.scales)
    # A query with a NaN, and with "cosine" one of infinite length, finds nothing, and nothing would mean 0. That it
    # keeps where there is nothing to find: in a class without rows, and in none.
    row = torch.arange(queries.shape[0], device=queries.device)
    classes = torch.searchsorted(offsets[1:].contiguous(), row, right=True)
    searched = torch.nn.functional.pad(counts, (0, 1))[classes] > 0
    lost = ~queries.isfinite() if bank.metric == "cosine" else queries.isnan()
    return torch.where(lost.any(1) & searched, torch.nan, density)


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
