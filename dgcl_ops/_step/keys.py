"""The key of a class: the mean of its chosen rows, or of all candidates of the batch and all rows of the bank."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dgcl_ops.ops import sum_rows

if TYPE_CHECKING:
    from dgcl_ops._step.selection import Choice
    from dgcl_ops.memory import MemoryBank


def mean_of_chosen(
    bank: MemoryBank, choice: Choice, rows: Tensor, dtype: torch.dtype, normalize: bool
) -> Tensor:
    """The mean of the key rows of batch and bank, in `dtype`. rows [C, K, E] of the batch -> [C, E]."""
    total = _sum_of_chosen(rows, None, choice.keys.counts, dtype, normalize)
    count = choice.keys.counts
    if choice.bank_keys is not None:
        slots, stored_count = choice.bank_keys
        stored, places = bank.rings.projection_rows(bank, slots)
        total = total + _sum_of_chosen(stored, places, stored_count, dtype, normalize)
        count = count + stored_count
    return total / count.clamp(min=1).unsqueeze(1)


def _sum_of_chosen(
    rows: Tensor, indices: Tensor | None, counts: Tensor, dtype: torch.dtype, normalize: bool
) -> Tensor:
    """Sum of the first counts[c] of the rows `indices`, or of all rows. [C, N, E], [C, K], [C] -> [C, E] in `dtype`."""
    if normalize:
        if indices is not None:
            rows, indices = rows.take_along_dim(indices.unsqueeze(2), 1), None
        rows = rows.to(dtype)
        rows = rows * inverse_norms(rows, 2).unsqueeze(2)
    return sum_rows(rows, indices, counts, in_float64=dtype == torch.float64).to(dtype)


def average_keys(
    bank: MemoryBank, choice: Choice, projections: Tensor, dtype: torch.dtype, normalize: bool
) -> Tensor:
    """The mean of all candidates and all bank rows of each class, in `dtype`.

    projections [B, E, *S] or [M, E] -> [C, E].
    """
    total = _candidate_sums(choice, bank.num_classes, projections, dtype, normalize)
    stored = bank.projections.to(dtype)
    weights = bank.valid_slots().to(dtype)
    if normalize:
        weights = weights * inverse_norms(stored, 2)
    total = total + torch.bmm(weights.unsqueeze(1), stored).squeeze(1)
    count = choice.candidate_counts + bank.counts
    return total / count.clamp(min=1).unsqueeze(1)


def _candidate_sums(
    choice: Choice, num_classes: int, projections: Tensor, dtype: torch.dtype, normalize: bool
) -> Tensor:
    """Sum of the candidates' projections of each class, as a product with a one-hot matrix.

    It goes image by image, so there is no second copy of the whole map. A matrix product adds in the same order each
    time, unlike atomic additions.

    projections [B, E, *S] or [M, E] -> [C, E].
    """
    pixels = choice.candidates
    position = torch.arange(pixels.pixels.shape[0], device=pixels.pixels.device)
    first = torch.nn.functional.pad(pixels.offsets[:-1], (0, 1))[pixels.classes]
    limit = torch.nn.functional.pad(choice.candidate_counts, (0, 1))[pixels.classes]
    pixel_count = projections.numel() // projections.shape[1]
    # Other pixels write to a spare slot past the end.
    place = torch.where(position - first < limit, pixels.pixels, pixel_count)
    member = torch.full((pixel_count + 1,), num_classes, device=place.device)
    member = member.scatter(0, place, pixels.classes)[:pixel_count]
    images = (projections.t(),) if projections.dim() == 2 else projections.unbind(0)
    total = torch.zeros((num_classes, projections.shape[1]), dtype=dtype, device=place.device)
    class_index = torch.arange(num_classes, device=place.device)
    for image, classes in zip(images, member.view(len(images), -1), strict=False):  # [E, *S], [N]
        image = torch.where(classes < num_classes, image.flatten(1).to(dtype), 0)  # [E, N]
        weights = (classes == class_index.unsqueeze(1)).to(dtype)
        if normalize:
            weights = weights * inverse_norms(image, 0)
        total = total + weights @ image.t()
    return total


def inverse_norms(rows: Tensor, dim: int) -> Tensor:
    """1 / |x| along a dimension, 0 for a zero row."""
    norms = torch.linalg.vector_norm(rows, dim=dim)
    return torch.where(norms > 0, 1 / norms, 0)
