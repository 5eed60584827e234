"""Which pixels a step looks at: class segments, candidates, anchors, keys, negatives.

Every table has a shape that depends on sizes only; how much of it is used stands in counts on the device.
So nothing is copied to the host, nothing is masked by booleans, and one compiled graph or CUDA graph serves
every batch:

1. one sort of the key (class, random number) lays the pixels out in class segments, random inside;
2. the first rows of a segment are its candidates, and the first of those its push: no second draw;
3. two stable sorts, by value and then by class, put the candidates of each class in order of density (or
   confidence): anchors are read from the front of a segment, keys from its back;
4. a negative of class c is a rank among the valid pixels outside the segment of c.

Randomness is counter based: each number is a hash of (seed, step, stream, index). The two words of state
live in a buffer, so that a checkpoint continues exactly, all devices draw the same numbers, and a compiled
graph has no generator to carry.

Pixels are numbered r = b * H * W + y * W + x; flat inputs [M, D] by their row.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from dgcl_ops._random import random_ranks
from dgcl_ops.ops import class_counts


class Segments(NamedTuple):
    """Pixels sorted by class, in random order inside a class, the unused ones last."""

    pixels: Tensor  # [R] int64, a permutation
    counts: Tensor  # [C] int64, pixels of each class
    offsets: Tensor  # [C + 1] int64, class c is pixels[offsets[c] : offsets[c + 1]]


class Rows(NamedTuple):
    """The first pixels of each segment, packed without gaps; the entries from offsets[C] on are unused."""

    pixels: Tensor  # [M] int64
    classes: Tensor  # [M] int64, C for the unused
    offsets: Tensor  # [C + 1] int64


class Table(NamedTuple):
    """Up to `width` entries for each class; those at or beyond the count are valid indices without meaning."""

    index: Tensor  # [C, width] int64
    counts: Tensor  # [C] int64


# ---- segments ---------------------------------------------------------------------------------------


def partition(
    labels: Tensor,
    num_classes: int,
    ignore_index: int,
    bits: Tensor,
    usable: Tensor | None = None,
) -> Segments:
    """Sorts the pixels by (class, random number), the ignored and the unusable last.

    Args:
        labels: class of each pixel, any integer type.
        num_classes: C.
        ignore_index: label of unused pixels; it may lie inside [0, C) or outside.
        bits: a random word for each pixel.
        usable: False marks further pixels as unused.

    Returns:
        The class segments.

    Raises:
        RuntimeError: on the CPU, if a usable pixel's label lies outside [0, C) and is not `ignore_index`.
            Other devices cannot look without waiting; there such a pixel is unused.

    Shape:
        labels any, R elements; bits [R]; usable [R] bool.
    """
    flat = labels.reshape(-1).to(torch.int64)
    if usable is not None:
        flat = torch.where(usable, flat, ignore_index)
    counts = class_counts(flat, num_classes, ignore_index)
    used = (flat >= 0) & (flat < num_classes) & (flat != ignore_index)
    key = (torch.where(used, flat, num_classes) << 32) | bits
    pixels = torch.sort(key, stable=True).indices
    return Segments(pixels, counts, _offsets(counts))


def _offsets(counts: Tensor) -> Tensor:
    """[C] -> [C + 1]: where each class begins, and the total."""
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0))


def leading_rows(segments: Segments, limits: Tensor, size: int) -> Rows:
    """The first limits[c] pixels of each segment c, or all it has.

    Args:
        segments: from `partition`.
        limits: [C] int64, at least 0.
        size: M, at least the number of rows there can be.
    """
    offsets = _offsets(torch.minimum(segments.counts, limits))
    row = torch.arange(size, device=offsets.device)
    classes = torch.searchsorted(offsets[1:], row, right=True)
    at = segments.offsets[classes] + (row - offsets[classes])
    last = segments.pixels.shape[0] - 1
    return Rows(segments.pixels[at.clamp(max=last)], classes, offsets)


def order_by(values: Tensor, rows: Rows) -> Tensor:
    """Row numbers, by class, inside a class by value upward; equal values keep their order.

    Shape: values [M] -> [M] int64; class c stands at offsets[c] : offsets[c + 1], as in `rows`.
    """
    by_value = torch.argsort(values, stable=True)
    return by_value[torch.argsort(rows.classes[by_value], stable=True)]


def front(rows: Rows, counts: Tensor, width: int, order: Tensor | None = None) -> Table:
    """The first counts[c] <= width row numbers of each class, in the given order or as they stand."""
    at = rows.offsets[:-1, None] + torch.arange(width, device=counts.device)
    at = at.clamp(max=rows.pixels.shape[0] - 1)
    return Table(at if order is None else order[at], counts)


def back(rows: Rows, counts: Tensor, width: int, order: Tensor) -> Table:
    """The last counts[c] <= width row numbers of each class in the given order, the very last first."""
    at = rows.offsets[1:, None] - 1 - torch.arange(width, device=counts.device)
    return Table(order[at.clamp(min=0)], counts)


def used_entries(table: Table) -> Tensor:
    """[C, width] bool: the entries that mean something."""
    return torch.arange(table.index.shape[1], device=table.counts.device) < table.counts[:, None]


def draw_negatives(segments: Segments, bits: Tensor) -> Table:
    """Pixels of other classes: each once if there are at most N; otherwise N of them, drawn with replacement.

    Without the segment of class c, the other valid pixels have the ranks [0, others). A rank at or beyond the
    start of that segment moves up by its size.

    Shape: bits [C, N] -> Table of pixels [C, N], counts min(N, others).
    """
    limit = bits.shape[1]
    others = segments.offsets[-1] - segments.counts
    each_once = torch.arange(limit, device=bits.device)
    rank = torch.where(others[:, None] > limit, random_ranks(bits, others[:, None]), each_once)
    beyond = rank >= segments.offsets[:-1, None]
    rank = rank + torch.where(beyond, segments.counts[:, None], 0)
    pixels = segments.pixels[rank.clamp(max=segments.pixels.shape[0] - 1)]
    return Table(pixels, others.clamp(max=limit))
