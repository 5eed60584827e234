"""The rings of a memory bank, whole in this process. `sharded_rings.ShardedRings` has the same methods for a shard.

The buffers belong to the bank. A ring fills from slot 0 on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dgcl_ops._bank.exchange import SINGLE_PROCESS, PushedRows
from dgcl_ops.ops import knn_density, knn_topk, memory_push

if TYPE_CHECKING:
    from dgcl_ops.memory import MemoryBank


class Rings:
    """The operations of a bank whose process holds every slot.

    Attributes:
        whole: True; False for a shard.
        ranks: the ranks that hold the shards; here this process alone.
        start: first slot of every ring that this process holds.
        length: number of slots of every ring that this process holds.
    """

    whole = True
    ranks = SINGLE_PROCESS
    start = 0

    def __init__(self, capacity: int):
        self.length = capacity

    def counts(self, counts: Tensor) -> Tensor:
        """[C]: rows in each ring -> rows of each ring in this process."""
        return counts

    def synced_state(self, bank: MemoryBank) -> dict[str, Tensor]:
        """What must be equal on all ranks that share the bank."""
        return {"checksum": bank.checksum()}

    def density_of(
        self,
        bank: MemoryBank,
        queries: Tensor,
        query_offsets: Tensor,
        with_density: Tensor,
        exclude_self: bool,
    ) -> Tensor:
        """See `MemoryBank.density_of`. queries [M, D], with_density [C] bool -> [M]."""
        return knn_density(
            queries,
            bank.features,
            bank.scales,
            metric=bank.metric,
            query_offsets=query_offsets,
            bank_counts=bank.counts * with_density,
            exclude_self=exclude_self,
            unit_bank=bank._holds_unit_rows(queries.dtype),
        )

    def topk_density(self, bank: MemoryBank, k: int) -> tuple[Tensor, Tensor]:
        """The slots of highest stored density. Ties go to the lower slot; NaN and -inf are left out.

        This is a search with the query 1 in each class. 1 * density is exact, so the scores are the densities.

        Returns:
            [C, k], k <= capacity, and [C], how many there are. Later entries are valid indices.
        """
        slots = knn_topk(
            bank.density.new_ones((bank.num_classes, 1)),
            bank.density.unsqueeze(2),
            k,
            metric="dot",
            query_offsets=torch.arange(bank.num_classes + 1, device=bank.density.device),
            bank_counts=bank.counts,
        )[1]
        return slots.clamp(min=0), (slots >= 0).sum(1)

    def projection_rows(self, bank: MemoryBank, slots: Tensor) -> tuple[Tensor, Tensor | None]:
        """Rows that include the projections in some slots of each ring.

        slots [C, K] -> rows [C, N, E], and the places of the slots in them, [C, K]. None stands for 0, ..., K - 1.
        """
        return bank.projections, slots

    def write(self, bank: MemoryBank, rows: PushedRows, normalize: bool) -> None:
        """Appends rows and moves counts and heads.

        A compiled step reads counts and heads before the push, so there the op gets fresh tensors. TorchInductor (2.13)
        may fuse such a read into a later kernel, after a custom op that writes to the tensor; it keeps a plain copy_ in
        place. The `stack` stands for two clones, which would be optimised away.
        """
        compiling = torch.compiler.is_compiling()
        counts, heads = bank.counts, bank.heads
        if compiling:
            counts, heads = torch.stack((counts, heads))
        memory_push(bank.features, bank.projections, bank.density, counts, heads, *rows, normalize)
        if compiling:
            bank.counts.copy_(counts)
            bank.heads.copy_(heads)

    def refresh(self, bank: MemoryBank, classes: Tensor) -> None:
        """Recomputes the densities of all rows of some classes, [C] bool. A row is not its own neighbour.

        Only the device knows which classes are due. The kernel gets no bank rows for the others.
        """
        offsets = torch.arange(bank.num_classes + 1, device=classes.device) * bank.capacity
        rows = bank.features.view(-1, bank.feature_dim)
        density = self.density_of(bank, rows, offsets, classes, exclude_self=True)
        density = density.view_as(bank.density).to(bank.density.dtype)
        bank.density.copy_(torch.where(classes[:, None], density, bank.density))

    def save(self, bank: MemoryBank, state_dict: dict[str, Any], prefix: str) -> None:
        """Adapts the rows in a state_dict. Whole rings are stored as they are."""
