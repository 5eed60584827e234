"""The vectors of chosen pixels of a feature map."""

from typing import Any

import torch
from torch import Tensor

from dgcl_ops import reference
from dgcl_ops.ops import _arguments, _registry

_OP = "dgcl_ops::gather_rows"
_registry.define(
    "gather_rows(Tensor maps, Tensor indices) -> Tensor",
    reference.gather_rows,
)


def gather_rows(maps: Tensor, indices: Tensor) -> Tensor:
    """Gathers the vectors of chosen pixels, without a permuted or contiguous copy of the map.

    Differentiable in `maps`. Gradients of a pixel that is chosen several times add up, in no fixed order.
    `torch.func` cannot differentiate it.

    Args:
        maps: [B, D, H, W] feature maps, or [R, D] rows. Channels-last maps are read in place.
        indices: [...] int64, the pixels b * H * W + y * W + x, or the rows, to gather. Any order; repetitions allowed.

    Returns:
        The vectors, [..., D], in the dtype of `maps`.

    Raises:
        TypeError: If an argument is not a tensor.
        RuntimeError: If a shape or dtype is wrong, or, on the CPU, if an index lies outside [0, B * H * W). CUDA does
            not check that, because a check would sync. There, such an index yields a row of NaNs and propagates no
            gradient.

    With `maps` [R, D] this is `maps[indices]`, with PyTorch's rules and errors.
    """
    _arguments.tensors("gather_rows", maps=maps, indices=indices)
    if maps.dim() == 2:
        return maps[indices]
    return torch.ops.dgcl_ops.gather_rows(maps, indices)


@_registry.register_fake(_OP)
def _fake(maps: Tensor, indices: Tensor) -> Tensor:
    return maps.new_empty((*indices.shape, maps.shape[1]))


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    maps, indices = inputs
    ctx.shape = maps.shape
    ctx.save_for_backward(indices)


def _without_strays(indices: Tensor, dL_drows: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """Indices [N] outside [0, total) become 0, with gradient 0 in dL_drows [N, D]."""
    stray = (indices < 0) | (indices >= total)
    return indices.masked_fill(stray, 0), dL_drows.masked_fill(stray[:, None], 0.0)


def _backward(ctx: Any, dL_drows: Tensor) -> tuple[Tensor, None]:
    (indices,) = ctx.saved_tensors
    images, dim, height, width = ctx.shape
    area = height * width
    dL_dmaps = dL_drows.new_zeros((images, dim, area))
    if dL_dmaps.numel() == 0:
        return dL_dmaps.view(ctx.shape), None
    indices, dL_drows = indices.reshape(-1), dL_drows.reshape(-1, dim)
    if not indices.is_cpu:  # the CPU refuses strays in forward
        indices, dL_drows = _without_strays(indices, dL_drows, images * area)
    # mT has shape [images, area, dim] and the same memory. The two index tensors are adjacent in it.
    dL_dmaps.mT.index_put_((indices // area, indices % area), dL_drows, accumulate=True)
    return dL_dmaps.view(ctx.shape), None


_registry.register_autograd(_OP, _backward, _setup_context)


@torch.library.register_vmap(_OP)
def _vmap(info: Any, in_dims: tuple, maps: Tensor, indices: Tensor) -> tuple[Tensor, int]:
    """Concatenates the images of all batches. An index outside its own batch stays outside all of them."""
    maps, indices = _registry.leading(info, in_dims, maps, indices)
    area = maps[0, :, 0].numel()
    first = torch.arange(info.batch_size, device=indices.device) * area
    first = first.view(-1, *[1] * (indices.dim() - 1))
    inside = (indices >= 0) & (indices < area)
    moved = torch.where(inside, indices + first, -1)
    return torch.ops.dgcl_ops.gather_rows(maps.flatten(0, 1), moved), 0
