"""Sums of distances by class: what a silhouette score needs from N x N distances."""

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
    """Sums the Euclidean distances from each row to the features of each class.

    Entry (i, c) is the sum of `|x_i - x_j|` over the features j of class c. Distances are computed in float64, from
    differences: nothing cancels, and equal rows have distance 0. They are added in a fixed order, so the bits are
    the same for any number of threads. No matrix of distances is stored. No gradient flows.

    On the CPU, omitting `rows` halves the work: each pair is visited once.

    Args:
        features: [N, D], any float dtype, sorted by class. A row that is not finite makes its sums NaN or infinite.
            So do differences whose squares overflow.
        offsets: [C + 1] int64. Class c's features are rows offsets[c] to offsets[c + 1]. Features outside belong to
            no class. They have sums, but no sum includes them.
        rows: [M, D], the rows to sum distances for; by default the features.

    Returns:
        The sums, [M, C] float64, or [N, C] without `rows`. An empty class has sum 0.

    Raises:
        TypeError: If an argument is not a tensor.
        RuntimeError: If a shape or dtype is wrong, or, on the CPU, if `offsets` are out of range or decrease. CUDA
            clamps them instead, because a check would sync.

    Reference: Rousseeuw, Silhouettes: a graphical aid, J. Comput. Appl. Math. 20, 1987.
    """
    _arguments.tensors("silhouette_sums", features=features, offsets=offsets)
    if rows is not None:
        _arguments.tensors("silhouette_sums", rows=rows)
        rows = rows.detach()
    return torch.ops.dgcl_ops.silhouette_sums(features.detach(), offsets, rows)


@_registry.register_fake(_OP)
def _fake(features: Tensor, offsets: Tensor, rows: Tensor | None) -> Tensor:
    queries = features if rows is None else rows
    shape = (queries.shape[0], offsets.shape[0] - 1)
    return features.new_empty(shape, dtype=torch.float64)


_registry.refuse_vmap("silhouette_sums", "call it once per batch element")
