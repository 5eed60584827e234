"""Writing rows into the per-class rings of a memory bank."""

import torch
from torch import Tensor

from dgcl_ops import reference
from dgcl_ops.ops import _arguments, _registry

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

    Row i of class c goes to slot (heads[c] + i) mod capacity; of more rows than the ring holds, the last
    ones stay. counts and heads advance. Everything is checked before anything is written. No gradient flows.

    Args:
        bank_features, bank_projections, bank_density: the rings, changed in place.
        counts: rows in use per class, changed in place.
        heads: the slot that each class writes next, changed in place.
        features, projections, density: the rows to write, class by class, cast to the rings' dtypes.
        row_counts: how many of them are valid per class.
        normalize: store features as unit rows.

    Raises:
        RuntimeError: for bad tensors, and for one that shares memory with what is changed; on the CPU also for
            row_counts, counts or heads out of range.

    Shape:
        bank_features [C, capacity, D], bank_projections [C, capacity, E], bank_density [C, capacity];
        features [C, P, D], projections [C, P, E], density [C, P]; counts, heads, row_counts [C] int64.

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
def _fake(
    bank_features,
    bank_projections,
    bank_density,
    counts,
    heads,
    features,
    projections,
    density,
    row_counts,
    normalize,
):
    return None


def _mark_changed(keyset, *args):
    """Tells autograd that the rings changed: a backward that had saved their old rows raises."""
    names = ("bank_features", "bank_projections", "bank_density", "counts", "heads")
    for name, ring in zip(names, args, strict=False):
        _arguments.tensors("memory_push", **{name: ring})
        torch.autograd.graph.increment_version(ring)
    below = keyset & torch._C._after_ADInplaceOrView_keyset
    return torch.ops.dgcl_ops.memory_push.default.redispatch(below, *args)


_registry.library.impl("memory_push", _mark_changed, "ADInplaceOrView", with_keyset=True)
_registry.refuse_vmap("memory_push", "push once, with the classes of all in the first dimension")
