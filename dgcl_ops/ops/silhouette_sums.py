"""Sums of distances by class: all that a silhouette score needs to know of N x N distances."""

import torch
from torch import Tensor

from dgcl_ops import reference
from dgcl_ops.ops import _arguments, _registry

_OP = "dgcl_ops::silhouette_sums"
_registry.define(
    "silhouette_sums(Tensor features, Tensor offsets, Tensor? rows) -> Tensor",
    reference.silhouette_sums,
)


def silhouette_sums(features: Tensor, offsets: Tensor, rows: Tensor | None = None) -> Tensor:
    """For each row and class, the sum of the row's Euclidean distances to the class's features.

    Entry (i, c) is the sum over features j of class c of |x_i - x_j|. Widened to float64, computed from
    differences (nothing cancels, and equal rows have distance 0) and added in a fixed order: repeating a
    call repeats its bits, for any number of threads. No matrix of distances is stored. No gradient flows.

    On the CPU, leaving `rows` out also halves the work: every pair is looked at once.

    Args:
        features: sorted by class, any float dtype. A row that is not finite makes the sums it takes part
            in NaN or infinite, as do differences whose squares overflow.
        offsets: class c's features are rows offsets[c] to offsets[c + 1]. Features outside belong to no
            class: they have sums like any other, and count in nobody's.
        rows: the rows whose sums are wanted; the features themselves by default.

    Returns:
        The sums, in float64; 0 for an empty class.

    Raises:
        RuntimeError: for bad tensors; on the CPU also for offsets out of range or decreasing, which CUDA,
            to stay free of synchronisation, clamps.

    Shape:
        features [N, D], offsets [C + 1] int64, rows [M, D] -> [M, C], or [N, C] without rows.

    Reference: Rousseeuw, Silhouettes: a graphical aid, J. Comput. Appl. Math. 20, 1987.
    """
    _arguments.tensors("silhouette_sums", features=features, offsets=offsets)
    if rows is not None:
        _arguments.tensors("silhouette_sums", rows=rows)
        rows = rows.detach()
    return torch.ops.dgcl_ops.silhouette_sums(features.detach(), offsets, rows)


@_registry.register_fake(_OP)
def _fake(features, offsets, rows):
    asking = features if rows is None else rows
    shape = (asking.shape[0], offsets.shape[0] - 1)
    return features.new_empty(shape, dtype=torch.float64)


_registry.refuse_vmap("silhouette_sums", "call it for each")
