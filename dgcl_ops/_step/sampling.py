"""Building blocks of `selection`: class segments, their first pixels, sorting within a class.

The shape of every table depends only on sizes. Counts on the device say how much of it is used. So nothing is copied to
the host, and one compiled graph or CUDA graph works for every batch:

1. One sort by (class, random number) puts the pixels into class segments, in random order within each.
2. The first pixels of a segment are its candidates. The first of those are pushed, so there is no second draw.
3. Two stable sorts, by value and then by class, order the candidates of each class by density or confidence. Anchors
   are read from the front of a segment, keys from its back.
4. A negative of class c is drawn by its position among the valid pixels outside the segment of c, see
   `ops.draw_negatives`.

Random numbers are described in `ops.random_bits`.

Pixels are numbered over images and all spatial dimensions, the last one fastest: r = b * H * W + y * W + x for 2-D
maps. Flat inputs [M, D] are numbered by row.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from dgcl_ops.ops import leading_rows, partition_keys


class Segments(NamedTuple):
    """Pixels sorted by class, in random order inside a class. The unused ones are last."""

    pixels: Tensor  # [R] int64, a permutation
    counts: Tensor  # [C] int64, pixels of each class
    # [3] int64, the unused pixels: ignored; labelled, but not usable; with a label outside [0, C).
    skipped: Tensor


class LeadingPixels(NamedTuple):
    """The first pixels of each segment, without gaps. The entries from offsets[C] on are unused."""

    pixels: Tensor  # [M] int64
    classes: Tensor  # [M] int64, C for unused entries
    offsets: Tensor  # [C + 1] int64


class Table(NamedTuple):
    """Up to `width` entries for each class. Entries from counts[c] on are unused, but valid indices."""

    index: Tensor  # type: ignore[assignment]  # [C, width] int64; hides tuple.index
    counts: Tensor  # [C] int64


# ---- segments ---------------------------------------------------------------------------------------


def partition(
    labels: Tensor,
    usable: Tensor,
    bits: Tensor,
    num_classes: int,
    ignore_index: int,
    op: str = "partition",
) -> Segments:
    """Sorts the pixels by (class, random number). Ignored and unusable pixels come last.

    Args:
        labels: R elements in any shape and integer dtype.
        usable: [R] bool, False for further unused pixels.
        bits: [R], a random word for each pixel.
        num_classes: C.
        ignore_index: label of unused pixels, inside or outside [0, C).
        op: name for the error.

    Returns:
        The class segments.

    Raises:
        RuntimeError: If, on the CPU, a usable pixel's label is neither in [0, C) nor `ignore_index`. Other devices
            cannot check without a sync; there such a pixel is unused.
    """
    flat = labels.reshape(-1)
    if flat.dtype in (torch.uint16, torch.uint32, torch.uint64):
        flat = flat.to(torch.int64)
    try:
        keys, counts = partition_keys(flat, usable, bits, num_classes, ignore_index)
    except RuntimeError as error:
        name, _, problem = str(error).partition(": labels must ")
        if name != "partition_keys":
            raise
        raise RuntimeError(f"{op}: labels must {problem}") from None
    # A key has 37 bits for 21 classes, so no narrower dtype would do.
    pixels = torch.sort(keys, stable=True).indices
    counts, skipped = counts.split((num_classes, 3))
    return Segments(pixels, counts, skipped)


def leading_pixels(segments: Segments, limits: Tensor, size: int) -> LeadingPixels:
    """The first limits[c] pixels of each segment c, or all it has.

    Args:
        segments: from `partition`.
        limits: [C] int64, at least 0.
        size: M, at least the number of pixels there can be.
    """
    return LeadingPixels(*leading_rows(segments.pixels, segments.counts, limits, size))


def _narrow_classes(pixels: LeadingPixels) -> Tensor:
    """The classes in the narrowest dtype: a radix sort takes a pass for each byte."""
    largest = pixels.offsets.shape[0] - 1
    dtypes = (torch.uint8, torch.int16, torch.int32)
    return pixels.classes.to(next(d for d in dtypes if largest <= torch.iinfo(d).max))


def order_by(values: Tensor, pixels: LeadingPixels) -> Tensor:
    """Entries of `pixels` sorted by class, then by ascending value. Equal values keep their order.

    values [M] -> [M] int64; class c is at offsets[c] : offsets[c + 1], as in `pixels`.
    """
    by_value = torch.argsort(values, stable=True)
    return by_value[torch.argsort(_narrow_classes(pixels)[by_value], stable=True)]


def unused_entries(table: Table) -> Tensor:
    """[C, width] bool: the entries from the counts on."""
    return torch.arange(table.index.shape[1], device=table.counts.device) >= table.counts[:, None]
