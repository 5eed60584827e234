"""The first pixels of each class, from pixels that are sorted by class."""

import torch
from torch import Tensor

from dgcl_ops import reference
from dgcl_ops.ops import _arguments, _registry

_OP = "dgcl_ops::leading_rows"
_registry.define(
    "leading_rows(Tensor pixels, Tensor pixel_counts, Tensor limits, SymInt size) -> (Tensor, Tensor, Tensor)",
    reference.leading_rows,
)


def leading_rows(
    pixels: Tensor, pixel_counts: Tensor, limits: Tensor, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Takes the first limits[c] pixels of each class c, or all that it has, without gaps.

    Args:
        pixels: [R] int64, sorted by class. Pixels of no class come last.
        pixel_counts: [C] int64, the number of pixels of each class.
        limits: [C] int64, at least 0.
        size: M, at least the number of pixels that are taken, and at most R.

    Returns:
        A tuple (rows, classes, offsets).

        - rows: [M] int64. Class c has the entries from offsets[c] to offsets[c + 1]. The entries from offsets[C] on are
          unused; they hold pixels of no class, or the last pixel.
        - classes: [M] int64, the class of each entry, and C for the unused ones.
        - offsets: [C + 1] int64.

    Raises:
        TypeError: If an argument has the wrong type.
        RuntimeError: If a shape or dtype is wrong or M is larger than R. On the CPU also if a count or limit is out of
            range, or M is too small. CUDA clamps them instead, because a check would sync.
    """
    _arguments.tensors("leading_rows", pixels=pixels, pixel_counts=pixel_counts, limits=limits)
    return torch.ops.dgcl_ops.leading_rows(pixels, pixel_counts, limits, size)


@_registry.register_fake(_OP)
def _fake(
    pixels: Tensor, pixel_counts: Tensor, limits: Tensor, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    rows, classes = pixels.new_empty((size,)), pixels.new_empty((size,))
    return rows, classes, pixels.new_empty((pixel_counts.shape[0] + 1,))


_registry.refuse_vmap("leading_rows", "call it once per batch element")
