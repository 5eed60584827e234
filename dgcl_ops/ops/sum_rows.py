"""Sums of rows, chosen by a table."""

import torch
from torch import Tensor

from dgcl_ops import reference
from dgcl_ops._precision import compute_dtype
from dgcl_ops.ops import _arguments, _registry

_OP = "dgcl_ops::sum_rows"
_registry.define(
    "sum_rows(Tensor rows, Tensor? indices, Tensor row_counts, bool in_float64=False) -> Tensor",
    reference.sum_rows,
)


def sum_rows(
    rows: Tensor, indices: Tensor | None, row_counts: Tensor, *, in_float64: bool = False
) -> Tensor:
    """Adds the first row_counts[c] rows of each class c of a table.

    Rows are added in the order of the table, in the dtype of the result. So the bits are the same on the CPU and CUDA,
    and for any number of threads. Later entries of the table are never read. No gradient flows.

    Args:
        rows: [N, E], the same for all classes, or [C, N, E], any float dtype.
        indices: [C, P] int64, the rows of each class. None means the rows in their order, so P is N; this needs rows of
            shape [C, N, E].
        row_counts: [C] int64, in [0, P].
        in_float64: add narrower rows in float64, too.

    Returns:
        The sums, [C, E], in float64 for float64 rows or with `in_float64`, else in float32. A class without rows has
        sum 0.

    Raises:
        TypeError: If an argument is not a tensor.
        RuntimeError: If a shape or dtype is wrong. On the CPU also if a count or an index that is read is out of range.
            CUDA clamps them instead, because a check would sync.
    """
    _arguments.tensors("sum_rows", rows=rows, row_counts=row_counts)
    if indices is not None:
        _arguments.tensors("sum_rows", indices=indices)
    return torch.ops.dgcl_ops.sum_rows(rows.detach(), indices, row_counts, in_float64)


@_registry.register_fake(_OP)
def _fake(
    rows: Tensor, indices: Tensor | None, row_counts: Tensor, in_float64: bool = False
) -> Tensor:
    dtype = torch.float64 if in_float64 else compute_dtype(rows)
    return rows.new_empty((row_counts.shape[0], rows.shape[-1]), dtype=dtype)


_registry.refuse_vmap("sum_rows", "call it once per batch element")
