"""Writes rows into the per-class rings of a memory bank."""

from typing import Any

import torch
from torch import Tensor

from dgcl_ops import reference
from dgcl_ops.ops import _arguments, _registry
from dgcl_ops.ops._rules import WRITTEN

_OP = "dgcl_ops::memory_push"
_registry.define(
    "memory_push(Tensor(a!) bank_features, Tensor(b!) bank_projections, Tensor(c!) bank_density, "
    "Tensor(d!) counts, Tensor(e!) heads, Tensor features, Tensor projections, Tensor density, "
    "Tensor row_counts, bool normalize) -> ()",
    reference.memory_push,
)


def memory_push(
    bank_features: Tensor,
    bank_projections: Tensor,
    bank_density: Tensor,
    counts: Tensor,
    heads: Tensor,
    features: Tensor,
    projections: Tensor,
    density: Tensor,
    row_counts: Tensor,
    normalize: bool = False,
) -> None:
    """Writes the first row_counts[c] rows of each class at its ring's head, in place.

    Row i of class c goes to slot (heads[c] + i) mod capacity. If there are more rows than slots, the last ones stay.
    `counts` and `heads` advance. All arguments are checked before anything is written. No gradient flows.

    Args:
        bank_features: [C, capacity, D], changed in place.
        bank_projections: [C, capacity, E], changed in place.
        bank_density: [C, capacity], changed in place.
        counts: [C] int64, the rows in use per class, changed in place.
        heads: [C] int64, the slot that each class writes next, changed in place.
        features: [C, P, D], the rows to write, class by class. They are cast to the dtype of their ring.
        projections: [C, P, E], like `features`.
        density: [C, P], like `features`.
        row_counts: [C] int64, how many of the P rows are valid per class.
        normalize: store features as unit rows.

    Raises:
        TypeError: If an argument is not a tensor.
        RuntimeError: If a shape or dtype is wrong, or a tensor shares memory with one that is changed, or, on the CPU,
            if `row_counts`, `counts` or `heads` are out of range. CUDA clamps them instead, because a check would sync.

    Reference: Wang et al., Hunting Sparsity, CVPR 2023, section 3.3 (memory bank).
    """
    _arguments.tensors(
        "memory_push",
        bank_features=bank_features,
        bank_projections=bank_projections,
        bank_density=bank_density,
        counts=counts,
        heads=heads,
        features=features,
        projections=projections,
        density=density,
        row_counts=row_counts,
    )
    torch.ops.dgcl_ops.memory_push(
        bank_features,
        bank_projections,
        bank_density,
        counts,
        heads,
        features.detach(),
        projections.detach(),
        density.detach(),
        row_counts,
        bool(normalize),
    )


@_registry.register_fake(_OP)
def _fake(*arguments: Any) -> None:
    return None


def _mark_changed(keyset: Any, *args: Any) -> Any:
    """Increments the rings' version counters, so that a backward that saved the old rows raises."""
    for name, ring in zip(WRITTEN, args, strict=False):
        _arguments.tensors("memory_push", **{name: ring})
        torch.autograd.graph.increment_version(ring)
    below = keyset & torch._C._after_ADInplaceOrView_keyset
    return torch.ops.dgcl_ops.memory_push.default.redispatch(below, *args)


_registry.library.impl("memory_push", _mark_changed, "ADInplaceOrView", with_keyset=True)
_registry.refuse_vmap(
    "memory_push", "stack the classes of all batch elements along dimension 0 and push once"
)
