"""What sorts pixels by class, in random order inside a class, without a sync."""

import torch
from torch import Tensor

from dgcl_ops import reference
from dgcl_ops.ops import _arguments, _registry

_OP = "dgcl_ops::partition_keys"
_registry.define(
    "partition_keys(Tensor labels, Tensor usable, Tensor bits, int num_classes, int ignore_index) "
    "-> (Tensor keys, Tensor counts)",
    reference.partition_keys,
)


def partition_keys(
    labels: Tensor, usable: Tensor, bits: Tensor, num_classes: int, ignore_index: int = 255
) -> tuple[Tensor, Tensor]:
    """Keys that sort pixels by class and then by a random word, and the number of pixels of each class.

    Each pixel is counted once, in the class of its label or as skipped. Reasons to skip it, in this order:

    1. Its label is `ignore_index`.
    2. It is not usable.
    3. Its label is not in [0, num_classes).

    Args:
        labels: [R] int64, int32, int16, int8 or uint8.
        usable: [R] bool, False for pixels to skip.
        bits: [R] int64, a random word for each pixel. Only the low 32 bits count.
        num_classes: C, less than 2^31.
        ignore_index: label of pixels to skip, inside or outside [0, C).

    Returns:
        keys: [R] int64, class * 2^32 + word. Skipped pixels have class C, so they sort last.
        counts: [C + 3] int64. The pixels of each class, then the skipped pixels for each reason.

    Raises:
        TypeError: If an argument is not a tensor, or `num_classes` or `ignore_index` is not an integer.
        ValueError: If `num_classes` is not positive.
        RuntimeError: If a shape or dtype is wrong, or, on the CPU, if a pixel is skipped for the third reason. Other
            devices count it, because a check would sync.
    """
    _arguments.tensors("partition_keys", labels=labels, usable=usable, bits=bits)
    num_classes = _arguments.positive_integer("partition_keys", "num_classes", num_classes)
    ignore_index = _arguments.integral("partition_keys", "ignore_index", ignore_index)
    return torch.ops.dgcl_ops.partition_keys(labels, usable, bits, num_classes, ignore_index)


@_registry.register_fake(_OP)
def _fake(
    labels: Tensor, usable: Tensor, bits: Tensor, num_classes: int, ignore_index: int
) -> tuple[Tensor, Tensor]:
    counts = labels.new_empty((num_classes + 3,), dtype=torch.int64)
    return labels.new_empty(labels.shape, dtype=torch.int64), counts


_registry.refuse_vmap("partition_keys", "call it once per batch element")
