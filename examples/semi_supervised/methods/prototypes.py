"""Prototypes of classes: running means of unit features, which classify by cosine."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dgcl_ops import MemoryBank
from semi_supervised import distributed


class Prototypes(nn.Module):
    """Prototypes of each class: `vectors` [C, K, D], and `started` [C] bool, True for the classes that have them."""

    vectors: Tensor
    started: Tensor

    def __init__(self, num_classes: int, number: int, width: int):
        super().__init__()
        self.register_buffer("vectors", torch.zeros(num_classes, number, width))
        self.register_buffer("started", torch.zeros(num_classes, dtype=torch.bool))

    def forward(self, rows: Tensor) -> Tensor:
        """Returns the cosines, [N, C, K] for rows [N, D]. They are -1 for classes without prototypes."""
        similar = F.normalize(rows, dim=1) @ F.normalize(self.vectors.flatten(0, 1), dim=1).T
        return similar.unflatten(1, self.vectors.shape[:2]).masked_fill(~self.started[:, None], -1)

    @torch.no_grad()
    def start(self, bank: MemoryBank, rounds: int = 10) -> None:
        """Clusters the rows of each class by k-means."""
        rows, valid, number = bank.features, bank.valid_slots(), self.vectors.shape[1]
        slots = torch.arange(number, device=rows.device) * bank.counts[:, None] // number
        vectors = rows.take_along_dim(slots[..., None], 1)
        for _ in range(rounds):
            nearest = (rows @ F.normalize(vectors, dim=2).mT).argmax(2)
            members = (F.one_hot(nearest, number) * valid[..., None]).mT.to(rows.dtype)
            counts = members.sum(2, keepdim=True)
            vectors = torch.where(counts > 0, members @ rows / counts.clamp(min=1), vectors)
        self.vectors.copy_(vectors)
        self.started.copy_(bank.counts > 0)

    @torch.no_grad()
    def update(self, rows: Tensor, members: Tensor, momentum: float) -> None:
        """Moves the prototypes towards the means of their rows on all ranks. A new class starts with its mean.

        Args:
            rows: [N, D].
            members: [N, C] bool, the class of each row. Rows without a class do not count.
            momentum: the weight of the old prototypes.
        """
        nearest = F.one_hot(self(rows).argmax(2), self.vectors.shape[1])
        weights = (nearest * members[..., None]).movedim(0, 2).to(rows.dtype)  # [C, K, N]
        sums = distributed.gather(weights @ F.normalize(rows, dim=1)).sum(0)
        counts = distributed.gather(weights.sum(2, keepdim=True)).sum(0)
        moved = self.vectors.lerp(sums / counts.clamp(min=1), 1 - momentum)
        first = sums.sum(1, keepdim=True) / counts.sum(1, keepdim=True).clamp(min=1)
        started, present = self.started[:, None, None], counts.sum(1, keepdim=True) > 0
        changed = torch.where(started, counts > 0, present)
        self.vectors.copy_(torch.where(changed, torch.where(started, moved, first), self.vectors))
        self.started.logical_or_(present.flatten())
