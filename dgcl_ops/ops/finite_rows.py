"""Which pixels of feature maps are free of inf and NaN."""

import torch
from torch import Tensor

from dgcl_ops import reference
from dgcl_ops.ops import _arguments, _registry

_OP = "dgcl_ops::finite_rows"
_registry.define(
    "finite_rows(Tensor maps, Tensor? other_maps, Tensor? confidence) -> Tensor",
    reference.finite_rows,
)


def finite_rows(
    maps: Tensor, other_maps: Tensor | None = None, confidence: Tensor | None = None
) -> Tensor:
    """Finds the pixels without an inf or NaN in any channel.

    Reads every map once, in place, whatever its strides.

    Args:
        maps: [B, D, *S] feature maps with 1 to 6 spatial dimensions, or [M, D] rows, of any float dtype.
        other_maps: maps of the same pixels, with any number of channels and any float dtype.
        confidence: [B, *S] or [M], a number for each pixel, of any float dtype.

    Returns:
        [R] bool for R pixels or rows, True where all numbers are finite.

    Raises:
        TypeError: If an argument is not a tensor.
        RuntimeError: If a shape or dtype is wrong.
    """
    _arguments.tensors("finite_rows", maps=maps)
    optional = {"other_maps": other_maps, "confidence": confidence}
    given = {name: value for name, value in optional.items() if value is not None}
    _arguments.tensors("finite_rows", **given)
    return torch.ops.dgcl_ops.finite_rows(maps, other_maps, confidence)


@_registry.register_fake(_OP)
def _fake(maps: Tensor, other_maps: Tensor | None, confidence: Tensor | None) -> Tensor:
    pixels = maps.shape[0]
    for size in maps.shape[2:]:
        pixels = pixels * size
    return maps.new_empty((pixels,), dtype=torch.bool)


_registry.refuse_vmap("finite_rows", "call it once per batch element")
