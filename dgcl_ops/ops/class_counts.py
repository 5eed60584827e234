"""A histogram of labels without a sync."""

import torch
from torch import Tensor

from dgcl_ops import reference
from dgcl_ops.ops import _arguments, _registry

_OP = "dgcl_ops::class_counts"
_registry.define(
    "class_counts(Tensor labels, int num_classes, int ignore_index) -> Tensor",
    reference.class_counts,
)


def class_counts(labels: Tensor, num_classes: int, ignore_index: int = 255) -> Tensor:
    """Counts how often each class occurs among the labels.

    Args:
        labels: [...] int64, int32, int16, int8 or uint8.
        num_classes: number of classes, less than 2^31. The classes are 0 to num_classes - 1.
        ignore_index: a label that is not counted, even if it is one of the classes.

    Returns:
        The counts, [num_classes] int64.

    Raises:
        TypeError: If `labels` is not a tensor, or `num_classes` or `ignore_index` is not an integer.
        ValueError: If `num_classes` is not positive.
        RuntimeError: If the dtype is wrong, or, on the CPU, if a label is neither a class nor `ignore_index`. Other
            devices do not count such a label.
    """
    _arguments.tensors("class_counts", labels=labels)
    num_classes = _arguments.positive_integer("class_counts", "num_classes", num_classes)
    ignore_index = _arguments.integral("class_counts", "ignore_index", ignore_index)
    return torch.ops.dgcl_ops.class_counts(labels, num_classes, ignore_index)


@_registry.register_fake(_OP)
def _fake(labels: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    return labels.new_empty((num_classes,), dtype=torch.int64)


_registry.refuse_vmap("class_counts", "call it once per batch element")
