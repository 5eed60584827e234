"""Random pixels of other classes, from pixels that are sorted by class."""

import torch
from torch import Tensor

from dgcl_ops import reference
from dgcl_ops.ops import _arguments, _registry

_OP = "dgcl_ops::draw_negatives"
_registry.define(
    "draw_negatives(Tensor pixels, Tensor pixel_counts, Tensor bits) -> (Tensor, Tensor)",
    reference.draw_negatives,
)


def draw_negatives(pixels: Tensor, pixel_counts: Tensor, bits: Tensor) -> tuple[Tensor, Tensor]:
    """The pixels of other classes: all of them if there are at most N, else N drawn with replacement.

    Args:
        pixels: [R] int64, sorted by class, with 1 <= R < 2^31. Pixels of no class come last. They are never drawn.
        pixel_counts: [C] int64, the number of pixels of each class.
        bits: [C, N] int64, a random word for each draw. Only the low 32 bits count.

    Returns:
        A tuple (negatives, counts).

        - negatives: [C, N] int64. The entries of class c from counts[c] on are unused; they hold any of the pixels.
        - counts: [C] int64, the number of pixels of other classes, but at most N.

    Raises:
        TypeError: If an argument is not a tensor.
        RuntimeError: If a shape or dtype is wrong. On the CPU also if a count is out of range. CUDA clamps it instead,
            because a check would sync.
    """
    _arguments.tensors("draw_negatives", pixels=pixels, pixel_counts=pixel_counts, bits=bits)
    return torch.ops.dgcl_ops.draw_negatives(pixels, pixel_counts, bits)


@_registry.register_fake(_OP)
def _fake(pixels: Tensor, pixel_counts: Tensor, bits: Tensor) -> tuple[Tensor, Tensor]:
    return pixels.new_empty(bits.shape), pixels.new_empty(pixel_counts.shape)


_registry.refuse_vmap("draw_negatives", "call it once per batch element")
