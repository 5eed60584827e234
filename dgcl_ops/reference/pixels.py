"""The operators that choose pixels, in plain PyTorch. All but finite_rows compute in int64."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from dgcl_ops._random import random_below

_WORD = 0xFFFFFFFF  # random words have 32 bits, held in int64
_MULTIPLIERS = (0x4777BA65, 0x727CB4EF)  # below 2^31: a product with a word fits into int64
_OFFSETS = (0x6D2B79F5, 0x3C6EF372)


def mix(word: Tensor) -> Tensor:
    """A bijection of [0, 2^32): see csrc/math/random_bits.h."""
    word = ((word ^ (word >> 14)) * _MULTIPLIERS[0]) & _WORD
    word = ((word ^ (word >> 16)) * _MULTIPLIERS[1]) & _WORD
    return word ^ (word >> 17)


def random_bits(rng_state: Tensor, stream: int, count: int) -> Tensor:
    """Hashes of (seed, step, stream, index): see `dgcl_ops.ops.random_bits`."""
    low, high = rng_state & _WORD, (rng_state >> 32) & _WORD  # [2]: of seed and step
    first = mix((low[0] + (_OFFSETS[0] + stream * _OFFSETS[1]) % (_WORD + 1)) & _WORD)
    first = mix(first ^ high[0])
    first = mix((first + low[1]) & _WORD)
    second = mix(((first + _OFFSETS[1]) & _WORD) ^ high[1])
    index = torch.arange(count, device=rng_state.device)
    return mix((mix(index ^ first) + second) & _WORD)


def partition_keys(
    labels: Tensor, usable: Tensor, bits: Tensor, num_classes: int, ignore_index: int = 255
) -> tuple[Tensor, Tensor]:
    """Keys [R] and counts [C + 3]: see `dgcl_ops.ops.partition_keys`. On the CPU, a stray label is an error."""
    wide = labels.to(torch.int64)
    labelled = wide != ignore_index
    outside = labelled & usable & ((wide < 0) | (wide >= num_classes))
    stray = wide[outside] if wide.device.type == "cpu" else wide[:0]
    if stray.numel():
        raise RuntimeError(
            f"partition_keys: labels must lie in [0, {num_classes}) or equal ignore_index "
            f"{ignore_index}, got {int(stray[0])}"
        )
    place = torch.where(outside, num_classes + 2, wide)
    place = torch.where(usable, place, num_classes + 1)
    place = torch.where(labelled, place, num_classes)
    counts = torch.bincount(place, minlength=num_classes + 3)
    return (place.clamp(max=num_classes) << 32) | (bits & _WORD), counts


def finite_rows(
    maps: Tensor, other_maps: Tensor | None = None, confidence: Tensor | None = None
) -> Tensor:
    """[R] bool: see `dgcl_ops.ops.finite_rows`.

    The largest and smallest element are finite exactly if all are, and finding them needs no copy of the map.
    """
    finite = maps.new_ones((*maps.shape[:1], *maps.shape[2:]), dtype=torch.bool)
    for given in (maps, other_maps):
        if given is not None and given.shape[1]:
            finite &= torch.isfinite(given.amax(1)) & torch.isfinite(given.amin(1))
    if confidence is not None:
        finite &= torch.isfinite(confidence)
    return finite.reshape(-1)


def leading_rows(
    pixels: Tensor, pixel_counts: Tensor, limits: Tensor, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows [M], classes [M], offsets [C + 1]: see `dgcl_ops.ops.leading_rows`."""
    starts = pad(pixel_counts.cumsum(0), (1, 0))
    offsets = pad(torch.minimum(pixel_counts, limits).cumsum(0), (1, 0))
    entry = torch.arange(size, device=pixels.device)
    classes = torch.searchsorted(offsets[1:], entry, right=True)
    at = starts[classes] + (entry - offsets[classes])
    return pixels[at.clamp(max=pixels.shape[0] - 1)], classes, offsets


def draw_negatives(pixels: Tensor, pixel_counts: Tensor, bits: Tensor) -> tuple[Tensor, Tensor]:
    """Negatives [C, N] and counts [C]: see `dgcl_ops.ops.draw_negatives`.

    The pixels outside the segment of class c are numbered [0, others). A number at or beyond the start of that segment
    moves up by its size.
    """
    limit = bits.shape[1]
    ends = pixel_counts.cumsum(0)
    own = pixel_counts[:, None]
    others = ends[-1:, None] - own
    drawn = random_below(bits & _WORD, others)
    number = torch.where(others > limit, drawn, torch.arange(limit, device=bits.device))
    number = number + own * (number >= ends[:, None] - own)
    return pixels[number.clamp(max=pixels.shape[0] - 1)], others[:, 0].clamp(max=limit)


def table_places(offsets: Tensor, width: int, last: bool, size: int) -> Tensor:
    """[C, width]: the places of the first or last entries of each class, all in [0, size)."""
    column = torch.arange(width, device=offsets.device)
    if last:
        return (offsets[1:, None] - 1 - column).clamp(min=0)
    return (offsets[:-1, None] + column).clamp(max=size - 1)


def class_table(
    pixels: Tensor, offsets: Tensor, order: Tensor | None, width: int, last: bool = False
) -> tuple[Tensor, Tensor]:
    """Entries and pixels, both [C, width]: see `dgcl_ops.ops.class_table`."""
    places = table_places(offsets, width, last, pixels.shape[0])
    entries = places if order is None else order[places]
    return entries, pixels[entries]
