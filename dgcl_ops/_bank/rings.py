"""The rings of a memory bank, whole in this process. `sharding.ShardedRings` has the same methods for windows of rings.

The buffers are the bank's. A ring fills from slot 0 on.
"""

import torch
from torch import Tensor

from dgcl_ops._bank.exchange import ALONE, Arrivals
from dgcl_ops.ops import knn_density, memory_push


class Rings:
    """What a bank does with its rings where this process holds every slot.

    Attributes:
        whole: True; False for windows.
        ranks: the processes that hold the windows; this one alone.
        start, length: the slots of every ring that this process holds.
    """

    whole = True
    ranks = ALONE
    start = 0

    def __init__(self, capacity: int):
        self.length = capacity

    def counts(self, counts: Tensor) -> Tensor:
        """[C]: of the rows that a ring holds, those in this process."""
        return counts

    def fingerprint(self, bank) -> dict[str, Tensor]:
        """What has to be equal in all processes that share the bank."""
        return {"checksum": bank.checksum()}

    def density_of(self, bank, queries, query_offsets, with_density, exclude_self) -> Tensor:
        """See `MemoryBank.density_of`. Shape: queries [M, D], with_density [C] bool -> [M]."""
        return knn_density(
            queries,
            bank.features,
            bank.scales,
            metric=bank.metric,
            query_offsets=query_offsets,
            bank_counts=torch.where(with_density, bank.counts, 0),
            exclude_self=exclude_self,
            unit_bank=bank.holds_unit_rows(queries.dtype),
        )

    def densest_slots(self, bank, width: int) -> Tensor:
        """See `MemoryBank.densest_slots`."""
        density = torch.where(bank.held(), bank.density, -torch.inf)
        return torch.sort(density, dim=1, descending=True, stable=True).indices[:, :width]

    def projection_rows(self, bank, slots: Tensor) -> Tensor:
        """See `MemoryBank.projection_rows`."""
        class_index = torch.arange(bank.num_classes, device=slots.device).unsqueeze(1)
        return bank.projections[class_index, slots]

    def write(self, bank, rows: Arrivals, normalize: bool) -> None:
        """Appends rows and moves counts and heads.

        Fresh tensors for the two that a step reads before the push. TorchInductor (2.13) may run such a read, fused
        into a later kernel, after a custom operator that writes to what is read; an ordinary copy_ it keeps in its
        place. The `where` is there because a clone would be optimised away.
        """
        counts = torch.where(rows.row_counts >= 0, bank.counts, 0)
        heads = torch.where(rows.row_counts >= 0, bank.heads, 0)
        memory_push(bank.features, bank.projections, bank.density, counts, heads, *rows, normalize)
        bank.counts.copy_(counts)
        bank.heads.copy_(heads)

    def refresh(self, bank, classes: Tensor) -> None:
        """Computes the densities of all rows of some classes, each row against the others.

        The device alone knows which classes are due. For the others the kernel is given no rows.

        Shape: classes [C] bool.
        """
        offsets = torch.arange(bank.num_classes + 1, device=classes.device) * bank.capacity
        rows = bank.features.view(-1, bank.feature_dim)
        density = self.density_of(bank, rows, offsets, classes, exclude_self=True)
        density = density.view_as(bank.density).to(bank.density.dtype)
        bank.density.copy_(torch.where(classes[:, None], density, bank.density))

    def save(self, bank, state_dict: dict, prefix: str) -> None:
        """Changes what the state_dict holds of the rows; here nothing."""
