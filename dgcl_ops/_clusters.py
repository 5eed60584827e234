"""Sorts rows by class and visits them in blocks; shared by the scores in `metrics`.

The block size depends on the device. On the CPU a block is so small that PyTorch runs each step on the calling thread.
A parallel region waits for its slowest thread. With hundreds of short regions and other work on the cores, that wait
took up to 17 times as long as the arithmetic. On a GPU, where a launch costs more than a short step, a block is as
large as the memory budget allows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from dgcl_ops._inputs import checked_floats, checked_labels, per_pixel
from dgcl_ops.ops import silhouette_sums

_BUDGET_DOUBLES = 64 * 2**20 // 8
_LARGEST_BLOCK = 1024
_GRAIN = 2**15  # at::internal::GRAIN_SIZE: PyTorch starts threads from this many numbers on


@dataclass(frozen=True)
class Clusters:
    """The rows that are not ignored, sorted by class."""

    score: str  # named in errors
    features: Tensor  # [N, D], as given
    order: Tensor  # [n] rows of features that are not ignored, sorted by class
    ids: Tensor  # [n] class of each sorted row, numbered 0 .. C-1
    counts: Tensor  # [C] rows of each class

    @property
    def largest_block(self) -> int:
        """Rows a block may hold: a float64 block [b, D] with its copies and a few tables [b, C] fit the budget."""
        row = 6 * self.features.shape[1] + 4 * self.counts.numel()
        return max(1, min(_LARGEST_BLOCK, _BUDGET_DOUBLES // row))

    @property
    def block(self) -> int:
        """Rows of a block [b, D]: see the top of this file."""
        if self.features.device.type != "cpu":
            return self.largest_block
        return max(1, min(self.largest_block, (_GRAIN - 1) // max(1, self.features.shape[1])))

    def sum_block(self, copies: int) -> int:
        """How many rows may have their distances summed at once.

        Three quarters of the budget hold `copies` copies of their features and a few tables [b, C]. The operator uses
        the rest.
        """
        row_bytes = copies * self.features.shape[1] * self.features.element_size()
        return max(1, 6 * _BUDGET_DOUBLES // (row_bytes + 32 * self.counts.numel()))

    def blocks(self, size: int | None = None) -> Iterator[slice]:
        rows, size = self.order.numel(), size or self.block
        for start in range(0, rows, size):
            yield slice(start, min(start + size, rows))

    def as_given(self, block: slice) -> Tensor:
        """The sorted rows of a block: [b, D]."""
        return self.features.index_select(0, self.order[block])

    def rows(self, block: slice) -> Tensor:
        """A widened copy of the sorted rows of a block: [b, D] float64."""
        return self.as_given(block).double()

    def distances_to(self, means: Tensor, block: slice) -> Tensor:
        """The Euclidean distances of a block's rows to their class means: [b] float64."""
        differences = self.rows(block).sub_(means.index_select(0, self.ids[block]))
        return torch.linalg.vector_norm(differences, dim=1)

    def class_means(self) -> Tensor:
        """The mean of each class: [C, D] float64.

        A sum keeps NaN and infinity. So single rows are checked only if a sum is not finite.

        Raises:
            ValueError: If a feature is not finite.
        """
        sums = self.features.new_zeros(
            self.counts.numel(), self.features.shape[1], dtype=torch.float64
        )
        if sums.is_cpu:  # index_add_ starts threads for any number of rows
            ends = self.counts.cumsum(0).tolist()
            for c, (begin, end) in enumerate(pairwise([0, *ends])):
                for start in range(begin, end, self.block):
                    sums[c] += self.rows(slice(start, min(start + self.block, end))).sum(0)
        else:
            for block in self.blocks():
                sums.index_add_(0, self.ids[block], self.rows(block))
        if not sums.isfinite().all():
            self.check_finite()
        return sums / self.counts[:, None]

    def check_finite(self) -> None:
        for block in self.blocks():
            if not self.as_given(block).isfinite().all():
                raise ValueError(f"{self.score}: features must be finite, got NaN or infinity")

    def distance_sums(self) -> Iterator[tuple[slice, Tensor]]:
        """Blocks of sorted rows with their sums of distances by class, [b, C].

        All rows are one block if the sorted copy fits the budget. That also halves the work.
        """
        ends = self.counts.cumsum(0)
        offsets = torch.cat([ends.new_zeros(1), ends])  # [C + 1]
        rows = self.order.numel()
        if rows <= self.sum_block(copies=1):
            everything = slice(0, rows)
            yield everything, silhouette_sums(self.as_given(everything), offsets)
            return
        blocks = list(self.blocks(self.sum_block(copies=2)))
        for block in blocks:
            queries = self.as_given(block)
            sums = offsets.new_zeros(queries.shape[0], self.counts.numel(), dtype=torch.float64)
            for other in blocks:
                inside = (offsets - other.start).clamp(0, other.stop - other.start)
                sums += silhouette_sums(self.as_given(other), inside, queries)
            yield block, sums


def sort_by_class(
    score: str, features: Tensor, labels: Tensor, ignore_index: int | None
) -> Clusters:
    """Checks a score's arguments, except that features are finite. Sorts the rows that are not ignored by class.

    Raises:
        TypeError: If `features` are not floating point, or `labels` are not integers.
        ValueError: If a shape or a device does not fit, or the number of classes does not.
    """
    features = checked_floats(score, "features", features)
    labels = checked_labels(score, labels)
    if features.dim() != 2:
        fix = "; use features.movedim(1, -1).flatten(0, -2) for maps" if features.dim() > 2 else ""
        raise ValueError(
            f"{score}: features must have shape [N, D], got {list(features.shape)}{fix}"
        )
    labels = per_pixel(score, "labels", labels, features.shape[:1], ", one per row of features")
    if labels.device != features.device:
        raise ValueError(
            f"{score}: labels must be on the device of features, {features.device}, "
            f"got {labels.device}"
        )
    if features.device.type == "mps":
        features, labels = features.cpu(), labels.cpu()
    labels, order = labels.long().sort(stable=True)
    if ignore_index is not None:
        kept = labels != ignore_index
        labels, order = labels[kept], order[kept]
    _, ids, counts = labels.unique_consecutive(return_inverse=True, return_counts=True)
    if not 2 <= counts.numel() < order.numel():
        raise ValueError(
            f"{score}: labels must hold at least 2 classes and fewer classes than rows, "
            f"got {counts.numel()} classes in {order.numel()} rows"
        )
    return Clusters(score, features, order, ids, counts)
