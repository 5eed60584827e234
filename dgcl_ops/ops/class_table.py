"""The first or last entries of each class as a table."""

import torch
from torch import Tensor

from dgcl_ops import reference
from dgcl_ops.ops import _arguments, _registry

_OP = "dgcl_ops::class_table"
_registry.define(
    "class_table(Tensor pixels, Tensor offsets, Tensor? order, SymInt width, bool last) -> (Tensor, Tensor)",
    reference.class_table,
)


def class_table(
    pixels: Tensor,
    offsets: Tensor,
    order: Tensor | None,
    width: int,
    last: bool = False,
) -> tuple[Tensor, Tensor]:
    """A row for each class: its first entries, or its last ones in reverse, and their pixels.

    Row c reads the entries offsets[c], offsets[c] + 1, ..., or offsets[c + 1] - 1, offsets[c + 1] - 2, ... with `last`.
    A class with fewer than `width` entries goes on beyond them, up to the first or last entry of all.

    Args:
        pixels: [N] int64, the pixel of each entry. Class c has the entries from offsets[c] to offsets[c + 1].
        offsets: [C + 1] int64.
        order: [N] int64, reads entry order[i] in place of i. None keeps the entries as they are.
        width: the number of columns, at most N.
        last: whether to take the last entries.

    Returns:
        A tuple (entries, pixels), both [C, width] int64.

    Raises:
        TypeError: If an argument has the wrong type.
        RuntimeError: If a shape or dtype is wrong or `width` is larger than N. On the CPU also if an offset, or an
            entry that is read from `order`, is out of range. CUDA clamps them instead, because a check would sync.
    """
    _arguments.tensors("class_table", pixels=pixels, offsets=offsets)
    if order is not None:
        _arguments.tensors("class_table", order=order)
    return torch.ops.dgcl_ops.class_table(pixels, offsets, order, width, last)


@_registry.register_fake(_OP)
def _fake(
    pixels: Tensor, offsets: Tensor, order: Tensor | None, width: int, last: bool
) -> tuple[Tensor, Tensor]:
    shape = (offsets.shape[0] - 1, width)
    return pixels.new_empty(shape), pixels.new_empty(shape)


_registry.refuse_vmap("class_table", "call it once per batch element")
