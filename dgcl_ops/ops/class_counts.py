"""A histogram of labels that needs no copy to the host."""

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
    """How often each class occurs among the labels.

    Args:
        labels: of any shape; int64, int32, int16, int8 or uint8.
        num_classes: classes are 0 to num_classes - 1; less than 2^31.
        ignore_index: the label that stands for none; not counted, even when it lies in the classes' range.

    Returns:
        The counts.

    Raises:
        TypeError, ValueError: for a bad `num_classes` or `ignore_index`.
        RuntimeError: on the CPU, for a label that is neither a class nor `ignore_index`; other devices do
            not count it.

    Shape:
        labels [...] -> [num_classes] int64.
    """
    _arguments.tensors("class_counts", labels=labels)
    num_classes = _arguments.positive_integer("class_counts", "num_classes", num_classes)
    ignore_index = _arguments.integral("class_counts", "ignore_index", ignore_index)
    return torch.ops.dgcl_ops.class_counts(labels, num_classes, ignore_index)


@_registry.register_fake(_OP)
def _fake(labels, num_classes, ignore_index):
    return labels.new_empty((num_classes,), dtype=torch.int64)


_registry.refuse_vmap("class_counts", "call it for each")
