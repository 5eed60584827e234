"""The rules between arguments of the operators that choose pixels, see `_checks`."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dgcl_ops.reference.pixels import table_places

MOST_SPATIAL = 6
_MAPS = f"[B, D, *S] with 1 to {MOST_SPATIAL} spatial dimensions"


def check_map_shapes(op: str, given: dict[str, Any]) -> None:
    """Rules for the number of dimensions of maps."""
    if "shape" in given and not 3 <= len(given["shape"]) <= 2 + MOST_SPATIAL:
        raise RuntimeError(f"{op}: shape must be {_MAPS}, got {list(given['shape'])}")
    if "maps" not in given:
        return
    rows = op == "finite_rows"  # which takes [M, D] as well
    if not 3 - rows <= given["maps"].dim() <= 2 + MOST_SPATIAL:
        rule = f"{_MAPS}, or [M, D]" if rows else _MAPS
        raise RuntimeError(f"{op}: maps must have shape {rule}, got {list(given['maps'].shape)}")


def num_pixels(shape: Sequence[int]) -> int:
    """The number of pixels of maps, [B, D, *S] or [M, D]."""
    return math.prod([*shape[:1], *shape[2:]])


def count_pixels(op: str, name: str, shape: Sequence[int]) -> int:
    """The number of pixels, if int64 holds it."""
    pixels = num_pixels(shape)
    if pixels >= 2**63:
        raise RuntimeError(f"{op}: {name} must have fewer than 2^63 pixels, got {list(shape)}")
    return pixels


def check_sizes(op: str, given: dict[str, Any]) -> None:
    """Rules for sizes, which need no value of a tensor."""
    if op not in ("leading_rows", "draw_negatives", "class_table"):
        return
    pixels = given["pixels"].shape[0]
    for name in ("size", "width"):
        if name in given and not 0 <= given[name] <= pixels:
            raise RuntimeError(
                f"{op}: {name} must lie in [0, {pixels}], the number of pixels, got {given[name]}"
            )
    if op == "draw_negatives" and pixels < 1:
        raise RuntimeError(f"{op}: pixels must have at least one entry, got [{pixels}]")
    if op == "draw_negatives" and pixels >= 2**31:
        raise RuntimeError(f"{op}: pixels must have fewer than 2^31 entries, got [{pixels}]")


def check_values(op: str, given: dict[str, Any]) -> None:
    """Rules for the values of several tensors."""
    if op in ("leading_rows", "draw_negatives"):
        _check_pixel_counts(op, given["pixel_counts"].tolist(), given["pixels"].shape[0])
    if op == "leading_rows":
        _check_leading(op, given["pixel_counts"], given["limits"], given["size"])
    if op == "class_table" and given["order"] is not None:
        _check_order(op, **given)


def _check_pixel_counts(op: str, counts: list[int], total: int) -> None:
    if sum(counts) > total:
        raise RuntimeError(
            f"{op}: pixel_counts must sum to at most {total}, the number of pixels, got {counts}"
        )


def _check_leading(op: str, pixel_counts: Tensor, limits: Tensor, size: int) -> None:
    for limit in limits.tolist():
        if limit < 0:
            raise RuntimeError(f"{op}: limits must lie in [0, {2**63 - 1}], got {limit}")
    rows = int(torch.minimum(pixel_counts, limits).sum())
    if rows > size:
        raise RuntimeError(f"{op}: size must be at least the number of rows, {rows}, got {size}")


def _check_order(
    op: str, pixels: Tensor, offsets: Tensor, order: Tensor, width: int, last: bool
) -> None:
    """Only the entries that are read."""
    total = pixels.shape[0]
    read = order[table_places(offsets, width, last, total)]
    wrong = read[(read < 0) | (read >= total)]
    if wrong.numel():
        raise RuntimeError(f"{op}: order must lie in [0, {total}), got {int(wrong[0])}")
