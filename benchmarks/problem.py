"""What the contenders of the density benchmarks share: the problem, their interface, the densities of scores."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dgcl_ops._scales import scale_weights


@dataclass(frozen=True)
class Problem:
    """Queries and the bank they are measured against; grouped by class if there are offsets."""

    queries: Tensor  # [M, D]
    bank: Tensor  # [N, D], or [C, N, D]
    unit_bank: Tensor  # the bank's rows divided by their norms, as MemoryBank stores them
    scales: tuple[int, ...]
    metric: str
    offsets: Tensor | None = None  # [C + 1] int64
    # The offsets on the host: code that goes class by class must not wait for the device.
    cuts: tuple[int, ...] = ()

    def copy(self) -> "Problem":
        """With rows of its own."""
        copies = {n: getattr(self, n).clone() for n in ("queries", "bank", "unit_bank")}
        return replace(self, **copies)

    def input_bytes(self) -> int:
        """Of what each contender reads."""
        return sum(t.numel() * t.element_size() for t in (self.queries, self.bank))

    def classes(self) -> list["Problem"]:
        if self.offsets is None:
            return [self]
        cuts = self.cuts
        return [
            replace(
                self,
                queries=self.queries[cuts[c] : cuts[c + 1]],
                bank=self.bank[c],
                unit_bank=self.unit_bank[c],
                offsets=None,
                cuts=(),
            )
            for c in range(len(cuts) - 1)
        ]


@dataclass(frozen=True)
class Contender:
    """`run` returns densities [M], or None if it computes none. `missing` says why it cannot take part.

    `neighbours` returns scores and indices [M, max(scales)], if they can be asked for.
    """

    run: Callable[[Problem], Tensor | None]
    missing: Callable[[Problem], str] = lambda problem: ""
    neighbours: Callable[[Problem], tuple[Tensor, Tensor]] | None = None


def density_of(sorted_scores: Tensor, scales: tuple[int, ...]) -> Tensor:
    """Scores [M, max(scales)], sorted downward, to densities [M]."""
    ranks = max(scales)
    found = torch.full((1,), ranks, device=sorted_scores.device)
    weights = scale_weights(scales, found, ranks)[0]
    return sorted_scores @ weights.to(sorted_scores.dtype)
