"""Sums of table rows in plain PyTorch."""

import torch
from torch import Tensor

from dgcl_ops._precision import compute_dtype


def sum_rows(
    rows: Tensor, indices: Tensor | None, row_counts: Tensor, in_float64: bool = False
) -> Tensor:
    """[C, E]: see `dgcl_ops.ops.sum_rows`."""
    dtype = torch.float64 if in_float64 else compute_dtype(rows)
    width = rows.shape[-2] if indices is None else indices.shape[1]
    unused = torch.arange(width, device=rows.device) >= row_counts[:, None]
    if rows.shape[-2] == 0:  # nothing to index
        return rows.new_zeros((row_counts.shape[0], rows.shape[-1]), dtype=dtype)
    if indices is not None:
        class_index = torch.arange(indices.shape[0], device=rows.device)[:, None]
        indices = indices.masked_fill(unused, 0)
        rows = rows[indices] if rows.dim() == 2 else rows[class_index, indices]
    return rows.to(dtype).masked_fill(unused[:, :, None], 0).sum(1)
